"use strict";
// How is a part of a larger picture shown, with words for those who do not see it?
(() => {
  const c = window.convscope;
  const { el, data } = c;

  /** A window onto one tile of a picture that is `columns` × `rows` tiles of side px.
   *  The window is half a source pixel smaller all around: smoothing never shows a neighbour. */
  function tile(src, alt, { columns, rows, column, row, side, width, height, wide = 1, high = 1 }) {
    const cut = 0.5;
    const w = wide * side - 2 * cut;
    const h = high * side - 2 * cut;
    const img = el("img", { src, alt, loading: "lazy", decoding: "async", draggable: "false" });
    c.place(img, {
      width: `${(100 * columns * side) / w}%`,
      height: `${(100 * rows * side) / h}%`,
      left: `${(-100 * (column * side + cut)) / w}%`,
      top: `${(-100 * (row * side + cut)) / h}%`,
    });
    const box = el("span.tile", {}, img);
    if (width) c.place(box, { "aspect-ratio": `${width} / ${height}` });
    return box;
  }

  /** By which rule a layer's projections are shown: its own (0), or the other one (1) if both were
   *  drawn and that was chosen. */
  const kept = { rule: "" };
  const ruleOf = (layer) => Math.max(0, c.layers[layer].rules.indexOf(kept.rule));
  const spriteOf = (layer, map) => `maps/${layer}/${map}${ruleOf(layer) ? "b" : ""}.webp`;
  /** What is known of the projections that are shown. */
  const drawn = (layer, numbers) => (ruleOf(layer) && numbers.beside) || numbers;
  const RULES = { deconvnet: "deconvnet", guided: "guided backpropagation", gradient: "gradient" };

  /** Buttons for the rule, where there are two; `changed` is called after a choice. */
  function ruleChoice(layer, changed) {
    const { rules } = c.layers[layer];
    if (rules.length < 2) return null;
    const options = rules.map((rule) => [rule, RULES[rule] || rule]);
    return c.choice("Projected by", options, rules[ruleOf(layer)], (rule) => { kept.rule = rule; changed(); });
  }

  function words(layer, map, numbers, place) {
    const at = numbers.picture[map][place];
    return `${c.layers[layer].name}:${map}, picture ${c.pictureName(at)}, ` +
      `activation ${c.value(numbers.value[map][place])}`;
  }

  /** One of a map's strongest: its patch (half 0) or its projection (half 1). */
  function oneOf(layer, map, numbers, place, half) {
    const l = c.layers[layer];
    const what = half ? "projection" : "patch";
    return tile(spriteOf(layer, map), `${words(layer, map, numbers, place)}, ${what}`, {
      columns: 2 * l.columns, rows: l.rows, side: l.tile,
      column: half * l.columns + (place % l.columns), row: Math.floor(place / l.columns),
    });
  }

  /** All of a map's strongest at once; `show` is both, patches or projections. */
  function block(layer, map, show, alt) {
    const l = c.layers[layer];
    const img = el("img", {
      src: spriteOf(layer, map), alt, loading: "lazy", decoding: "async", draggable: "false",
      width: 2 * l.columns * l.tile, height: l.rows * l.tile,
    });
    const node = el("span.block", { "data-show": show }, img);
    c.place(node, { "--columns": l.columns, "--rows": l.rows });
    return node;
  }

  /** A whole picture, small, with the given boxes drawn on it. */
  function thumb(at, alt, box) {
    const p = data.pictures;
    if (at < 0) return el("span.thumb.unknown", { role: "img", "aria-label": alt }, "?");
    const per = p.sheet * p.sheet;
    const place = at % per;
    const [height, width] = p.size; // a picture that is not square stands in the middle of its square
    const [high, wide] = [height / Math.max(height, width), width / Math.max(height, width)];
    const node = tile(`thumbs/${Math.floor(at / per)}.webp`, alt, {
      columns: p.sheet, rows: p.sheet, side: p.side, width, height, wide, high,
      column: (place % p.sheet) + (1 - wide) / 2, row: Math.floor(place / p.sheet) + (1 - high) / 2,
    });
    node.classList.add("thumb");
    if (box) node.append(frame(box, p.size));
    return node;
  }

  /** A box (top, left, bottom, right; half-open, may reach outside) over a picture of size. */
  function frame([top, left, bottom, right], [height, width]) {
    const clip = (v, most) => Math.min(Math.max(v, 0), most);
    const [t, b] = [clip(top, height), clip(bottom, height)];
    const [l, r] = [clip(left, width), clip(right, width)];
    const node = el("span.frame", { "aria-hidden": "true" });
    c.place(node, {
      left: `${(100 * l) / width}%`, top: `${(100 * t) / height}%`,
      width: `${(100 * (r - l)) / width}%`, height: `${(100 * (b - t)) / height}%`,
    });
    return node;
  }

  Object.assign(c, { tile, oneOf, block, thumb, frame, words, spriteOf, ruleOf, drawn, ruleChoice, RULES });
})();
