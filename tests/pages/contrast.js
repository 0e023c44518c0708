// Which texts on the page stand out too little (WCAG AA: 4.5 to 1) from the ground behind them?
() => {
  const parse = (c) => {
    const v = c.match(/[\d.]+/g).map(Number);
    return v.length > 3 ? v : [...v, 1];
  };
  const ground = (node) => {
    while (node && parse(getComputedStyle(node).backgroundColor)[3] < 1) node = node.parentElement;
    return parse(getComputedStyle(node || document.documentElement).backgroundColor);
  };
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const elsewhere = ".letter, .swatch, .off, .skip, .said, noscript"; // on pictures, or not shown
  const faint = [];
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility({ visibilityProperty: true }) || node.closest(elsewhere)) continue;
    const style = getComputedStyle(node);
    const pair = [parse(node.closest("svg") ? style.fill : style.color), ground(node)].map(light);
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    looked += 1;
    if (ratio < 4.5) faint.push([text.slice(0, 30), Number(ratio.toFixed(2))]);
  }
  return { looked, faint };
}
