"use strict";
// What is marked: points and boxes by picture, every change undone in turn, kept over a reload.
// Names of pictures and parts are data: they are never keys of an object here, and never markup.
window.convscopeMarks = (() => {
  const data = window.MARKING;
  const place = `convscope-mark-${data.key}`;
  const past = [];
  let state = restored() || {
    at: 0,
    pictures: data.pictures.map(({ points, boxes }) => ({ points, boxes, skipped: false })),
  };
  let kept = true;

  /** What this browser kept of the same page; null if nothing, or if it is of another shape. */
  function restored() {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      const fits = found.pictures.length === data.pictures.length
        && found.pictures.every((p) => p.points.length === data.parts.length && Array.isArray(p.boxes));
      return fits ? found : null;
    } catch {
      return null;
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
      kept = true;
    } catch {
      kept = false;
    }
  }

  const picture = (at = state.at) => state.pictures[at];

  /** Change what is marked in the picture; what it was before can be had again. */
  function change(how) {
    past.push({ at: state.at, before: JSON.stringify(picture()) });
    how(picture());
    keep();
  }

  function undo() {
    const last = past.pop();
    if (!last) return false;
    state.at = last.at;
    state.pictures[last.at] = JSON.parse(last.before);
    keep();
    return true;
  }

  function go(at) {
    state.at = Math.min(Math.max(at, 0), data.pictures.length - 1);
    keep();
  }

  /** done, partly, skipped or nothing: without parts a picture with a box is done. */
  function progress(at) {
    const one = picture(at);
    if (one.skipped) return "skipped";
    const set = one.points.filter(Boolean).length;
    if (!data.parts.length) return one.boxes.length ? "done" : "nothing";
    if (set === data.parts.length) return "done";
    return set || one.boxes.length ? "partly" : "nothing";
  }

  const count = (kind) => state.pictures.filter((_, at) => progress(at) === kind).length;

  /** An object as JSON from [name, JSON] pairs, whatever the names are. */
  const object = (pairs, gap) =>
    `{${pairs.map(([name, json]) => `${gap}${JSON.stringify(name)}: ${json}`).join(",")}${gap.replace(/ +$/, "")}}`;

  const usable = () => state.pictures.map((one, at) => [one, data.pictures[at]]).filter(([one]) => !one.skipped);

  /** Pictures with all their parts, as `convscope correspondence` reads them. */
  function partsFile() {
    const whole = usable().filter(([one]) => one.points.every(Boolean));
    const images = whole.map(([one, { name }]) => [
      name,
      object(one.points.map((point, part) => [data.parts[part], JSON.stringify(point)]), "\n   "),
    ]);
    const about = "Centres [x, y] of parts in the pictures' own pixels, marked by hand with convscope mark.";
    return object([["about", JSON.stringify(about)], ["images", object(images, "\n  ")]], "\n ") + "\n";
  }

  /** Pictures with boxes: [left, top, right, bottom], right and bottom just outside. */
  function boxesFile() {
    const some = usable().filter(([one]) => one.boxes.length);
    return object(some.map(([one, { name }]) => [name, JSON.stringify(one.boxes)]), "\n ") + "\n";
  }

  /** Left, top, right and bottom of the box with these two pixels in its corners. */
  const corners = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x) + 1, Math.max(a.y, b.y) + 1];

  return {
    data, corners, picture, change, undo, go, progress, count, partsFile, boxesFile,
    at: () => state.at, kept: () => kept, keep,
  };
})();
