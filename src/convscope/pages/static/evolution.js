"use strict";
// How did feature maps form: each one's strongest picture at every recorded epoch?
(() => {
  const c = window.convscope;
  const { el, data } = c;
  const SHOWS = [["projections", "projections"], ["patches", "patches"], ["both", "both"]];
  const kept = { show: "projections", epoch: -1 };

  c.screens.evolution = () => {
    const e = data.evolution;
    if (!e) return c.missing("This atlas holds no record of how its features formed.");
    if (kept.epoch < 0) kept.epoch = e.epochs.length - 1;
    const grid = el("div.evolution", { style: { "--epochs": e.epochs.length }, "data-show": kept.show, tabindex: 0, role: "region", "aria-label": "Feature maps by epoch" }, table(e));
    const chosen = el("output", {}, words(e));
    const slider = el("input", {
      type: "range", min: 0, max: e.epochs.length - 1, value: kept.epoch, id: "epoch",
      "aria-valuetext": words(e),
      input: () => { kept.epoch = Number(slider.value); mark(); },
    });
    const mark = () => {
      chosen.textContent = words(e);
      slider.setAttribute("aria-valuetext", words(e));
      select(grid, e);
    };
    return {
      title: "Feature evolution",
      after: () => select(grid, e),
      up: "#/",
      nodes: [
        el("section.head", {}, el("h1", {}, "Feature evolution"),
          el("p.lead", {}, `${c.many(e.units.length, "feature map")} at ${c.many(e.epochs.length, "recorded epoch")}: the one strongest activation in all pictures looked at, projected back to pixels.`),
          c.honest("◆ marks where another picture has become the strongest: a jump in a row is mostly such a change, not a sudden change of the filter.",
            "All epochs of one map share one scale, so a map that grows stronger grows clearer. Rows are scaled apart.",
            "One picture a map is little evidence: it shows how the strongest response formed, not how the map as a whole did.", c.made(e.origin))),
        el("div.controls", {},
          el("label.slider", { for: "epoch" }, el("span.choice-name", {}, "Epoch"), slider, chosen),
          c.choice("Show", SHOWS, kept.show, (key) => { kept.show = grid.dataset.show = key; })),
        grid,
      ],
    };
  };

  const words = (e) => `epoch ${c.count(e.epochs[kept.epoch])}${e.epochs[kept.epoch] ? "" : ", untrained"}`;

  /** `conv5:41` → link to the feature map where the atlas holds it. */
  function link(unit) {
    const cut = unit.lastIndexOf(":");
    const layer = c.layerNumber(unit.slice(0, cut));
    const map = Number(unit.slice(cut + 1));
    return layer >= 0 && map < c.layers[layer].maps ? el("a", { href: c.unitAddress(layer, map) }, unit) : unit;
  }

  function table(e) {
    const layerOf = (unit) => unit.slice(0, unit.lastIndexOf(":"));
    return el("table", {},
      el("thead", {}, el("tr", {},
        el("th.unit", { scope: "col" }, "feature map"),
        e.epochs.map((epoch, i) => el("th", { scope: "col", "data-epoch": i }, el("small", {}, i ? "" : "epoch "), c.count(epoch))))),
      e.units.map((unit, u) => {
        const starts = u === 0 || layerOf(unit) !== layerOf(e.units[u - 1]);
        return el("tbody", { class: starts ? "starts" : null },
          el("tr", {},
            el("th.unit", { scope: "row" }, el("span", {}, link(unit)), el("span.now", { "data-unit": u })),
            e.epochs.map((_, i) => cell(e, unit, u, i))));
      }));
  }

  function cell(e, unit, u, i) {
    const jump = i > 0 && e.image[u][i] !== e.image[u][i - 1];
    const about = `${unit} at epoch ${e.epochs[i]}, picture ${e.image[u][i]}, activation ${c.value(e.value[u][i])}`;
    return el("td", { "data-epoch": i, class: jump ? "jump" : null, title: about + (jump ? ", another picture than before" : "") },
      el("span.pair", {}, part(u, i, 0, `${about}, patch`), part(u, i, 1, `${about}, projection${jump ? ", another picture than before" : ""}`)));
  }

  function part(u, i, half, alt) {
    const e = data.evolution;
    const high = Math.ceil(e.epochs.length / e.per_row);
    const node = c.tile(`evolution/${u}.webp`, alt, {
      columns: e.per_row, rows: 2 * high, side: e.tile,
      column: i % e.per_row, row: half * high + Math.floor(i / e.per_row),
    });
    node.classList.add(half ? "projection" : "patch");
    return node;
  }

  c.evolutionTile = part;

  function select(grid, e) {
    for (const node of grid.querySelectorAll("[data-epoch]"))
      node.classList.toggle("chosen", Number(node.dataset.epoch) === kept.epoch);
    for (const node of grid.querySelectorAll(".now"))
      node.textContent = `activation ${c.value(e.value[node.dataset.unit][kept.epoch])}`;
    const head = grid.querySelector("th.chosen");
    if (head && grid.scrollWidth > grid.clientWidth)
      grid.scrollTo({ left: head.offsetLeft - grid.clientWidth / 2, behavior: "instant" });
  }
})();
