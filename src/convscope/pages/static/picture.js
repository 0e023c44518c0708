"use strict";
// Which feature maps does a picture, or a class, excite most?
(() => {
  const c = window.convscope;
  const { el, layers, data } = c;
  const MOST = 60;

  /** Every (layer, map, place) whose picture is chosen. */
  async function appearances(chosen) {
    const found = [];
    for (let layer = 0; layer < layers.length; layer++) {
      const numbers = await c.maps(layer);
      numbers.picture.forEach((row, map) => {
        const places = row.map((at, place) => [at, place]).filter(([at]) => at >= 0 && chosen(at)).map(([, place]) => place);
        if (places.length && numbers.active[map] > 0) found.push({ layer, map, places, numbers });
      });
    }
    return found;
  }

  c.screens.picture = async (number) => {
    const at = data.pictures.number.indexOf(Number(number));
    if (at < 0) return c.missing(`Picture ${number} is not among the strongest of any map here.`);
    const name = c.pictureName(at);
    const found = await appearances((p) => p === at);
    const kind = c.className(at);
    return {
      title: name,
      up: "#/",
      nodes: [
        el("section.head", {}, el("div.head-title.large", {},
          c.thumb(at, `picture ${name}, as the network saw it`),
          el("div", {}, el("h1.file-title", {}, name),
            el("p.lead", {}, kind !== null && [el("a", { href: c.address("class", data.pictures.label[at]) }, kind), " · "],
              `picture ${c.count(data.pictures.number[at])}, among the strongest of ${c.many(found.length, "feature map")}`)))),
        ...byLayer(found, (f) => `place ${f.places[0] + 1}, activation ${c.value(f.numbers.value[f.map][f.places[0]])}`,
          (a, b) => a.places[0] - b.places[0] || a.map - b.map),
      ],
    };
  };

  c.screens.class = async (index) => {
    const label = Number(index);
    const name = data.pictures.classes[label];
    if (name === undefined) return c.missing(`There is no class ${index} here.`);
    const found = (await appearances((p) => data.pictures.label[p] === label))
      .filter((f) => f.places.length * 2 > f.numbers.picture[f.map].length);
    return {
      title: name,
      up: "#/",
      nodes: [
        el("section.head", {}, el("h1", {}, name),
          el("p.lead", {}, `${c.many(found.length, "feature map")} with more than half of their strongest pictures from this class.`),
          c.honest("Such a map responds to something these pictures share.", "That may be the object, its background, or an accident of the data: look at the patches.")),
        ...byLayer(found, (f) => `${f.places.length} of ${f.numbers.picture[f.map].length} strongest`,
          (a, b) => b.places.length - a.places.length || a.map - b.map),
      ],
    };
  };

  function byLayer(found, words, order) {
    return layers.map((layer, number) => {
      const here = found.filter((f) => f.layer === number).sort(order);
      if (!here.length) return null;
      return el("section", {},
        el("h2", {}, layer.name, el("small", {}, here.length > MOST ? ` ${MOST} of ${c.many(here.length, "map")}` : ` ${c.many(here.length, "map")}`)),
        el("ol.wall", { "data-show": "both" }, here.slice(0, MOST).map((f) => el("li", {},
          el("a.card", { href: c.unitAddress(number, f.map) },
            c.block(number, f.map, "", `${layer.name}:${f.map}, its strongest patches beside their projections`),
            el("span.caption", {}, el("strong", {}, String(f.map)), el("span", {}, words(f))))))));
    }).filter(Boolean);
  }
})();
