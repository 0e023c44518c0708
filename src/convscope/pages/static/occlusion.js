"use strict";
// What does hiding a part of one picture do: five panels, and the square under your hand?
(() => {
  const c = window.convscope;
  const { el, data, layers } = c;

  c.screens.occlusion = async (index) => {
    const number = Number(index || 0);
    const o = data.occlusion[number];
    if (!o) return c.missing("This atlas holds no such occlusion example.");
    const layer = c.layerNumber(o.unit[0]);
    const numbers = layer >= 0 ? await c.maps(layer) : null;
    const state = { row: o.lowest_probability[0], column: o.lowest_probability[1], draw: [] };
    const panels = el("div.panels", {},
      square(o, number, state),
      map("b", `Activity of ${o.unit[0]}:${o.unit[1]}`, o, number, "activity", state, o.lowest_activity,
        "Sum over the map while the square is there; low where the map's evidence was hidden."),
      projection(o, number, layer, numbers),
      map("d", `Probability of ${o.target}`, o, number, "probability", state, o.lowest_probability,
        "Low where hiding hurts: this part of the picture speaks for the class."),
      likeliest(o, number, state));
    const move = (row, column) => {
      state.row = Math.min(Math.max(row, 0), o.tops.length - 1);
      state.column = Math.min(Math.max(column, 0), o.lefts.length - 1);
      for (const draw of state.draw) draw();
    };
    state.move = move;
    move(state.row, state.column);
    return {
      title: `Occlusion of ${o.picture}`,
      up: "#/",
      arrows: (down, across) => move(state.row + down, state.column + across),
      previous: number > 0 ? c.address("occlusion", number - 1) : null,
      next: number + 1 < data.occlusion.length ? c.address("occlusion", number + 1) : null,
      nodes: [head(o, number), panels, table(o)],
    };
  };

  function head(o, number) {
    const [kept, all] = o.keeps;
    return el("section.head", {},
      el("div.head-title", {},
        el("div", {}, el("h1", {}, `What speaks for ${o.target}?`),
          el("p.lead", {}, `${o.picture}, ${o.label === null ? "class unknown" : `class ${o.label}`}`)),
        others(number)),
      el("dl.facts.small", {},
        c.fact(`Probability of ${o.target}`, c.percent(o.base_probability), "nothing hidden"),
        c.fact("Worst place", c.percent(o.probability[o.lowest_probability[0]][o.lowest_probability[1]]), "square where it hurts most"),
        c.fact(`${o.target} stays likeliest`, `${c.count(kept)} of ${c.count(all)}`, "places of the square"),
        c.fact("Square", `${o.sides[0]} × ${o.sides[1]} px`, `moved by ${o.tops.length > 1 ? o.tops[1] - o.tops[0] : 0} px`)),
      c.honest("A grey square is moved over the picture and the network asked again at each place: an intervention that shows what the answer needs, not how its parts work together.",
        "The answer depends on the square's size and grey. A part that looks unimportant may only be backed up by another part that stayed visible, and the square itself can look like something.", c.made(o.origin)));
  }

  /** The other examples, as small pictures. */
  const others = (number) => data.occlusion.length < 2 ? null : el("nav.examples", { "aria-label": "Examples" },
    data.occlusion.map((o, i) => el("a", { href: c.address("occlusion", i), "aria-current": i === number ? "page" : null, title: o.picture },
      el("img", { src: `occlusion/${i}/picture.webp`, alt: `${o.picture}, explained for ${o.target}` }))));

  const panel = (letter, title, body, ...notes) =>
    el("figure.panel", {}, el("figcaption", {}, el("strong", {}, `(${letter}) `), title), body, notes);

  function view(o, src, alt, ...over) {
    const node = el("div.view", {}, el("img", { src, alt, draggable: "false" }), over);
    c.place(node, { "aspect-ratio": `${o.size[1]} / ${o.size[0]}` });
    return node;
  }

  const within = (o, [left, top, width, height]) => ({
    left: `${(100 * left) / o.size[1]}%`, top: `${(100 * top) / o.size[0]}%`,
    width: `${(100 * width) / o.size[1]}%`, height: `${(100 * height) / o.size[0]}%`,
  });

  function square(o, number, state) {
    const node = el("span.occluder", { "aria-hidden": "true" });
    c.place(node, { background: `rgb(${o.fill} ${o.fill} ${o.fill})` });
    const words = el("p.panel-note", { role: "status" });
    state.draw.push(() => {
      const { row, column } = state;
      c.place(node, within(o, [o.lefts[column], o.tops[row], o.sides[1], o.sides[0]]));
      words.textContent = `Square at row ${o.tops[row]}, column ${o.lefts[column]} px: ${o.target} ${c.percent(o.probability[row][column])}, ` +
        `likeliest ${o.classes[o.likeliest[row][column]]}, activity ${c.value(o.activity[row][column])}.`;
    });
    return panel("a", "The picture and the square", view(o, `occlusion/${number}/picture.webp`, `picture ${o.picture}, as the network saw it`, node), words,
      el("p.panel-note.quiet", {}, "Point at a map, or use the arrow keys, to move it."));
  }

  /** A map of values over the pale picture; each value stands where the square's centre was. */
  function map(letter, title, o, number, key, state, lowest, note) {
    const values = o[key].flat();
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const format = key === "probability" ? (v) => c.percent(v) : c.value;
    const base = key === "probability" ? o.base_probability : o.base_activity;
    return panel(letter, title,
      raster(o, number, key, state, `${title} for each place of the square: from ${format(low)} to ${format(high)}, lowest with the square at row ${o.tops[lowest[0]]}, column ${o.lefts[lowest[1]]} px`),
      el("div.scale", {}, el("span", {}, format(low)), el("span.heat-bar", { "aria-hidden": "true" }), el("span", {}, format(high))),
      el("p.panel-note", {}, `${note} Nothing hidden: ${format(base)}.`));
  }

  function raster(o, number, key, state, alt, over) {
    const image = el("img.raster", { src: `occlusion/${number}/${key}.webp`, alt, draggable: "false" });
    c.place(image, within(o, o.reach));
    const cross = el("span.cross", { "aria-hidden": "true" });
    state.draw.push(() => c.place(cross, {
      left: `${(100 * (o.lefts[state.column] + o.sides[1] / 2)) / o.size[1]}%`,
      top: `${(100 * (o.tops[state.row] + o.sides[0] / 2)) / o.size[0]}%`,
    }));
    const node = view(o, `occlusion/${number}/picture.webp`, "", image, over, cross);
    node.classList.add("pale");
    const point = (event) => {
      const box = node.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * o.size[1] - o.sides[1] / 2;
      const y = ((event.clientY - box.top) / box.height) * o.size[0] - o.sides[0] / 2;
      state.move(nearest(o.tops, y), nearest(o.lefts, x));
    };
    node.addEventListener("pointermove", point);
    node.addEventListener("pointerdown", point);
    return node;
  }

  function nearest(values, v) {
    const gaps = values.map((value) => Math.abs(value - v));
    return gaps.indexOf(Math.min(...gaps));
  }

  function projection(o, number, layer, numbers) {
    const unit = `${o.unit[0]}:${o.unit[1]}`;
    const body = o.projection
      ? view(o, `occlusion/${number}/projection.webp`, `${unit}, picture ${o.picture}, projection of its strongest activation`)
      : el("div.view.empty", {}, "not recorded");
    const elsewhere = numbers && el("div.others", {}, [0, 1, 2].filter((place) => numbers.picture[o.unit[1]]?.[place] >= 0)
      .map((place) => c.oneOf(layer, o.unit[1], numbers, place, 1)));
    return panel("c", el("span", {}, "Projection of ", layer >= 0 ? el("a", { href: c.unitAddress(layer, o.unit[1]) }, unit) : unit), body,
      o.projection && el("div.scale", {}, el("span", {}, c.value(o.projection[0])), el("span.grey-bar", { "aria-hidden": "true" }), el("span", {}, c.value(o.projection[1]))),
      elsewhere && el("p.panel-note", {}, "The same map's strongest elsewhere, on their own scale:"), elsewhere,
      el("p.panel-note", {}, "The map strongest in this picture; the classifier need not rely on it."));
  }

  function likeliest(o, number, state) {
    const [, all] = o.keeps;
    const letters = o.kinds.map((k) => {
      const node = el("span.letter", { "aria-hidden": "true" }, k.letter);
      c.place(node, {
        left: `${(100 * (o.lefts[k.place[1]] + o.sides[1] / 2)) / o.size[1]}%`,
        top: `${(100 * (o.tops[k.place[0]] + o.sides[0] / 2)) / o.size[0]}%`,
      });
      return node;
    });
    const alt = "likeliest class for each place of the square: " + o.kinds.map((k) => `${k.name} at ${k.count} of ${all}`).join(", ");
    return panel("e", "Likeliest class", raster(o, number, "likeliest", state, alt, letters),
      el("ul.kinds", {}, o.kinds.map((k) => {
        const patch = el("span.swatch", { "aria-hidden": "true" }, k.letter);
        c.place(patch, { background: k.colour });
        return el("li", {}, patch, el("span", {}, k.name), el("span.count", {}, `${c.count(k.count)} of ${c.count(all)}`));
      })),
      el("p.panel-note", {}, "The likeliest class, each where the square's centre was."));
  }

  function table(o) {
    return el("details.numbers", {}, el("summary", {}, `All ${c.count(o.keeps[1])} probabilities as a table`),
      el("div.scroller", { tabindex: 0, role: "region", "aria-label": "Probabilities" },
        el("table", {},
          el("caption", {}, `Probability of ${o.target} in %, by the square's top (rows) and left (columns) in px`),
          el("thead", {}, el("tr", {}, el("th", {}, ""), o.lefts.map((v) => el("th", { scope: "col" }, String(v))))),
          el("tbody", {}, o.probability.map((row, i) => el("tr", {}, el("th", { scope: "row" }, String(o.tops[i])), row.map((v) => el("td", {}, (100 * v).toFixed(1)))))))));
  }
})();
