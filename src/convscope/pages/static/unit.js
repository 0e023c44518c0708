"use strict";
// What does one feature map see: its strongest pictures, large, with places and numbers?
(() => {
  const c = window.convscope;
  const { el, svg, layers, data } = c;
  const kept = { scale: "joint" };

  c.screens.unit = async (name, index) => {
    const number = c.layerNumber(name);
    const map = Number(index);
    if (number < 0 || !Number.isInteger(map) || map < 0 || map >= layers[number].maps)
      return c.missing(`There is no feature map ${name}:${index} in this atlas.`);
    const layer = layers[number];
    const numbers = await c.maps(number);
    const filled = numbers.picture[map].map((_, i) => i).filter((i) => numbers.value[map][i] !== null);
    const legend = el("div.scale");
    const wall = el("ol.nine");
    const [above, words] = [el("div.rule-words"), el("div.rule-words")];
    const draw = () => {
      const drawn = c.drawn(number, numbers);
      legend.replaceChildren(...scale(kept.scale, drawn.low[map], drawn.high[map]));
      wall.replaceChildren(...filled.map((place) => one(number, map, numbers, place)));
      above.replaceChildren(likeness(number, map, numbers));
      words.replaceChildren(...c.ruleWords(number, false), c.projectionWords(layer, number), filters(drawn, map));
      rescale(wall, kept.scale);
    };
    draw();
    return {
      title: `${layer.name}:${map}`,
      layer: number,
      up: c.address("layer", layer.name),
      previous: map > 0 ? c.unitAddress(number, map - 1) : null,
      next: map + 1 < layer.maps ? c.unitAddress(number, map + 1) : null,
      sideways: (step) => layers[number + step] &&
        c.unitAddress(number + step, Math.min(map, layers[number + step].maps - 1)),
      nodes: [
        head(number, map, numbers),
        numbers.active[map] === 0 && el("p.notice", {},
          `Dead: this map never rose above 0 in ${c.many(layer.seen, "picture")}. ` +
          (filled.length ? "What follows is only where it came nearest." : "There is nothing to show.")),
        filled.length > 0 && el("div.controls", {},
          c.choice("Projection scale", [["joint", "one for all"], ["own", "each its own"]], kept.scale, (key) => {
            kept.scale = key;
            draw();
          }),
          c.ruleChoice(number, draw),
          legend),
        above,
        wall,
        words,
      ],
    };
  };

  function head(number, map, numbers) {
    const layer = layers[number];
    const top = numbers.value[map].filter((v) => v !== null);
    const classes = c.classesOf(numbers, map);
    const rank = 1 + numbers.value.filter((v) => v[0] > numbers.value[map][0]).length;
    return el("section.head", {},
      el("div.head-title", {}, c.eye(layer),
        el("div", {}, el("h1", {}, el("a", { href: c.address("layer", layer.name) }, layer.name), `:${map}`),
          el("p.lead", {}, `feature map ${c.count(map)} of ${c.count(layer.maps)} (counted from 0) in ${layer.name}`)),
        el("div.steps", {},
          step(map > 0 && c.unitAddress(number, map - 1), "‹", "Previous feature map"),
          step(map + 1 < layer.maps && c.unitAddress(number, map + 1), "›", "Next feature map"),
          el("button", { type: "button", click: c.copyLink }, "Copy link"))),
      el("dl.facts.small", {},
        top.length > 0 && c.fact("Peak activation", c.value(top[0]), `place ${c.count(rank)} of ${c.count(layer.maps)} in the layer`),
        top.length > 1 && c.fact(`Weakest of the ${top.length}`, c.value(top[top.length - 1]), "activation"),
        c.fact("Active in", c.share(numbers.active[map], layer.seen), `${c.count(numbers.active[map])} of ${c.many(layer.seen, "picture")}`),
        c.sees(layer),
        classes.length > 0 && c.fact(`Classes of the ${top.length}`, el("span.classes", {}, classes.slice(0, 3).map(([k, n]) =>
          el("a", { href: c.address("class", data.pictures.classes.indexOf(k)) }, `${k} ${n}`))),
        classes.length > 3 ? `and ${classes.length - 3} more` : null),
        numbers.invalid[map] > 0 && c.fact("Not a number in", c.many(numbers.invalid[map], "picture"))));
  }

  const step = (href, text, label) => href
    ? el("a.button", { href, "aria-label": label, title: label }, text)
    : el("span.button.off", { "aria-hidden": "true" }, text);

  function one(number, map, numbers, place) {
    const at = numbers.picture[map][place];
    const words = c.words(number, map, numbers, place);
    const name = c.pictureName(at);
    const kind = c.className(at);
    const box = numbers.box[map][place];
    return el("li.one", {}, el("figure", {},
      el("div.trio", {},
        c.oneOf(number, map, numbers, place, 0),
        named(c.oneOf(number, map, numbers, place, 1), map, place),
        el("div.where", {}, c.thumb(at, `${words}, the place on the whole picture: ${placeWords(box)}`, box))),
      el("figcaption", {},
        el("strong", {}, c.value(numbers.value[map][place])),
        el("span.file", { title: name }, at >= 0 ? el("a", { href: c.address("picture", data.pictures.number[at]) }, name) : name),
        el("span.more", {}, [kind, `neuron ${numbers.row[map][place]}, ${numbers.column[map][place]}`].filter(Boolean).join(" · ")))));
  }

  function named(node, map, place) {
    node.dataset.place = place;
    return node;
  }

  function placeWords([top, left, bottom, right]) {
    const [height, width] = data.pictures.size;
    if (top <= 0 && left <= 0 && bottom >= height && right >= width) return "all of it";
    return `rows ${Math.max(0, top)} to ${Math.min(height, bottom) - 1}, columns ${Math.max(0, left)} to ${Math.min(width, right) - 1} px`;
  }

  /** Grey to value: what the darkest and the lightest projection pixel stand for. */
  function scale(key, low, high) {
    if (key === "own") return [el("span.scale-note", {}, "each from its own darkest to its own lightest: compare shapes, not strengths; the weakest show how coarsely they are stored")];
    const zero = low < 0 && high > 0 ? (100 * -low) / (high - low) : null;
    const bar = el("span.grey-bar", { role: "img", "aria-label": `grey scale from ${c.value(low)} to ${c.value(high)}` });
    if (zero !== null) {
      const notch = el("span.zero", {}, "0");
      c.place(notch, { left: `${zero}%` });
      bar.append(notch);
    }
    return [el("span", {}, c.value(low)), bar, el("span", {}, c.value(high)),
      el("span.scale-note", {}, "projected, in units of the network's input; black and white are where the one scale of all of these ends: the strongest 0.5 % lie beyond")];
  }

  /** Exact linear stretches of single projections, done by the browser when asked for. */
  function filters(drawn, map) {
    return svg("svg.filters", { "aria-hidden": "true", width: 0, height: 0 },
      drawn.darkest[map].map((dark, place) => {
        const span = Math.max(1, drawn.lightest[map][place] - dark) / 255;
        const line = { type: "linear", slope: 1 / span, intercept: -dark / 255 / span };
        return svg("filter", { id: `own-${place}`, "color-interpolation-filters": "sRGB" },
          svg("feComponentTransfer", {}, ["R", "G", "B"].map((k) => svg(`feFunc${k}`, line))));
      }));
  }

  function rescale(wall, key) {
    for (const node of wall.querySelectorAll("[data-place]"))
      node.firstChild.style.filter = key === "own" ? `url(#own-${node.dataset.place})` : "";
  }

  /** How much the projections depend on their pictures, in a number and a sentence. */
  function likeness(number, map, numbers) {
    const drawn = c.drawn(number, numbers);
    const [mine, patches] = [drawn.similarity[map], numbers.patch_similarity[map]];
    if (mine === null) return "";
    const said = `Mean correlation among these projections ${mine.toFixed(2)}${patches === null ? "" : `, among their patches ${patches.toFixed(2)}`}`;
    if (drawn.alike[map]) return el("p.notice", {}, `${said}: they would look nearly the same for any picture, so read nothing into their shapes.`);
    return el("p.rule", {}, `${said}${layers[number].rectifiers ? ": the lower, the more they depend on their pictures." : ": below all rectifiers a projection is the filter itself."}`);
  }
})();
