"use strict";
// How do quantities change over epochs: lines with axes, units, and names at their ends?
(() => {
  const c = window.convscope;
  const { el, svg } = c;
  const MARKS = ["circle", "square"];

  /** Round steps that cover low…high in about n pieces. */
  function ticks(low, high, n) {
    const raw = (high - low || 1) / n;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= raw) * power;
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step)
      found.push(Number(v.toPrecision(12)));
    return found;
  }

  /** The axis from the step below low to the step above high, but not past `limit`. */
  function reach(low, high, n, limit = Infinity) {
    const steps = ticks(low, high, n);
    const step = steps.length > 1 ? steps[1] - steps[0] : high - low || 1;
    return [Math.floor(low / step + 1e-9) * step, Math.min(limit, Math.ceil(high / step - 1e-9) * step)];
  }

  /** A figure with one set of axes.
   *  lines: [{name, values, kind}] where kind 0 is filled round marks, 1 hollow square ones. */
  function chart({ title, unit, epochs, lines, from, best, limit, format = c.value }) {
    const holder = el("div.plot");
    const readout = el("p.readout", { "aria-live": "off" });
    const figure = el("figure.chart", {},
      el("figcaption", {}, el("strong", {}, title), el("span", {}, unit)),
      legend(lines), holder, readout);
    let width = 0;
    new ResizeObserver(() => {
      const now = Math.round(holder.clientWidth);
      if (now && now !== width) draw(holder, (width = now), { title, epochs, lines, from, best, limit, format, readout });
    }).observe(holder);
    return figure;
  }

  function legend(lines) {
    return el("ul.legend", {}, lines.map((line) =>
      el("li", {}, svg("svg", { width: 34, height: 12, "aria-hidden": "true", class: `kind${line.kind}` },
        svg("path.line", { d: "M0 6H34" }), mark(line.kind, 17, 6)), line.name)));
  }

  const mark = (kind, x, y) => MARKS[kind] === "circle"
    ? svg("circle.mark", { cx: x, cy: y, r: 3.2 })
    : svg("rect.mark", { x: x - 3, y: y - 3, width: 6, height: 6 });

  function draw(holder, width, { title, epochs, lines, from, best, limit, format, readout }) {
    const height = Math.round(Math.min(340, Math.max(200, width * 0.5)));
    const pad = { left: 62, right: 14, top: 24, bottom: 42 };
    const all = lines.flatMap((line) => line.values).filter((v) => v !== null);
    const [low, top] = reach(from ?? Math.min(...all), Math.max(...all), 5, limit);
    const [first, last] = [epochs[0], epochs[epochs.length - 1]];
    const x = (e) => pad.left + ((e - first) / (last - first || 1)) * (width - pad.left - pad.right);
    const y = (v) => height - pad.bottom - ((v - low) / (top - low || 1)) * (height - pad.top - pad.bottom);
    const picture = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words(title, epochs, lines, format),
    });
    axes(picture, { x, y, low, top, first, last, width, height, pad, format });
    if (best !== undefined) {
      const at = x(epochs[best]);
      picture.append(
        svg("path.best", { d: `M${at} ${pad.top - 4}V${height - pad.bottom}` }),
        svg("text.note", { x: at + 4, y: pad.top - 9, "text-anchor": at > width / 2 ? "end" : "start" }, `best: epoch ${epochs[best]}`));
    }
    for (const line of lines) picture.append(drawn(line, epochs, x, y));
    picture.append(pointer(picture, { epochs, lines, x, pad, height, format, readout }));
    holder.replaceChildren(picture);
  }

  function axes(picture, { x, y, low, top, first, last, width, height, pad, format }) {
    for (const v of ticks(low, top, 5))
      picture.append(
        svg("path.grid", { d: `M${pad.left} ${y(v)}H${width - pad.right}` }),
        svg("text.tick", { x: pad.left - 8, y: y(v) + 4, "text-anchor": "end" }, format(v)));
    const steps = ticks(first, last, Math.max(2, Math.min(10, Math.floor(width / 70))));
    if (steps.length > 1 && steps[0] - first > (steps[1] - steps[0]) / 2) steps.unshift(first);
    for (const e of new Set(steps.map(Math.round)))
      if (e >= first && e <= last)
        picture.append(
          svg("path.tickmark", { d: `M${x(e)} ${height - pad.bottom}v5` }),
          svg("text.tick", { x: x(e), y: height - pad.bottom + 19, "text-anchor": "middle" }, c.count(e)));
    picture.append(
      svg("path.axis", { d: `M${pad.left} ${height - pad.bottom}H${width - pad.right}` }),
      svg("text.tick", { x: (pad.left + width - pad.right) / 2, y: height - 4, "text-anchor": "middle" }, "epoch"));
  }

  function drawn(line, epochs, x, y) {
    const points = epochs.map((e, i) => [x(e), line.values[i]]).filter(([, v]) => v !== null).map(([a, v]) => [a, y(v)]);
    const path = points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
    const every = Math.max(1, Math.ceil(points.length / 12));
    const marks = points.filter((_, i) => (points.length - 1 - i) % every === 0).map(([a, b]) => mark(line.kind, a, b));
    return svg("g", { class: `kind${line.kind}` }, svg("path.line", { d: path }), marks);
  }

  /** A vertical line that follows the pointer and reads the values off. */
  function pointer(picture, { epochs, lines, x, pad, height, format, readout }) {
    const rule = svg("path.rule", { d: "" });
    const read = (i, ruled) => {
      rule.setAttribute("d", ruled ? `M${x(epochs[i])} ${pad.top}V${height - pad.bottom}` : "");
      readout.textContent = `epoch ${epochs[i]}: ` +
        lines.map((line) => `${line.name} ${format(line.values[i])}`).join(", ");
    };
    picture.addEventListener("pointermove", (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left;
      const gaps = epochs.map((e) => Math.abs(x(e) - at));
      read(gaps.indexOf(Math.min(...gaps)), true);
    });
    picture.addEventListener("pointerleave", () => read(epochs.length - 1, false));
    read(epochs.length - 1, false);
    return rule;
  }

  function words(title, epochs, lines, format) {
    const n = epochs.length - 1;
    return `${title} over ${epochs.length} epochs. ` + lines.map((line) =>
      `${line.name}: from ${format(line.values[0])} at epoch ${epochs[0]} to ${format(line.values[n])} at epoch ${epochs[n]}`).join(". ");
  }

  c.chart = chart;
})();
