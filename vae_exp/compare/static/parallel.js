// Parallel coordinates: a line a run through its values of the swept keys to its result. Dragging along an axis keeps
// the runs that pass there, on the whole page; a click on the axis lets all pass again.

const PARALLEL = { height: 300, top: 44, bottom: 14, side: 64, narrowest: 110 };

function parallel(section) {
  const ids = scored(section);
  if (ids.length < 2 || section.axes.length < 2) return []; // one key has a drawing of its own
  const axes = [...section.axes.map(sweptAxis), resultAxis(section)];
  const box = element("div", { class: "plot", style: `min-width: ${axes.length * PARALLEL.narrowest}px` });
  drawInto(box, width => [parallelAt(width, section, axes, ids.filter(isShown))]);
  const how = "Drag along an axis to keep the runs that pass there; click it to see all again.";
  return [
    element("h3", {}, "Swept keys and results"),
    element("p", { class: "note" }, how),
    element("div", { class: "scroll" }, box),
  ];
}

// of: where a run passes the axis, from 0 at its lower end to 1.
function sweptAxis(axis) {
  const positions = axisPositions(axis);
  const ticks = axis.texts.map(text => [positions.get(text), text]);
  return { name: axis.key, of: id => positions.get(valueOn(axis, id)), ticks };
}

function resultAxis(section) {
  const [low, high] = scoreRange(section);
  const part = partIn([low, high], 0.5);
  const marks = ticks(low, high, 6).map(tick => [part(tick), number(tick)]);
  if (scored(section).some(id => runs[id].score > high)) marks.push([1, `≥ ${number(high)}`]);
  if (scored(section).some(id => runs[id].score < low)) marks.push([0, `≤ ${number(low)}`]);
  return { name: section.metric, of: id => part(runs[id].score), ticks: marks };
}

function parallelAt(width, section, axes, ids) {
  const [top, bottom] = [PARALLEL.top, PARALLEL.height - PARALLEL.bottom];
  const longest = Math.max(...axes[0].ticks.map(([, text]) => shortened(text).length));
  const toX = linear([0, axes.length - 1], [Math.max(PARALLEL.side, 16 + 7 * longest), width - PARALLEL.side]);
  const toY = linear([0, 1], [bottom, top]);
  const title = "swept keys and results, a line a run";
  const made = svg("svg", { width, height: PARALLEL.height, role: "img", "aria-label": title });
  for (const id of [...section.ranked].reverse().filter(id => ids.includes(id))) {
    const points = axes.map((axis, i) => [toX(i), toY(axis.of(id))]);
    const middle = (i, j) => (points[i][0] + points[j][0]) / 2;
    // Curved, so that lines which meet at a value can be followed through it.
    const path = points.map(([x, y], i) =>
      i ? `C${middle(i - 1, i)} ${points[i - 1][1]} ${middle(i - 1, i)} ${y} ${x} ${y}` : `M${x} ${y}`,
    );
    const { is_best, dash, label, score } = runs[id];
    const line = { ...belonging([id]), d: path.join("") };
    made.append(
      svg("path", { ...line, class: is_best ? "line best" : "line", "stroke-dasharray": dash }),
      // Easier to point at than the line.
      svg("path", { ...line, class: "target" }, svg("title", {}, `${label}: ${number(score)}`)),
    );
  }
  axes.forEach((axis, i) => made.append(axisAt(axis, i, toX(i), toY, section, i === axes.length - 1)));
  return made;
}

function axisAt(axis, i, x, toY, section, isLast) {
  const name = { x, y: 16, "text-anchor": "middle", class: "title" };
  const made = svg(
    "g",
    { class: "axis" },
    svg("text", name, axis.name.replace(/\.name$/, "").split(".").pop(), svg("title", {}, axis.name)),
    svg("line", { x1: x, x2: x, y1: toY(0), y2: toY(1) }),
  );
  let last = Infinity;
  for (const [part, text] of [...axis.ticks].sort((a, b) => a[0] - b[0])) {
    if (last - toY(part) < 13) continue; // there is no room for its letters
    last = toY(part);
    const side = isLast ? { x: x + 8, "text-anchor": "start" } : { x: x - 8, "text-anchor": "end" };
    made.append(svg("text", { ...side, y: last + 4, class: "tick" }, shortened(text)));
  }
  const key = `${sections.indexOf(section)} ${i}`;
  const brush = brushes.get(key) ?? { low: 0, high: 0 };
  const band = svg("rect", { class: "brush", x: x - 9, width: 18 });
  const cover = (low, high) => {
    band.setAttribute("y", toY(high));
    band.setAttribute("height", Math.max(0, toY(low) - toY(high)));
  };
  cover(brush.low, brush.high);
  const handle = svg("rect", { class: "handle", x: x - 12, width: 24, y: toY(1) - 8, height: toY(0) - toY(1) + 16 });
  made.append(band, handle);
  brushing(handle, cover, (low, high) => {
    if (high - low < 0.02) brushes.delete(key);
    else brushes.set(key, { low, high, section, of: axis.of });
    refilter();
  });
  return made;
}

function brushing(handle, cover, done) {
  let from = null;
  const part = event => {
    const box = handle.getBoundingClientRect();
    return between((box.bottom - 8 - event.clientY) / (box.height - 16), 0, 1);
  };
  const span = event => [Math.min(from, part(event)), Math.max(from, part(event))];
  handle.addEventListener("pointerdown", event => {
    from = part(event);
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  handle.addEventListener("pointermove", event => from !== null && cover(...span(event)));
  handle.addEventListener("pointerup", event => {
    const [low, high] = span(event);
    from = null;
    done(low, high);
  });
}
