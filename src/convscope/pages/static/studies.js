"use strict";
// What did the paper's experiments find: each study's figures, numbers and what made them?
(() => {
  const c = window.convscope;
  const { el } = c;
  const studies = window.CONVSCOPE_STUDIES || [];
  const address = (at) => c.address("study", at);

  c.studies = studies;

  c.screens.study = (number) => {
    const at = number === undefined ? 0 : Number(number);
    const study = studies[at];
    if (!study) return c.missing("This atlas holds no such study.");
    return {
      title: study.title,
      up: "#/",
      sideways: (step) => studies[at + step] && address(at + step),
      nodes: [
        el("section.head", {}, el("h1", {}, study.title),
          el("p.lead", {}, study.shows || study.name),
          (study.limits || Object.keys(study.origin).length) &&
            c.honest(study.limits || "What made it", c.made(study.origin))),
        chooser(at),
        ...study.figures.map((name, i) => figure(study, name, i)),
        ...study.tables.map((rows, i) => table(study, rows, i)),
      ],
    };
  };

  function chooser(at) {
    if (studies.length < 2) return null;
    return el("nav.sibling-studies", { "aria-label": "Studies" }, studies.map((study, i) =>
      el("a", { href: address(i), "aria-current": i === at ? "page" : null },
        studies.filter((other) => other.title === study.title).length > 1 ? `${study.title}: ${study.name}` : study.title)));
  }

  function figure(study, name, number) {
    const source = `studies/${study.place}/${name}`;
    const which = study.figures.length > 1 ? `, figure ${number + 1} of ${study.figures.length}` : "";
    return el("figure.study", {},
      el("img", { src: source, loading: "lazy", alt: `${study.title}${which}; ${study.tables.length ? "its numbers are in the table below" : "it has no table"}` }));
  }

  function table(study, { caption, rows: [head, ...rows] }, number) {
    return el("div.scroller.study-numbers", { tabindex: 0, role: "region", "aria-label": `Numbers of ${study.title}, table ${number + 1}` },
      el("table", {}, caption && el("caption", {}, caption),
        el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows.map(([first, ...cells]) => el("tr", {}, el("th", { scope: "row" }, first), cells.map((cell) => el("td", {}, cell)))))));
  }
})();
