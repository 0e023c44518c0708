"use strict";
// What is drawn over the picture: points with names, boxes, a box that is being made, the cross.
window.convscopeOverlay = (() => {
  const marks = window.convscopeMarks;
  const { data } = marks;
  const SVG = "http://www.w3.org/2000/svg";
  const over = document.getElementById("marks");
  const stage = document.getElementById("stage");
  const size = () => data.pictures[marks.at()].size;
  /** Of the picture's pixels, how many make one of the screen. */
  const stroke = () => size()[0] / Math.max(1, stage.clientWidth);

  function shape(tag, props, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    over.append(node);
  }

  /** Twice: a pale line below, so that it stands out from any picture. */
  function outlined(tag, props, colour, wide) {
    shape(tag, { ...props, fill: "none", stroke: "#fff", "stroke-width": (wide + 2) * stroke() });
    shape(tag, { ...props, fill: "none", stroke: colour, "stroke-width": wide * stroke() });
  }

  /** begun: a box's first corner, or null; cross: where keys or the mouse are, or null. */
  function draw(begun, cross) {
    const [width, height] = size();
    const unit = stroke();
    over.replaceChildren();
    over.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const { points, boxes } = marks.picture();
    for (const [left, top, right, bottom] of boxes)
      outlined("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "box" }, "#b25400", 2);
    if (begun && cross) {
      const [left, top, right, bottom] = marks.corners(begun, cross);
      outlined("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "begun" }, "#0b5cbf", 2);
    }
    points.forEach((point, at) => point && drawPoint(point, at, unit));
    if (cross && document.activeElement === stage) {
      const [x, y] = [cross.x + 0.5, cross.y + 0.5];
      const d = `M${x - 14 * unit} ${y}h${28 * unit}M${x} ${y - 14 * unit}v${28 * unit}`;
      outlined("path", { d, class: "cross" }, "#0b5cbf", 1.5);
    }
  }

  function drawPoint([x, y], at, unit) {
    const [cx, cy] = [x + 0.5, y + 0.5];
    outlined("circle", { cx, cy, r: 7 * unit, class: "point" }, data.colours[at], 2.5);
    shape("circle", { cx, cy, r: 1.5 * unit, fill: data.colours[at] });
    const flip = cx > size()[0] * 0.8;
    shape("text", {
      x: cx + (flip ? -12 : 12) * unit, y: cy + 4 * unit, "font-size": 13 * unit,
      "text-anchor": flip ? "end" : "start", "stroke-width": 3 * unit, class: "name letter",
    }, data.parts[at]);
  }

  return draw;
})();
