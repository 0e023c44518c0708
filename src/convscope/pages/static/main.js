"use strict";
// Which screen does the address name, and what do the keys do there?
(() => {
  const c = window.convscope;
  const { el, data, layers } = c;
  const main = document.getElementById("screen");
  const places = document.getElementById("places");
  const seen = new Map(); // scroll position of each entry of the history
  let shown = {};
  let turn = 0;
  let settled = false; // scrolling counts only between one screen's end and the next one's start

  c.missing = (text) => ({ title: "Not here", up: "#/", nodes: [el("section.head", {}, el("h1", {}, "Not here"), el("p.lead", {}, text), el("p", {}, el("a", { href: "#/" }, "To the network")))] });

  /** Which layers there are instead. */
  c.noLayer = (name) => {
    const said = c.missing(`There is no layer ${name} in this atlas. ` + (layers.length ? "It looks at:" : "It looks at none."));
    said.nodes[0].append(el("ul.there", {}, layers.map((l) => el("li", {}, el("a", { href: c.address("layer", l.name) }, l.name)))));
    return said;
  };

  function parse(hash) {
    const [path, query] = hash.replace(/^#\/?/, "").split("?");
    let parts = [];
    try {
      parts = path.split("/").map(decodeURIComponent);
    } catch {
      parts = ["?"];
    }
    return { name: parts[0] || "network", rest: parts.slice(1), query: new URLSearchParams(query) };
  }

  async function show() {
    const mine = ++turn;
    settled = false;
    const { name, rest, query } = parse(location.hash);
    const screen = Object.hasOwn(c.screens, name) ? c.screens[name] : () => c.missing("There is no such screen.");
    const entry = (history.state && history.state.entry) || newEntry();
    let next;
    try {
      next = await (name === "layer" ? screen(rest[0], query) : screen(...rest));
    } catch (fault) {
      next = c.missing(fault.message);
    }
    if (mine !== turn) return; // another screen was asked for meanwhile
    shown = next;
    shown.name = name;
    main.replaceChildren(...next.nodes.filter(Boolean));
    main.dataset.screen = name;
    main.dataset.address = location.hash; // what stands there now, while the next one may be loading
    document.title = `${next.title} · ${name === "network" ? "convscope" : data.title}`;
    header(name, next);
    if (next.after) next.after();
    window.scrollTo({ top: seen.get(entry) || 0, behavior: "instant" });
    settled = true;
    if (document.activeElement === document.body || !main.contains(document.activeElement)) main.focus({ preventScroll: true });
  }

  function newEntry() {
    const entry = `${Date.now()}-${turn}`;
    history.replaceState({ entry }, "");
    return entry;
  }

  /** The same screen under another address: no step back is added. */
  c.replaceAddress = (hash) => history.replaceState(history.state, "", hash);

  // Header ------------------------------------------------------------------------------------
  function header(name, next) {
    const link = (href, text, here) => el("a", { href, "aria-current": here ? "page" : null }, text);
    const gap = () => el("span.gap", { "aria-hidden": "true" });
    places.replaceChildren(
      link("#/", "Network", name === "network"),
      layers.length ? gap() : "",
      ...layers.map((l, i) => link(c.address("layer", l.name), l.name, next.layer === i)),
      data.training || data.evolution || data.occlusion.length || c.studies.length ? gap() : "",
      ...(data.training ? [link("#/training", "Training", name === "training")] : []),
      ...(data.evolution ? [link("#/evolution", "Evolution", name === "evolution")] : []),
      ...(data.occlusion.length ? [link(c.address("occlusion", 0), "Occlusion", name === "occlusion")] : []),
      ...(c.studies.length ? [link(c.address("study", 0), "Studies", name === "study")] : []));
    const here = places.querySelector("[aria-current]");
    if (here) places.scrollTo({ left: here.offsetLeft - places.clientWidth / 2 + here.clientWidth / 2, behavior: "instant" });
  }

  c.copyLink = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      c.say("Link copied");
    } catch {
      c.say("The browser did not allow copying; the address bar holds the link");
    }
  };

  // Keys --------------------------------------------------------------------------------------
  const go = (address) => { if (address) location.hash = address; };

  function sideways(step) {
    if (shown.sideways) return go(shown.sideways(step));
    const from = shown.layer ?? (step > 0 ? -1 : layers.length);
    const to = layers[from + step];
    return to && go(c.address("layer", to.name));
  }

  /** From card to card; `down` rows and `across` cards. */
  function walk(across, down) {
    const cards = [...document.querySelectorAll(".wall .card")];
    if (!cards.length) return false;
    const at = cards.indexOf(document.activeElement);
    if (at < 0) {
      if (down) return false; // nothing chosen yet: the page scrolls
      cards.find((card) => card.getBoundingClientRect().top >= 0)?.focus();
      return true;
    }
    const row = getComputedStyle(document.querySelector(".wall")).gridTemplateColumns.split(" ").length;
    cards[at + across + down * row]?.focus();
    return true;
  }

  function arrow(across, down) {
    if (shown.arrows) { shown.arrows(down, across); return true; }
    if (shown.name === "unit" && across) { go(across < 0 ? shown.previous : shown.next); return true; }
    return walk(across, down);
  }

  const ACTIONS = {
    ArrowLeft: () => arrow(-1, 0), ArrowRight: () => arrow(1, 0),
    ArrowUp: () => arrow(0, -1), ArrowDown: () => arrow(0, 1),
    "[": () => { sideways(-1); return true; }, "]": () => { sideways(1); return true; },
    "/": () => { c.openFind(); return true; },
    "?": () => { c.openKeys(); return true; },
    c: () => { c.copyLink(); return true; },
    Escape: () => { go(shown.up); return true; },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, textarea, select") && event.key !== "Escape") return;
    if (event.target.closest(".scroller, .strip, .evolution") && event.key.startsWith("Arrow")) return;
    const action = ACTIONS[event.key];
    if (action && action()) event.preventDefault();
  });

  document.getElementById("find-open").addEventListener("click", c.openFind);
  document.getElementById("keys-open").addEventListener("click", c.openKeys);
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });

  history.scrollRestoration = "manual";
  addEventListener("scroll", () => {
    if (settled && history.state) seen.set(history.state.entry, scrollY);
  }, { passive: true });
  addEventListener("hashchange", show);
  addEventListener("resize", () => c.measureWall());
  show();
})();
