// What a better score of disentanglement costs: each score over the reconstruction, a point a run.

const TRADE_OFF = { height: 240, left: 50, right: 16, top: 12, bottom: 40 };

function tradeOffs(section) {
  const names = held.scores.filter(name => section.runs.filter(id => hasBoth(id, name)).length > 1);
  if (!names.length) return [];
  const boxes = names.map(name => {
    const box = element("div", { class: "plot trade-off" });
    drawnInto(box, width => [tradeOff(width, section, name)]);
    return element("figure", {}, element("figcaption", {}, element("b", {}, name), " higher is better"), box);
  });
  return [element("h3", {}, "Disentanglement and reconstruction"), element("div", { class: "charts" }, ...boxes)];
}

const COST = "test/reconstruction";
const hasBoth = (id, name) => [name, COST].every(key => typeof runs[id].known[key] === "number");

function tradeOff(width, section, name) {
  const { height, left, right, top, bottom } = TRADE_OFF;
  const ids = section.runs.filter(id => hasBoth(id, name));
  const [low, high] = range(ids.map(id => runs[id].known[COST]));
  const room = (high - low || 1) * 0.06;
  const best = Math.max(...ids.map(id => runs[id].known[name]));
  const toX = linear([low - room, high + room], [left, width - right]);
  const toY = linear([0, best * 1.1 || 1], [height - bottom, top]);
  const label = `${name} over ${COST}`;
  const made = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks(0, best * 1.1 || 1, 4)) {
    made.append(drawn("line", { class: "grid", x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }));
    made.append(drawn("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of ticks(low, high, 5))
    made.append(drawn("text", { x: toX(tick), y: height - bottom + 18, "text-anchor": "middle" }, number(tick)));
  made.append(drawn("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, COST));
  for (const id of ids.filter(isShown)) {
    const { known, results, label: says } = runs[id];
    const point = drawn("g", belonging([id], { class: "point" }));
    point.append(
      drawn("circle", { cx: toX(between(known[COST], low - room, high + room)), cy: toY(known[name]), r: 5 }),
      drawn("title", {}, `${says}: ${name} ${results[name]}, ${COST} ${results[COST]}`),
    );
    made.append(point);
  }
  return made;
}
