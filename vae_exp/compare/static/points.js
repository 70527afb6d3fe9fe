// Results as points, one a run: over the one key that was swept, and scores of disentanglement over what they cost.

const OVER_KEY = { height: 260, left: 56, right: 24, top: 12, bottom: 40 };
const TRADE_OFF = { height: 240, left: 50, right: 16, top: 12, bottom: 40 };
const COST = "test/reconstruction";

const xText = (plot, x, text) => svg("text", { x, y: plot.height - plot.bottom + 18, "text-anchor": "middle" }, text);

function overKey(section) {
  const ids = scored(section);
  if (section.axes.length !== 1 || ids.length < 2) return [];
  const box = element("div", { class: "plot over-key" });
  drawInto(box, width => [overKeyAt(width, section, ids.filter(isShown))]);
  return [element("h3", {}, `${section.metric} over ${section.axes[0].key}`), box];
}

// With a bar of one standard deviation where seeds were folded.
function overKeyAt(width, section, ids) {
  const { height, left, right, top, bottom } = OVER_KEY;
  const [axis] = section.axes;
  const positions = axisPositions(axis);
  const toX = linear([0, 1], [left + 20, width - right - 20]);
  const [low, high] = scoreRange(section);
  const room = (high - low || 1) * 0.12;
  const title = `${section.metric} over ${axis.key}`;
  const { made, toY } = plane(width, OVER_KEY, title, [low - room, high + room], 5, axis.key);
  let last = -Infinity;
  for (const text of axis.texts) {
    const x = toX(positions.get(text));
    if (x - last < 8 * Math.min(text.length, 14) + 6) continue; // there is no room for its letters
    last = x;
    made.append(xText(OVER_KEY, x, shortened(text)));
  }
  for (const id of ids) {
    const run = runs[id];
    const x = toX(positions.get(valueOn(axis, id)));
    const off = run.score > high ? " (above the axis)" : run.score < low ? " (below the axis)" : "";
    const point = svg("g", belonging([id], { class: "point" }));
    const [up, down] = [run.score + run.spread, run.score - run.spread].map(toY);
    if (run.spread && !off)
      point.append(svg("line", { x1: x, x2: x, y1: Math.max(top, up), y2: Math.min(height - bottom, down) }));
    point.append(
      svg("circle", { cx: x, cy: toY(between(run.score, low, high)), r: 5 }),
      svg("title", {}, `${run.label}: ${run.results[section.metric]}${off}`),
    );
    made.append(point);
  }
  return made;
}

function tradeOffs(section) {
  const names = data.scores.filter(name => section.runs.filter(id => hasBoth(id, name)).length > 1);
  if (!names.length) return [];
  const boxes = names.map(name => {
    const box = element("div", { class: "plot trade-off" });
    drawInto(box, width => [tradeOff(width, section, name)]);
    return element("figure", {}, element("figcaption", {}, element("b", {}, name), " higher is better"), box);
  });
  return [element("h3", {}, "Disentanglement and reconstruction"), element("div", { class: "charts" }, boxes)];
}

const hasBoth = (id, name) => [name, COST].every(key => typeof runs[id].known[key] === "number");

function tradeOff(width, section, name) {
  const ids = section.runs.filter(id => hasBoth(id, name));
  const [low, high] = range(ids.map(id => runs[id].known[COST]));
  const room = (high - low || 1) * 0.06;
  const best = Math.max(...ids.map(id => runs[id].known[name]));
  const toX = linear([low - room, high + room], [TRADE_OFF.left, width - TRADE_OFF.right]);
  const { made, toY } = plane(width, TRADE_OFF, `${name} over ${COST}`, [0, best * 1.1 || 1], 4, COST);
  for (const tick of ticks(low, high, 5)) made.append(xText(TRADE_OFF, toX(tick), number(tick)));
  for (const id of ids.filter(isShown)) {
    const { known, results, label } = runs[id];
    const x = toX(between(known[COST], low - room, high + room));
    const circle = svg("circle", { cx: x, cy: toY(known[name]), r: 5 });
    const title = svg("title", {}, `${label}: ${name} ${results[name]}, ${COST} ${results[COST]}`);
    made.append(svg("g", belonging([id], { class: "point" }), circle, title));
  }
  return made;
}

// What a code says over what it leaves of the image: a curve for each z_dim where something trades one for the other.
const RATE = "test/kl";

function rateDistortion(section) {
  const along = section.axes.find(axis => data.trading.some(key => axis.key.startsWith(key)) && axis.numbers);
  const curve = section.axes.find(axis => axis.key === data.z_dim);
  const ids = onPath(scored(section)).filter(id => hasBoth(id, RATE));
  const others = section.axes.filter(axis => axis !== along);
  const lines = new Map();
  for (const id of ids) {
    const name = others.map(axis => valueOn(axis, id)).join("\n");
    lines.set(name, [...(lines.get(name) ?? []), id]);
  }
  const curves = [...lines.values()].filter(members => members.length > 1); // a point alone trades nothing
  if (!along || !curve || ids.length < 3 || !curves.length) return [];
  const box = element("div", { class: "plot rate-distortion" });
  drawInto(box, width => [rateDistortionAt(width, curves, along, curve)]);
  return [element("h3", {}, `Rate and distortion, a curve for each ${data.z_dim}`), box];
}

function rateDistortionAt(width, curves, along, curve) {
  const ids = curves.flat();
  const at = (id, key) => runs[id].known[key];
  const [xs, ys] = [RATE, COST].map(key => range(ids.map(id => at(id, key))));
  const room = (ys[1] - ys[0] || 1) * 0.08;
  const toX = linear([xs[0], xs[1]], [TRADE_OFF.left + 10, width - TRADE_OFF.right - 40]);
  const title = `${COST} over ${RATE}`;
  const { made, toY } = plane(width, TRADE_OFF, title, [ys[0] - room, ys[1] + room], 4, `${RATE} (rate), nats`);
  for (const tick of ticks(xs[0], xs[1], 6)) made.append(xText(TRADE_OFF, toX(tick), number(tick)));
  const position = axisPositions(along);
  const levels = axisPositions(curve);
  const named = [];
  for (const members of curves.map(all => all.filter(isShown)).filter(shown => shown.length)) {
    members.sort((a, b) => position.get(valueOn(along, a)) - position.get(valueOn(along, b)));
    const points = members.map(id => `${toX(between(at(id, RATE), ...xs))},${toY(between(at(id, COST), ...ys))}`);
    const color = shade(levels.get(valueOn(curve, members[0])));
    made.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: color, "stroke-width": 1.5 }));
    members.forEach((id, i) => {
      const [x, y] = points[i].split(",").map(Number);
      const circle = svg("circle", { cx: x, cy: y, r: 4, style: `fill: ${color}; stroke: ${color}` });
      const text = `${runs[id].label}: ${RATE} ${number(at(id, RATE))}, ${COST} ${number(at(id, COST))}`;
      made.append(svg("g", belonging([id], { class: "point" }), circle, svg("title", {}, text)));
    });
    const [x, y] = points.at(0).split(",").map(Number);
    if (named.some(([otherX, otherY]) => Math.abs(x - otherX) < 24 && Math.abs(y - otherY) < 13)) continue;
    named.push([x, y]);
    made.append(svg("text", { x: x + 8, y: y + 4 }, valueOn(curve, members[0])));
  }
  return made;
}
