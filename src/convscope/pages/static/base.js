"use strict";
// What do all screens share: the data, elements that never come from HTML text, and numbers.
// Names of files, classes and layers are data: they enter as text nodes and attributes only.
window.convscope = (() => {
  const data = window.CONVSCOPE;
  const SVG = "http://www.w3.org/2000/svg";

  /** An element: `el("a.card", {href}, "text", child)`. Functions in props are listeners. */
  function el(what, props, ...children) {
    const [tag, ...classes] = what.split(".");
    return fill(document.createElement(tag), classes, props, children);
  }

  function svg(what, props, ...children) {
    const [tag, ...classes] = what.split(".");
    return fill(document.createElementNS(SVG, tag), classes, props, children);
  }

  function fill(node, classes, props, children) {
    if (classes.length) node.setAttribute("class", classes.join(" "));
    for (const [name, value] of Object.entries(props || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (typeof value === "function") node.addEventListener(name, value);
      else if (name === "style") place(node, value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  }

  /** Inline style by script, which the page's policy allows where style attributes are refused. */
  function place(node, style) {
    for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  }

  // Numbers -----------------------------------------------------------------------------------
  const whole = new Intl.NumberFormat("en");
  const count = (n) => whole.format(n);

  /** Three figures, as people read them: 12.3, 0.00412, 1,230. */
  function value(v) {
    if (v === null || v === undefined) return "none";
    const size = Math.abs(v);
    if (size >= 1000) return count(Math.round(v)).replace("-", "−");
    if (size !== 0 && size < 0.001) return powers(v);
    return String(Number(v.toPrecision(3))).replace("-", "−");
  }

  /** 2.5 · 10⁻⁴ */
  function powers(v) {
    const [figures, power] = v.toExponential(2).split("e");
    const raised = [...power.replace("+", "")].map((d) => (d === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[d])).join("");
    return `${String(Number(figures)).replace("-", "−")} · 10${raised}`;
  }

  /** Large counts: 62.4 million. */
  function large(n) {
    for (const [size, word] of [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]])
      if (n >= size) return `${(n / size).toPrecision(3)} ${word}`;
    return count(n);
  }

  function share(part, all) {
    if (!all) return "0 %";
    const p = (100 * part) / all;
    if (p > 0 && p < 0.1) return "under 0.1 %";
    if (p < 100 && p > 99.9) return "over 99.9 %";
    return `${p < 10 && p > 0 ? p.toFixed(1) : p > 99 && p < 100 ? p.toFixed(1) : Math.round(p)} %`;
  }

  const percent = (v, digits = 1) => (v === null || v < 0 ? null : `${(100 * v).toFixed(digits)} %`);
  const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more || one + "s"}`;
  const pixels = ([h, w]) => (h === w ? `${h} × ${w} px` : `${h} × ${w} px (height × width)`);

  /** A long dotted name by its last parts, which tell it from its neighbours. */
  function tail(name, most = 15) {
    const parts = name.split(".");
    while (parts.length > 1 && parts.join(".").length >= most) parts.shift();
    const end = parts.join(".");
    return end === name ? name : `…${end}`;
  }

  /** What a neuron sees, in words, and whether that is more than there is. */
  function sees(layer) {
    const [, height, width] = data.card.input;
    const beyond = layer.field[0] >= height && layer.field[1] >= width;
    return fact("Each neuron sees", pixels(layer.field), beyond ? "the whole picture" : null);
  }

  // Places in the data ------------------------------------------------------------------------
  const layers = data.layers;
  /** A layer is also found by the convolution whose maps are looked at behind it. */
  const layerNumber = (name) => {
    const own = layers.findIndex((layer) => layer.name === name);
    return own >= 0 ? own : layers.findIndex((layer) => convolutionOf(layer) === name);
  };
  const convolutionOf = (layer) => data.table.of[data.table.name.indexOf(layer.name)] || "";
  const address = (...parts) => "#/" + parts.map(encodeURIComponent).join("/");
  const unitAddress = (layer, map) => address("unit", layers[layer].name, map);

  const loading = new Map();

  /** A layer's numbers, from its own script, once. */
  function maps(layer) {
    if (!loading.has(layer)) loading.set(layer, load(layer));
    return loading.get(layer);
  }

  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("convscope", { createScriptURL: ours })
    : { createScriptURL: ours };

  function ours(url) {
    if (!/^data\/layer\d+\.js$/.test(url)) throw new TypeError("not a part of this atlas: " + url);
    return url;
  }

  function load(layer) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = policy.createScriptURL(`data/layer${layer}.js`);
      script.addEventListener("load", () => resolve(window.CONVSCOPE_MAPS[layer]));
      script.addEventListener("error", () => {
        loading.delete(layer);
        reject(new Error(`data/layer${layer}.js is missing: was the whole folder copied?`));
      });
      document.head.append(script);
    });
  }

  const pictureName = (at) => (at < 0 ? "unknown picture" : data.pictures.name[at]);
  function className(at) {
    const label = at < 0 ? -1 : data.pictures.label[at];
    return label < 0 ? null : data.pictures.classes[label] ?? `class ${label}`;
  }

  // Small parts of screens --------------------------------------------------------------------
  /** Choices of which one holds: a row of buttons that says which. */
  function choice(name, options, chosen, choose) {
    const buttons = options.map(([key, text]) =>
      el("button", {
        type: "button",
        "aria-pressed": String(key === chosen),
        "data-key": key,
        click: () => {
          for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.key === key));
          choose(key);
        },
      }, text));
    return el("div.choice", { role: "group", "aria-label": name }, el("span.choice-name", {}, name), buttons);
  }

  const fact = (name, text, note) =>
    el("div.fact", {}, el("dt", {}, name), el("dd", {}, text, note && el("small", {}, note)));

  /** What a method shows and what it does not: one summary line, more when opened. */
  const honest = (shows, ...more) =>
    el("details.honest", {}, el("summary", {}, shows), more.filter(Boolean).map((text) => el("p", {}, text)));

  /** What made a record: method, variant, network, pictures, version. */
  function made(origin) {
    const parts = Object.entries(origin).map(([name, text]) => `${name} ${text}`);
    return parts.length ? `Made with: ${parts.join("; ")}.` : null;
  }

  function say(text) {
    const said = document.getElementById("said");
    said.textContent = text;
    said.classList.add("shown");
    clearTimeout(say.timer);
    say.timer = setTimeout(() => said.classList.remove("shown"), 2500);
  }

  return {
    data, layers, el, svg, place, count, value, large, share, tail, percent, many, pixels, layerNumber, convolutionOf,
    address, unitAddress, maps, pictureName, className, choice, fact, sees, honest, made, say, screens: {},
  };
})();
