"use strict";
// Where is a layer, feature map, class or picture of this name; and which keys are there?
(() => {
  const c = window.convscope;
  const { el, data, layers } = c;
  const MOST = 40;
  const KEYS = [
    ["← →", "previous and next feature map; on a layer, from card to card"],
    ["↑ ↓", "on a layer, from row to row; on occlusion, the square"],
    ["[ ]", "previous and next layer"],
    ["/", "find a layer, feature map, class or picture"],
    ["c", "copy the link to this screen"],
    ["Esc", "up: from feature map to layer, from layer to network"],
    ["?", "these keys"],
  ];

  /** At most MOST of [kind, name, address], nearest kind first. */
  function search(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return layers.map((l) => ["layer", l.name, c.address("layer", l.name)]);
    const has = (name) => name.toLowerCase().includes(wanted);
    return [
      ...units(wanted),
      ...layers.filter((l) => has(l.name) || has(c.convolutionOf(l))).map((l) => ["layer", l.name, c.address("layer", l.name)]),
      ...c.studies.filter((s) => has(s.title) || has(s.name)).map((s) => ["study", s.title, c.address("study", c.studies.indexOf(s))]),
      ...data.pictures.classes.map((n, i) => [n, i]).filter(([n]) => has(n)).map(([n, i]) => ["class", n, c.address("class", i)]),
      ...data.pictures.name.map((n, i) => [n, i]).filter(([n]) => has(n)).map(([n, i]) => ["picture", n, c.address("picture", data.pictures.number[i])]),
    ].slice(0, MOST);
  }

  /** `conv5:41`, `conv5 41` and `conv5/41` name a feature map. */
  function units(wanted) {
    const parts = wanted.match(/^(.*?)[\s:/]+(\d+)$/);
    if (!parts) return [];
    const map = Number(parts[2]);
    return layers.map((l, i) => [l, i])
      .filter(([l]) => (l.name.toLowerCase().includes(parts[1]) || c.convolutionOf(l).toLowerCase().includes(parts[1])) && map < l.maps)
      .map(([l, i]) => ["feature map", `${l.name}:${map}`, c.unitAddress(i, map)]);
  }

  c.openFind = () => {
    const dialog = document.getElementById("find");
    const list = el("ol", { id: "found", role: "listbox", "aria-label": "Found" });
    let at = 0;
    const mark = (to) => {
      const items = [...list.children];
      at = Math.min(Math.max(to, 0), Math.max(0, items.length - 1));
      items.forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
      if (items[at]) {
        items[at].scrollIntoView({ block: "nearest" });
        input.setAttribute("aria-activedescendant", items[at].id);
      }
    };
    const draw = () => {
      const found = search(input.value);
      list.replaceChildren(...found.map(([kind, name, href], i) => el("li", { id: `found-${i}`, role: "option" },
        el("a", { href, tabindex: -1, click: () => dialog.close() }, el("span", {}, name), el("small", {}, kind)))));
      if (!found.length) list.replaceChildren(el("li.none", {}, `Nothing here is called ${input.value}.`));
      mark(0);
    };
    const input = el("input", {
      type: "search", placeholder: "Layer, conv5:41, class or file", autocomplete: "off", spellcheck: "false",
      role: "combobox", "aria-expanded": "true", "aria-controls": "found", "aria-label": "Find", input: draw,
      keydown: (event) => {
        if (event.key === "ArrowDown") mark(at + 1);
        else if (event.key === "ArrowUp") mark(at - 1);
        else if (event.key === "Enter") list.children[at]?.querySelector("a")?.click();
        else return;
        event.preventDefault();
      },
    });
    dialog.replaceChildren(el("div.find-head", {}, input, el("button", { type: "button", click: () => dialog.close() }, "Esc")), list);
    draw();
    dialog.showModal();
    input.focus();
  };

  c.openKeys = () => {
    const dialog = document.getElementById("keys");
    dialog.replaceChildren(el("h2", {}, "Keys"),
      el("dl", {}, KEYS.map(([keys, text]) => [el("dt", {}, keys.split(" ").map((k) => el("kbd", {}, k))), el("dd", {}, text)])),
      el("button", { type: "button", click: () => dialog.close() }, "Close"));
    dialog.showModal();
  };
})();
