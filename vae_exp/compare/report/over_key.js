// Results over the one key that was swept: a point a run, with a bar of one standard deviation where seeds were folded.

const OVER_KEY = { height: 260, left: 56, right: 24, top: 12, bottom: 40 };

function overKey(section) {
  const scored = section.runs.filter(id => runs[id].score !== null);
  if (section.axes.length !== 1 || scored.length < 2) return [];
  const box = element("div", { class: "plot over-key" });
  drawnInto(box, width => [overKeyAt(width, section, scored.filter(isShown))]);
  return [element("h3", {}, `${section.metric} over ${section.axes[0].key}`), box];
}

function overKeyAt(width, section, ids) {
  const { height, left, right, top, bottom } = OVER_KEY;
  const [axis] = section.axes;
  const places = axisPlaces(axis);
  const toX = linear([0, 1], [left + 20, width - right - 20]);
  const [low, high] = range(section.runs.map(id => runs[id].score).filter(score => score !== null));
  const room = (high - low || 1) * 0.12;
  const toY = linear([low - room, high + room], [height - bottom, top]);
  const label = `${section.metric} over ${axis.key}`;
  const made = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks(low - room, high + room, 5)) {
    made.append(drawn("line", { class: "grid", x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }));
    made.append(drawn("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  let last = -Infinity;
  for (const text of axis.texts) {
    const x = toX(places.get(text));
    if (x - last < 8 * Math.min(text.length, 14) + 6) continue; // there is no room for its letters
    last = x;
    const short = text.length > 14 ? `${text.slice(0, 13)}…` : text;
    made.append(drawn("text", { x, y: height - bottom + 18, "text-anchor": "middle" }, short));
  }
  made.append(drawn("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, axis.key));
  for (const id of ids) {
    const run = runs[id];
    const [x, y] = [toX(places.get(run.places[0])), toY(between(run.score, low, high))];
    const off = run.score > high ? " (above the axis)" : "";
    const point = drawn("g", belonging([id], { class: "point" }));
    const [up, down] = [run.score + run.spread, run.score - run.spread].map(toY);
    if (run.spread && !off)
      point.append(drawn("line", { x1: x, x2: x, y1: Math.max(top, up), y2: Math.min(height - bottom, down) }));
    point.append(
      drawn("circle", { cx: x, cy: y, r: 5 }),
      drawn("title", {}, `${run.label}: ${run.results[section.metric]}${off}`),
    );
    made.append(point);
  }
  return made;
}
