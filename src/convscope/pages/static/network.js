"use strict";
// What network is this, how does it get from pixels to classes, and is it in good health?
(() => {
  const c = window.convscope;
  const { el, data, layers } = c;

  c.screens.network = () => {
    const maps = layers.reduce((n, l) => n + l.maps, 0);
    const seen = layers.length ? layers[0].seen : 0;
    return {
      title: data.title,
      nodes: [
        el("section.hero", {},
          el("div", {},
            el("h1", {}, data.title),
            el("p.lead", {}, `What each of ${c.many(maps, "feature map")} in ` +
              `${c.many(layers.length, "layer")} responds to most in ${c.many(seen, "picture")}.`)),
          data.pictures.notes?.length > 0 && el("div.changed", {}, el("p", {}, el("b", {}, "Look at the pictures first "),
            "Before the network saw them, some were changed, or are not what their files show elsewhere:"),
            el("ul", {}, data.pictures.notes.map((note) => el("li", {}, note)))),
          card(maps, seen), origin(data.card)),
        more(),
        classes(),
        el("section", {}, el("h2", {}, "From pixels to classes", el("small", {}, " heights to scale, wider with more maps")), strip()),
        el("section", {},
          el("h2", {}, "What the layers see"),
          c.honest(
            "For each layer its strongest feature maps: the parts of pictures that excite a map most, and beside them what in each part did it. This explains activations, not classes.",
            "Patches are cut at the map's receptive field, exactly. Projections follow one activation back to pixels through this picture's own pooling positions (deconvnet).",
            "The strongest nine flatter a map: it also answers, more weakly, to other things. Nothing here says how much a map matters for the answer."),
          el("ol.rows", {}, layers.map(row))),
      ],
    };
  };

  function card(maps, seen) {
    const k = data.card;
    const dead = layers.reduce((n, l) => n + l.dead, 0);
    const [channels, height, width] = k.input;
    return el("dl.facts", {},
      c.fact("Parameters", c.large(k.parameters)),
      c.fact("Multiply-adds", c.large(k.multiply_adds), "for one picture"),
      c.fact("Input", `${height} × ${width} px`, c.many(channels, "channel")),
      c.fact("Classes", k.classes.length ? c.count(k.classes.length) : "unnamed"),
      k.top1 >= 0 && c.fact("Top-1 accuracy", c.percent(k.top1), `on ${c.many(seen, "picture")}`),
      k.top5 >= 0 && k.classes.length > 5 && c.fact("Top-5 accuracy", c.percent(k.top5), `on ${c.many(seen, "picture")}`),
      c.fact("Dead maps", `${c.count(dead)} of ${c.count(maps)}`, dead ? "never above 0 here" : "all were above 0"));
  }

  const origin = (k) => el("dl.facts", {},
    el("div.fact.wide", {}, el("dt", {}, "Network"), el("dd", {}, k.name)),
    el("div.fact.wide", {}, el("dt", {}, "Weights"), el("dd", {}, k.weights,
      k.sha256 && el("small.hash", { title: k.sha256 }, `SHA-256 ${k.sha256.slice(0, 16)}…`))),
    el("div.fact.wide", {}, el("dt", {}, "Preprocessing"), el(k.preprocessing.includes("assumed: ") ? "dd.plain.warn" : "dd.plain", {}, k.preprocessing)));

  /** What the network tells apart, and how many winning pictures of each class the atlas has. */
  function classes() {
    const names = data.card.classes;
    if (!names.length) return null;
    const there = new Map();
    for (const label of data.pictures.label) {
      const name = data.pictures.classes[label];
      if (name !== undefined) there.set(name, (there.get(name) || 0) + 1);
    }
    const item = (name) => {
      const at = data.pictures.classes.indexOf(name);
      return el("li", {}, there.has(name) ? el("a", { href: c.address("class", at) }, name) : name,
        there.has(name) && el("small", {}, ` ${c.count(there.get(name))}`));
    };
    const sure = data.card.top1 >= 0 ? `; ${c.percent(data.card.top1)} of the pictures here are told right` : "";
    return el("details.classes-all", { open: names.length <= 20 },
      el("summary", {}, el("h2", {}, c.many(names.length, "class", "classes"), el("small", {}, ` that the network tells apart${sure}`))),
      el("ol.class-names", {}, names.map(item)));
  }

  function more() {
    const { training: t, evolution: e } = data;
    const ways = [];
    if (t) {
      const at = ["val_accuracy", "train_accuracy"].map((n) => t.columns.indexOf(n)).find((i) => i >= 0);
      const values = at === undefined ? [] : t.values.map((row) => row[at]);
      const kind = at !== undefined && t.columns[at].startsWith("val") ? "validation" : "training";
      ways.push(way("#/training", "Training", [c.many(t.epochs.length, "epoch"),
        values.length ? `${kind} accuracy ${c.percent(values[values.length - 1])}` : ""], spark(values)));
    }
    if (e) {
      const last = e.epochs.length - 1;
      const unit = Math.floor(e.units.length / 2);
      const picture = c.evolutionTile(unit, last, 1, "");
      ways.push(way("#/evolution", "Feature evolution", [c.many(e.units.length, "feature map"), `at ${c.many(last + 1, "epoch")}`], picture));
    }
    data.occlusion.slice(0, 3).forEach((o, i) =>
      ways.push(way(c.address("occlusion", i), "Occlusion", [`What speaks for ${o.target}?`, o.picture],
        el("img", { src: `occlusion/${i}/picture.webp`, alt: "", loading: "lazy" }))));
    return ways.length ? el("nav.ways", { "aria-label": "More about this network" }, ways) : null;
  }

  const way = (href, name, lines, picture) => el("a.way", { href }, el("span.way-picture", {}, picture),
    el("span.way-words", {}, el("strong", {}, name), lines.map((text) => el("span", { title: text }, text))));

  /** A curve without axes, only to recognise the way by. */
  function spark(values) {
    const known = values.filter((v) => v !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const points = values.map((v, i) => [i, v]).filter(([, v]) => v !== null)
      .map(([i, v]) => `${(4 + (40 * i) / (values.length - 1 || 1)).toFixed(1)} ${(40 - (32 * (v - low)) / (high - low || 1)).toFixed(1)}`);
    return c.svg("svg.spark", { viewBox: "0 0 48 48", "aria-hidden": "true" }, points.length > 0 && c.svg("path", { d: `M${points.join("L")}` }));
  }

  // The strip -----------------------------------------------------------------------------------
  function strip() {
    const steps = drawn();
    const most = Math.max(data.card.input[1], data.card.input[2]);
    return el("div.strip", { tabindex: 0, role: "region", "aria-label": "Layers from pixels to classes" },
      el("ol", {}, steps.map((step) => stepNode(step, most))));
  }

  /** Layers that change the shape or hold filters; what happens between is named under them. */
  function drawn() {
    const t = data.table;
    const steps = [{ name: "picture", kind: "Input", shape: data.card.input, then: [], at: -1 }];
    t.name.forEach((name, i) => {
      const last = steps[steps.length - 1];
      const shape = t.shape[i];
      const same = String(shape) === String(last.shape);
      const holds = t.parameters[i] > 0 && !/norm/i.test(t.kind[i]);
      const at = c.layerNumber(name);
      if (same && !holds && (at < 0 || last.at < 0 || at === last.at)) {
        last.then.push(t.kind[i]);
        if (at >= 0) last.at = at; // its maps are looked at behind this, e.g. a normalisation
      } else steps.push({ at, name, kind: t.kind[i], shape, then: [], field: t.field[i], stride: t.stride[i], parameters: t.parameters[i] });
    });
    return steps;
  }

  const short = (kind) => kind.replace(/^LocalResponseNorm$/, "LRN").replace(/^BatchNorm\dd$/, "batch norm").toLowerCase().replace("relu", "ReLU").replace("lrn", "LRN");

  function stepNode(step, most) {
    const [channels, height, width] = step.shape;
    const flat = step.shape.length < 3;
    const solid = step.kind === "Input" && data.pictures.number.length ? c.thumb(0, "") : el(`span.solid.${/conv/i.test(step.kind) ? "conv" : /pool/i.test(step.kind) ? "pool" : flat ? "flat" : "plain"}`);
    c.place(solid, step.kind === "Input"
      ? { height: `${(7 * height) / most}rem`, width: `${(7 * width) / most}rem` }
      : flat
      ? { height: `${1.5 + Math.log10(channels + 1) * 1.3}rem`, width: "0.5rem" }
      : { height: `${Math.max(0.25, (7 * height) / most)}rem`, width: `${0.4 + Math.sqrt(channels) * 0.14}rem` });
    const size = flat ? c.count(channels) : `${c.count(channels)} × ${height} × ${width}`;
    const seen = step.field && step.field[0] ? `sees ${step.field[0]} px` : flat ? "sees all" : "";
    const words = [
      el("span.solid-room", {}, solid), el("strong", { title: step.name }, c.tail(step.name)),
      el("span", {}, size), el("span.sees", {}, seen),
      el("span.then", {}, step.then.length ? `+ ${[...new Set(step.then.map(short))].join(", ")}` : ""),
    ];
    return el("li", {}, step.at >= 0 ? el("a.step", { href: c.address("layer", layers[step.at].name) }, words) : el("span.step", {}, words));
  }

  // Rows ----------------------------------------------------------------------------------------
  function row(layer, number) {
    const href = c.address("layer", layer.name);
    return el("li.row", {},
      el("a.row-name", { href },
        eye(layer),
        el("span.row-words", {},
          el("strong", {}, layer.name),
          c.convolutionOf(layer) && el("span", {}, `of ${c.convolutionOf(layer)}`),
          el("span", {}, `${c.many(layer.maps, "map")} of ${layer.shape[1]} × ${layer.shape[2]}`),
          el("span", {}, `sees ${c.pixels(layer.field)}`),
          el("span", {}, `one neuron every ${layer.stride[0]} px`),
          el("span", { class: layer.dead ? "warn" : "" }, layer.dead ? `${c.count(layer.dead)} dead` : "none dead"))),
      el("div.row-maps", {}, layer.strongest.map((map) =>
        el("a.mini", { href: c.unitAddress(number, map) },
          c.block(number, map, "both", `${layer.name}:${map}, its strongest patches beside their projections`),
          el("span.mini-name", {}, String(map))))),
    );
  }

  /** The receptive field at true scale, in the middle of the network's input. */
  function eye(layer) {
    const [, height, width] = data.card.input;
    const [h, w] = [Math.min(layer.field[0], height), Math.min(layer.field[1], width)];
    return c.svg("svg.eye", { viewBox: `-1 -1 ${width + 2} ${height + 2}`, "aria-hidden": "true" },
      c.svg("rect.input", { x: 0, y: 0, width, height, rx: 4 }),
      c.svg("rect.field", { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }));
  }

  c.eye = eye;
})();
