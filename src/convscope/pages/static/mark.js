"use strict";
// How does a hand mark what an eye sees: clicks, drags, keys, and what the page says of them?
(() => {
  const marks = window.convscopeMarks;
  const { data } = marks;
  const by = (id) => document.getElementById(id);
  const stage = by("stage");
  const parts = [...document.querySelectorAll(".parts li")];
  const pictures = [...document.querySelectorAll(".pictures button")];
  const FAR = 5; // screen pixels that make a drag of a click
  let part = 0;
  let cross = null;
  let begun = null; // a box's first corner: {x, y, by: "drag" | "corner"}
  let saved = true;

  const size = () => data.pictures[marks.at()].size;

  // Drawing -----------------------------------------------------------------------------------
  const drawMarks = () => window.convscopeOverlay(begun, cross);

  function drawSide() {
    const { points, boxes, skipped } = marks.picture();
    parts.forEach((row, at) => {
      const [button, clear] = row.children;
      button.setAttribute("aria-pressed", String(at === part));
      button.querySelector(".at").textContent = points[at] ? points[at].join(", ") : "not marked";
      row.classList.toggle("set", Boolean(points[at]));
      clear.hidden = !points[at];
    });
    by("boxes").replaceChildren(...boxes.map(boxRow));
    by("skip").setAttribute("aria-pressed", String(skipped));
    by("boxing").setAttribute("aria-pressed", String(stage.classList.contains("boxing")));
    stage.classList.toggle("skipped", skipped);
  }

  function boxRow(box, at) {
    const row = document.createElement("li");
    const text = document.createElement("span");
    text.textContent = `${box[0]}, ${box[1]} to ${box[2]}, ${box[3]}`;
    const clear = document.createElement("button");
    clear.type = "button";
    clear.className = "clear";
    clear.textContent = "×";
    clear.setAttribute("aria-label", `Take away box ${at + 1}`);
    clear.addEventListener("click", () => edit((one) => one.boxes.splice(at, 1), "box taken away"));
    row.append(text, clear);
    return row;
  }

  function drawProgress() {
    const total = data.pictures.length;
    pictures.forEach((button, at) => {
      const how = marks.progress(at);
      button.className = how;
      button.setAttribute("aria-label", `${at + 1}, ${data.pictures[at].shown}: ${WORDS[how]}`);
      if (at === marks.at()) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    const partly = marks.count("partly");
    const lack = partly === 1 ? "1 lacks parts and stays" : `${partly} lack parts and stay`;
    const left = data.parts.length && partly ? ` ${lack} out of parts.json.` : "";
    by("state").textContent = `${marks.count("done")} of ${total} done, ${marks.count("skipped")} skipped.${left}`;
    by("keeps").textContent = marks.kept()
      ? "Marks stay in this browser; save the files to use them."
      : "This browser keeps nothing for opened files: save before you close the page.";
    by("previous").disabled = marks.at() === 0;
    by("next").disabled = marks.at() === total - 1;
  }

  const WORDS = { done: "done", partly: "begun", skipped: "skipped", nothing: "not begun" };

  function show() {
    const { file, shown, size: [width, height] } = data.pictures[marks.at()];
    const picture = by("picture");
    if (picture.getAttribute("src") !== file) {
      picture.src = file;
      picture.width = width;
      picture.height = height;
      stage.style.setProperty("aspect-ratio", `${width} / ${height}`);
      stage.style.setProperty("--shape", width / height);
    }
    const place = `${marks.at() + 1} of ${data.pictures.length}`;
    by("title").textContent = shown;
    document.title = `${place} · ${shown} · convscope mark`;
    const aim = stage.classList.contains("boxing") ? "a corner of a box" : data.parts[part] || "a corner of a box";
    stage.setAttribute("aria-label", `Picture ${place}, ${shown}. Enter marks ${aim} at the cross.`);
    drawSide();
    drawProgress();
    drawMarks();
  }

  // Changing ----------------------------------------------------------------------------------
  function edit(how, told) {
    marks.change(how);
    saved = false;
    say(told);
    show();
  }

  function mark({ x, y }) {
    if (!data.parts.length || stage.classList.contains("boxing")) return corner({ x, y });
    const name = data.parts[part];
    const at = part;
    const points = marks.picture().points;
    const free = data.parts.map((_, n) => (at + 1 + n) % data.parts.length).find((n) => n !== at && !points[n]);
    if (free !== undefined) part = free;
    edit((one) => { one.points[at] = [x, y]; }, `${name} at ${x}, ${y}`);
  }

  function corner({ x, y }) {
    if (!begun) {
      begun = { x, y, by: "corner" };
      say("one corner; now the other");
      return show();
    }
    box(begun, { x, y });
  }

  function box(from, to) {
    begun = null;
    edit((one) => one.boxes.push(marks.corners(from, to)), `box ${marks.picture().boxes.length + 1}`);
  }

  function go(at) {
    begun = cross = null;
    const free = data.parts.findIndex((_, n) => !(marks.picture(Math.min(Math.max(at, 0), pictures.length - 1)).points[n]));
    part = Math.max(free, 0);
    marks.go(at);
    show();
  }

  function undo() {
    begun = null;
    say(marks.undo() ? "undone" : "nothing to undo");
    show();
  }

  const clear = (at) => marks.picture().points[at] && edit((one) => { one.points[at] = null; }, `${data.parts[at]} taken away`);
  const skip = () => edit((one) => { one.skipped = !one.skipped; }, marks.picture().skipped ? "not skipped" : "skipped");

  function boxing() {
    stage.classList.toggle("boxing");
    begun = null;
    show();
  }

  function choose(at) {
    part = at;
    stage.classList.remove("boxing");
    begun = null;
    show();
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    saved = true;
    say(`${name} saved`);
  }

  function say(text) {
    const said = by("said");
    said.textContent = text;
    said.classList.add("shown");
    clearTimeout(say.timer);
    say.timer = setTimeout(() => said.classList.remove("shown"), 2500);
  }

  // Mouse, pen and finger ---------------------------------------------------------------------
  function under(event) {
    const frame = by("picture").getBoundingClientRect();
    const [width, height] = size();
    const inside = (v, most) => Math.min(Math.max(Math.floor(v), 0), most - 1);
    return {
      x: inside(((event.clientX - frame.left) / frame.width) * width, width),
      y: inside(((event.clientY - frame.top) / frame.height) * height, height),
    };
  }

  let down = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    down = { ...under(event), left: event.clientX, top: event.clientY };
    if (event.pointerType !== "touch" || stage.classList.contains("boxing")) stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (begun && begun.by === "corner") cross = under(event);
    if (down && !begun && Math.hypot(event.clientX - down.left, event.clientY - down.top) > FAR)
      if (event.pointerType !== "touch" || stage.classList.contains("boxing")) begun = { x: down.x, y: down.y, by: "drag" };
    if (begun && begun.by === "drag") cross = under(event);
    if (begun) drawMarks();
  });
  stage.addEventListener("pointerup", (event) => {
    if (!down) return;
    down = null;
    cross = under(event);
    if (begun && begun.by === "drag") return box(begun, cross);
    mark(cross);
  });
  stage.addEventListener("pointercancel", () => { down = begun = null; show(); });
  stage.addEventListener("focus", drawMarks);
  stage.addEventListener("blur", drawMarks);

  // Keys --------------------------------------------------------------------------------------
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function move(event) {
    const [width, height] = size();
    cross = cross || { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    const step = event.altKey ? 1 : Math.max(1, Math.round((size()[0] / stage.clientWidth) * 2)) * (event.shiftKey ? 10 : 1);
    const [across, along] = MOVES[event.key];
    cross.x = Math.min(Math.max(cross.x + across * step, 0), width - 1);
    cross.y = Math.min(Math.max(cross.y + along * step, 0), height - 1);
    drawMarks();
  }

  stage.addEventListener("keydown", (event) => {
    if (event.key in MOVES) move(event);
    else if (event.key === "Enter") mark(cross || { x: Math.floor(size()[0] / 2), y: Math.floor(size()[1] / 2) });
    else return;
    event.preventDefault();
  });

  const KEYS = {
    n: () => go(marks.at() + 1),
    p: () => go(marks.at() - 1),
    u: undo,
    s: skip,
    b: boxing,
    Delete: () => clear(part),
    Backspace: () => clear(part),
    Escape: () => { begun = null; show(); },
  };
  document.addEventListener("keydown", (event) => {
    const held = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (held && key === "z") undo();
    else if (held || event.altKey) return;
    else if (/^[1-9]$/.test(key) && Number(key) <= data.parts.length) choose(Number(key) - 1);
    else if (key in KEYS) KEYS[key]();
    else return;
    event.preventDefault();
  });

  // Buttons -----------------------------------------------------------------------------------
  parts.forEach((row, at) => {
    const [button, away] = row.children;
    row.querySelector(".swatch").style.setProperty("background", data.colours[at]);
    button.addEventListener("click", () => choose(at));
    away.addEventListener("click", () => clear(at));
  });
  pictures.forEach((button, at) => button.addEventListener("click", () => go(at)));
  by("previous").addEventListener("click", KEYS.p);
  by("next").addEventListener("click", KEYS.n);
  by("undo").addEventListener("click", undo);
  by("skip").addEventListener("click", skip);
  by("boxing").addEventListener("click", boxing);
  by("save-parts")?.addEventListener("click", () => save("parts.json", marks.partsFile()));
  by("save-boxes").addEventListener("click", () => save("boxes.json", marks.boxesFile()));
  window.addEventListener("resize", drawMarks);
  window.addEventListener("beforeunload", (event) => { if (!saved && !marks.kept()) event.preventDefault(); });
  marks.keep();
  go(marks.at());
})();
