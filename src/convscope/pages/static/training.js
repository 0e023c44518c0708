"use strict";
// How did training go: loss and accuracy by epoch?
(() => {
  const c = window.convscope;
  const { el, data } = c;

  c.screens.training = () => {
    const t = data.training;
    if (!t) return c.missing("This atlas holds no record of a training run.");
    const column = (name) => {
      const at = t.columns.indexOf(name);
      return at < 0 ? null : t.values.map((row) => row[at]);
    };
    const best = bestEpoch(column("val_accuracy"), (a, b) => a > b);
    return {
      title: "Training",
      up: "#/",
      nodes: [
        el("section.head", {}, el("h1", {}, "Training"),
          el("p.lead", {}, `${c.many(t.epochs.length, "epoch")}; one point is one epoch.`),
          c.honest("Training curves show fitting, validation curves show what carries over to pictures never seen; neither shows what was learnt.",
            "Training values are averages while the weights still change and with the pictures randomly cropped, validation values are taken after the epoch on whole crops: the two are not measured in quite the same way.", c.made(t.origin))),
        el("div.charts", {},
          plot("Loss", "cross-entropy, nats", column, t.epochs, "loss", { from: 0 }),
          plot("Accuracy", "share of pictures with the right class first", column, t.epochs, "accuracy", { best, limit: 1, format: (v) => v === null ? "none" : `${Number((100 * v).toPrecision(3))} %` }),
          others(t, column)),
        table(t),
      ],
    };
  };

  function plot(title, unit, column, epochs, quantity, more) {
    const lines = [["validation", `val_${quantity}`, 0], ["training", `train_${quantity}`, 1]]
      .map(([name, key, kind]) => ({ name, values: column(key), kind })).filter((line) => line.values);
    return lines.length ? c.chart({ title, unit, epochs, lines, ...more }) : null;
  }

  function others(t, column) {
    const rate = column("learning_rate");
    return rate && c.chart({ title: "Learning rate", unit: "step size of the optimiser", epochs: t.epochs, lines: [{ name: "learning rate", values: rate, kind: 0 }], from: 0 });
  }

  function bestEpoch(values, better) {
    if (!values) return undefined;
    return values.reduce((best, v, i) => (v !== null && (values[best] === null || better(v, values[best])) ? i : best), 0);
  }

  const UNITS = { accuracy: "%", loss: "nats" };

  function table(t) {
    const unit = (name) => Object.entries(UNITS).find(([key]) => name.includes(key))?.[1];
    const cell = (name, v) => (name.includes("accuracy") && v !== null ? (100 * v).toFixed(1) : c.value(v));
    return el("details.numbers", {}, el("summary", {}, "All numbers as a table"),
      el("div.scroller", { tabindex: 0, role: "region", "aria-label": "Numbers of the training run" },
        el("table", {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "epoch"),
            t.columns.map((name) => el("th", { scope: "col" }, name.replaceAll("_", " "), unit(name) && el("small", {}, ` ${unit(name)}`))))),
          el("tbody", {}, t.epochs.map((epoch, i) => el("tr", {}, el("th", { scope: "row" }, String(epoch)),
            t.columns.map((name, j) => el("td", {}, cell(name, t.values[i][j])))))))));
  }
})();
