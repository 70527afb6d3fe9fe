// Results over two swept keys as a heat map, and over three as one for each value of the third.

const MAPPED = ["test/reconstruction", "test/kl", "objective", "test/active_units"];
const MAX_VALUES = 14; // of a key, or its cells have no room for their numbers

function heatMaps(section) {
  const { axes } = section;
  const ids = onPath(scored(section));
  if (axes.length < 2 || axes.length > 3 || axes.some(axis => axis.texts.length > MAX_VALUES)) return [];
  const cells = axes.reduce((product, axis) => product * axis.texts.length, 1);
  const filledCells = new Set(ids.map(id => settingOf(section, id))).size;
  if (2 * filledCells < cells || filledCells < 3) return []; // a search, whose points lie on no grid
  // The key with the fewest values makes the multiples.
  const fewest = [...axes].sort((a, b) => a.texts.length - b.texts.length)[0];
  const third = axes.length === 3 ? fewest : null;
  const [x, y] = axes.filter(axis => axis !== third);
  const results = [section.metric, ...MAPPED].filter(name => ids.every(id => typeof resultOf(section, id, name) === "number"));
  let result = section.metric;
  const box = element("div", { class: "heat-maps" });
  const draw = () => {
    const shown = ids.filter(isShown);
    const facets = third ? third.texts : [null];
    return facets.map(facet => {
      const members = third ? shown.filter(id => valueOn(third, id) === facet) : shown;
      const title = third && `${third.key} ${facet}`;
      return element("div", { class: "scroll" }, heatMap(section, x, y, members, title, result));
    });
  };
  drawInto(box, draw);
  const choose = chosen => {
    result = results[chosen];
    box.replaceChildren(...draw());
  };
  const heading = element("h3", {}, `Results over ${axes.map(axis => axis.key).join(", ")}`);
  return [heading, results.length > 1 ? choice("Result", results, choose) : element("p", {}, section.metric), box];
}

// A run's result by its name; what it minimised, reconstruction + beta KL, is the objective.
const resultOf = (section, id, name) => (name === section.metric ? runs[id].score : runs[id].known[name]);

function heatMap(section, x, y, ids, title, result) {
  const scale = scaleOfCells(section, result);
  const across = x.texts.map(text => element("th", { scope: "col" }, text));
  const corner = element("th", { class: "corner" }, breakable(y.key));
  const rows = [...y.texts].reverse().map(row => {
    const cells = x.texts.map(column => {
      const members = ids.filter(id => valueOn(x, id) === column && valueOn(y, id) === row);
      return members.length ? cellOf(members, scale) : element("td", { class: "empty" });
    });
    return element("tr", {}, element("th", { scope: "row" }, row), cells);
  });
  const key = element("th", { colspan: x.texts.length, class: "key" }, x.key);
  return element(
    "table",
    { class: "heat-map" },
    title && element("caption", {}, title),
    element("tbody", {}, rows),
    element("tfoot", {}, element("tr", {}, corner, across), element("tr", {}, element("td"), key)),
  );
}

// One scale of colors for all maps of a section, that of the means in their cells, and the best of these.
function scaleOfCells(section, result) {
  const bySetting = new Map();
  for (const id of onPath(scored(section))) {
    const setting = settingOf(section, id);
    bySetting.set(setting, [...(bySetting.get(setting) ?? []), id]);
  }
  const cells = [...bySetting.values()];
  const finished = cells.filter(ids => ids.every(id => runs[id].state === "finished"));
  const of = id => resultOf(section, id, result);
  const mean = ids => ids.reduce((sum, id) => sum + of(id), 0) / ids.length;
  const sign = result === section.metric ? section.sign : 1;
  const best = result === section.metric ? sign * Math.min(...finished.map(ids => sign * mean(ids))) : null;
  const digits = value => (result === "test/active_units" ? 1 : Math.abs(value) < 10 ? 3 : 2);
  return { part: from0(partIn(range(cells.map(mean), sign)), sign), best, of, mean, digits, sign };
}

function cellOf(ids, scale) {
  const { of } = scale;
  const value = scale.mean(ids);
  const color = shade(scale.part(value));
  const deviation = Math.sqrt(ids.reduce((sum, id) => sum + (of(id) - value) ** 2, 0) / (ids.length - 1));
  const ranked = [...ids].sort((a, b) => scale.sign * (of(a) - of(b)));
  const spread = ids.length > 1 ? `± ${number(Number(deviation.toPrecision(2)))}` : null;
  const states = new Set(ids.map(id => runs[id].state).filter(state => !state.endsWith("finished")));
  const note = [spread, ...states, value === scale.best && "best"].filter(Boolean).join(" ");
  const title = ranked.map(id => `${runs[id].label}: ${number(of(id))}`).join("\n");
  return element(
    "td",
    { "data-runs": ranked.join(" "), title, style: `background: ${color}; color: ${inkOn(color)}` },
    element("div", {}, value.toFixed(scale.digits(value))),
    note !== "" && element("small", {}, note),
  );
}
