// Numbers over epochs: a line a run, with a band of one standard deviation where seeds were folded.

const CHART = { left: 48, right: 10, top: 8, bottom: 36 };
const NEAR = 40; // pixels from the pointer

// lines: {ids, color, dash, label, epochs, values, spread}; the chart takes the width of its box.
function chart(title, lines, { height = 260, isLive = true } = {}) {
  const note = element("span", { class: "note" });
  const box = element("div", { class: "plot", style: `height: ${height}px` });
  const made = element("figure", { class: "chart" }, element("figcaption", {}, title, " ", note), box);
  made.stop = drawInto(box, width => {
    const shown = lines().filter(line => line.epochs.length);
    if (!shown.length) return [element("p", { class: "none" }, "nothing logged")];
    const y = yRange(shown);
    note.textContent = y.isCut ? "higher values are cut off" : "";
    return [chartAt(width, height, shown, y, title, isLive)];
  });
  return made;
}

function yRange(lines) {
  const values = lines.flatMap(line => line.values);
  const lows = lines.flatMap(line => line.values.map((value, i) => value - (line.spread[i] ?? 0)));
  const [low, high] = range(values);
  const bottom = Math.max(Math.min(...lows), low - (high - low)); // a wide band must not flatten the lines
  const room = high > bottom ? (high - bottom) * 0.05 : 1;
  return { low: bottom - room, high: high + room, isCut: values.some(value => value > high) };
}

function chartAt(width, height, lines, y, title, isLive) {
  const [left, right] = [CHART.left, width - CHART.right];
  const [top, bottom] = [CHART.top, height - CHART.bottom];
  const epochs = lines.flatMap(line => line.epochs);
  const ends = [Math.min(...epochs), Math.max(...epochs)];
  const toX = ends[0] === ends[1] ? () => (left + right) / 2 : linear(ends, [left, right]);
  const { made, toY } = plane(width, { ...CHART, height }, title, [y.low, y.high], 5, "epoch");
  const clip = `clip-${clips++}`;
  const area = svg("rect", { x: left - 5, y: top, width: right - left + 10, height: bottom - top });
  made.append(svg("clipPath", { id: clip }, area));
  for (const tick of ticks(...ends, Math.max(2, width / 90)).filter(Number.isInteger)) {
    made.append(svg("text", { x: toX(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick)));
  }
  const point = svg("circle", { class: "at", r: 4, visibility: "hidden" });
  const paths = lines.map(line => lineOf(line, toX, toY));
  made.append(svg("g", { "clip-path": `url(#${clip})` }, paths), point);
  pointing(made, lines, toX, toY, point, isLive);
  return made;
}

let clips = 0;

function lineOf(line, toX, toY) {
  const points = line.epochs.map((epoch, i) => [toX(epoch), toY(line.values[i])]);
  const joined = all => all.map(point => point.map(value => value.toFixed(1)).join(" ")).join("L");
  const kind = runs[line.ids[0]]?.is_best ? "line best" : "line";
  const belongs = line.ids.length ? belonging(line.ids) : { style: `--color: ${line.color}` };
  const made = [];
  if (line.spread.some(spread => spread > 0)) {
    const edge = sign => line.epochs.map((epoch, i) => [toX(epoch), toY(line.values[i] + sign * line.spread[i])]);
    made.push(svg("path", { ...belongs, class: "band", d: `M${joined([...edge(1), ...edge(-1).reverse()])}Z` }));
  }
  const [cx, cy] = points[0];
  if (points.length === 1) return [...made, svg("circle", { ...belongs, class: kind, cx, cy, r: 3.5 })];
  const path = { ...belongs, class: kind, d: `M${joined(points)}`, "stroke-dasharray": line.dash };
  return [...made, svg("path", path)];
}

// The point nearest to the pointer: its run is marked everywhere and its number shown.
function pointing(made, lines, toX, toY, point, isLive) {
  made.classList.add("nearest");
  let at = null;
  made.addEventListener("pointermove", event => {
    const box = made.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    at = null;
    let least = NEAR;
    for (const line of lines) {
      line.epochs.forEach((epoch, i) => {
        const distance = Math.hypot((toX(epoch) - x) / 2, toY(line.values[i]) - y); // epochs may lie far apart
        if (distance < least) [least, at] = [distance, { line, i }];
      });
    }
    if (!at) return leave();
    if (isLive) mark(at.line.ids);
    const { line, i } = at;
    point.setAttribute("cx", toX(line.epochs[i]));
    point.setAttribute("cy", toY(line.values[i]));
    point.setAttribute("visibility", "visible");
    point.style.setProperty("--color", line.ids.length ? colorOf(line.ids[0]) : line.color);
    const spread = line.spread[i] ? ` ± ${number(line.spread[i])}` : "";
    showTip(event, line.label, `${line.values[i].toFixed(3)}${spread} at epoch ${number(line.epochs[i])}`);
  });
  const leave = () => {
    at = null;
    point.setAttribute("visibility", "hidden");
    tip.hidden = true;
    if (isLive) mark(resting);
  };
  made.addEventListener("pointerleave", leave);
  made.addEventListener("click", () => at && isLive && openRun(at.line.ids[0]));
}

// A deterministic autoencoder has a KL of zero at all epochs.
const hasCurve = (run, name) => run.curves[name]?.values.some(value => value !== 0);

function lineOfRun(id, name) {
  const run = runs[id];
  const curve = run.curves[name] ?? { epochs: [], values: [], spread: [] };
  return { ids: [id], dash: run.dash, label: run.label, ...curve };
}

// The charts of a section: what runs are compared by, the same of training, and its two terms.
function curves(section) {
  const part = section.metric.split("/")[0];
  const names = [section.metric, "train_epoch/neg_elbo", `${part}/reconstruction`, `${part}/kl`];
  const logged = names.filter(name => section.runs.some(id => hasCurve(runs[id], name)));
  if (!logged.length) return [];
  const shown = () => section.ranked.filter(isShown).reverse();
  const lines = name => () => shown().map(id => lineOfRun(id, name));
  const title = name => name.replace("train_epoch/", "train ");
  const charts = logged.map(name => chart(title(name), lines(name)));
  return [element("h3", {}, "Training"), element("div", { class: "charts" }, charts)];
}
