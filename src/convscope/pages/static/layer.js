"use strict";
// What do all feature maps of one layer see: a card each, in any order?
(() => {
  const c = window.convscope;
  const { el, layers, data } = c;
  const SORTS = {
    index: ["number", (n) => (a, b) => a - b],
    peak: ["peak", (n) => (a, b) => n.value[b][0] - n.value[a][0] || a - b],
    activity: ["activity", (n) => (a, b) => n.active[b] - n.active[a] || a - b],
    alike: ["likeness", (n, d) => (a, b) => (d.similarity[b] ?? -2) - (d.similarity[a] ?? -2) || a - b],
    class: ["one class", (n) => (a, b) => purity(n, b) - purity(n, a) || a - b],
  };
  const SHOWS = [["both", "both"], ["patches", "patches"], ["projections", "projections"]];
  const kept = { sort: "index", show: "both" }; // what was chosen last holds for the next layer

  /** Classes of a map's strongest pictures, the most frequent first: [[name, count], …]. */
  function classesOf(numbers, map) {
    const found = new Map();
    for (const at of numbers.picture[map]) {
      const name = c.className(at);
      if (name !== null) found.set(name, (found.get(name) || 0) + 1);
    }
    return [...found].sort((a, b) => b[1] - a[1]);
  }

  const purity = (numbers, map) => (numbers.active[map] ? (classesOf(numbers, map)[0] || ["", 0])[1] : -1);

  c.screens.layer = async (name, query) => {
    const number = c.layerNumber(name);
    if (number < 0) return c.noLayer(name);
    const layer = layers[number];
    const numbers = await c.maps(number);
    for (const key of ["sort", "show"]) if (query.get(key)) kept[key] = query.get(key);
    if (!SORTS[kept.sort]) kept.sort = "index";
    if (!SHOWS.some(([key]) => key === kept.show)) kept.show = "both";
    const wall = el("ol.wall", { "data-show": kept.show });
    let cards = [];
    const arrange = () => {
      const order = cards.map((_, map) => map).sort(SORTS[kept.sort][1](numbers, c.drawn(number, numbers)));
      wall.replaceChildren(...order.map((map) => cards[map]));
    };
    const words = el("div.rule-words");
    const draw = () => {
      cards = numbers.active.map((_, map) => card(number, map, numbers));
      words.replaceChildren(...ruleWords(number), projectionWords(layer, number));
      arrange();
    };
    const keep = () => c.replaceAddress(c.address("layer", layer.name) + `?sort=${kept.sort}&show=${kept.show}`);
    draw();
    return {
      title: layer.name,
      layer: number,
      up: "#/",
      after: () => measure(wall),
      nodes: [
        head(layer, number),
        words,
        el("div.controls", {},
          c.choice("Sort by", sorts(), kept.sort, (key) => { kept.sort = key; arrange(); keep(); }),
          c.ruleChoice(number, () => { draw(); measure(wall); }),
          c.choice("Show", SHOWS, kept.show, (key) => { kept.show = wall.dataset.show = key; measure(wall); keep(); })),
        wall,
      ],
    };
  };

  const sorts = () => Object.entries(SORTS)
    .filter(([key]) => key !== "class" || data.pictures.classes.length > 1)
    .map(([key, [text]]) => [key, text]);

  function head(layer, number) {
    const { table } = data;
    const own = table.name.indexOf(layer.name);
    // A normalisation only scales the maps of its convolution, which has the weights.
    const of = c.convolutionOf(layer);
    const i = of ? table.name.indexOf(of) : own;
    const inside = of ? `in ${of}` : null;
    return el("section.head", {},
      el("div.head-title", {}, c.eye(layer),
        el("div", {}, el("h1", {}, layer.name), el("p.lead", {}, `${layer.kind}${of ? ` of ${of}` : ""}, ${c.many(layer.maps, "feature map")} of ${layer.shape[1]} × ${layer.shape[2]}`))),
      el("dl.facts.small", {},
        c.sees(layer),
        c.fact("One every", `${layer.stride[0]} px`),
        i >= 0 && table.kernel[i].length > 0 && c.fact("Kernel", table.kernel[i].join(" × "), inside),
        i >= 0 && c.fact("Parameters", c.large(table.parameters[i]), inside),
        i >= 0 && c.fact("Multiply-adds", c.large(table.multiply_adds[i]), inside),
        c.fact("Dead maps", c.count(layer.dead), layer.dead ? "never above 0 here" : null)));
  }

  /** By which rule, and what to beware of: projections that are the same for anything, grids. */
  function ruleWords(number, counted = true) {
    const layer = layers[number];
    const which = c.ruleOf(number);
    const rule = c.RULES[layer.rules[which]] || layer.rules[which];
    const why = which ? "the other rule; this layer's own is " + (c.RULES[layer.rules[0]] || layer.rules[0]) : layer.why;
    const alike = layer.alike[which];
    const grids = layer.grids[which];
    const living = layer.maps - layer.dead;
    return [
      el("p.rule", {}, `Projected by ${rule}${why ? `: ${why}` : ""}.`),
      counted && alike > 0 && el("p.notice", {},
        `In ${alike === living ? "all" : `${c.count(alike)} of`} ${c.many(living, "living map")} the projections look nearly the same whatever the picture: read nothing into their shapes.` +
        (which === 0 && layer.rules[0] === "deconvnet" && layer.rules.length < 2 ? " Guided backpropagation may show more: make the atlas with --rule both." : "")),
      grids.length > 0 && el("p.grids", {}, `Seen in the projections, not in the pictures: ${grids.join("; ")}.`),
    ].filter(Boolean);
  }

  function projectionWords(layer, number = layers.indexOf(layer)) {
    const guided = layer.rules[c.ruleOf(number)] === "guided";
    return c.honest(
      `The ${layer.k} patches that excite a map most, and what in each of them did, projected back to pixels: it explains one activation each, not the class.`,
      `On the left of a card stand the map's ${layer.k} strongest pictures, strongest first, row by row, one patch from each picture, cut at the receptive field; grey is outside the picture. On the right stand their projections in the same order. All projections of one map share one scale, so a weaker one looks fainter; maps are scaled apart.`,
      (guided
        ? "A projection (guided backpropagation, Springenberg et al. 2015) sends one activation back through the rectifiers that this picture opened, and only what is positive. "
        : "A projection (deconvnet, Zeiler and Fergus 2014) sends one activation back with this picture's pooling positions. ") +
      `${layer.rewritten} of ${layer.rectifiers} rectifiers on the way followed its rule; biases never enter. It partly retraces the picture's own edges whatever the map, shows no evidence against, and adds up to nothing: for why a class was chosen, use occlusion.`,
      `Activity is the share of the ${c.count(layer.seen)} pictures in which the map rises above 0 anywhere.`,
      c.made(layer.origin));
  }

  c.projectionWords = projectionWords;
  c.ruleWords = ruleWords;
  c.classesOf = classesOf;

  function card(number, map, numbers) {
    const layer = layers[number];
    const dead = numbers.active[map] === 0;
    const peak = numbers.value[map][0];
    const shown = c.drawn(number, numbers);
    const active = c.share(numbers.active[map], layer.seen);
    const meter = el("span.meter", { "aria-hidden": "true" });
    c.place(meter, { "--share": layer.seen ? numbers.active[map] / layer.seen : 0 });
    return el("li", {},
      el("a.card", { href: c.unitAddress(number, map), class: dead ? "card dead" : "card", "data-map": map },
        dead
          ? el("span.block.dead-block", {}, el("span", {}, `dead: never above 0 in ${c.many(layer.seen, "picture")}`))
          : c.block(number, map, "", `${c.words(number, map, numbers, 0)}, and its other strongest patches and projections`),
        el("span.caption", {},
          el("strong", {}, String(map)),
          !dead && el("span", {}, `peak ${c.value(peak)}`),
          el("span.active", {}, `${active} active`)),
        meter,
        shown.alike[map] > 0 && el("span.alike", { title: "The projections look nearly the same whatever the picture: this is their mean correlation" }, `alike ${shown.similarity[map].toFixed(2)}`)));
  }

  /** All cards get the height of the tallest of the first ones: nothing jumps, and what comes
   *  into view changes nothing around it, so that thousands scroll as easily as ten. */
  function measure(wall) {
    wall.classList.replace("measured", "measuring") || wall.classList.add("measuring");
    const heights = [...wall.children].slice(0, 12).map((li) => li.getBoundingClientRect().height);
    c.place(wall, { "--card-height": `${Math.ceil(Math.max(...heights, 1))}px` });
    wall.classList.replace("measuring", "measured");
  }

  c.measureWall = () => { const wall = document.querySelector(".wall"); if (wall) measure(wall); };
})();
