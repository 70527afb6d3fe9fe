// Scales of axes and of colors.

// The range of values without those far worse than the rest: a run that went off must not flatten the others. Lower
// values are better, and nothing far below is cut off; with sign -1 higher ones are.
function range(values, sign = 1) {
  if (sign < 0) return range(values.map(value => -value)).map(value => -value).reverse();
  const sorted = [...values].sort((a, b) => a - b);
  const at = part => sorted[Math.round(part * (sorted.length - 1))];
  const fence = at(0.75) + 3 * (at(0.75) - at(0.25));
  const top = sorted.length < 5 ? at(1) : sorted.findLast(value => value <= fence);
  return [sorted[0], top];
}

const between = (value, low, high) => Math.min(high, Math.max(low, value));

// Where a value lies in a range, from 0 to 1.
const partIn = ([low, high], alone = 0) => value => (high > low ? between((value - low) / (high - low), 0, 1) : alone);

// Value to pixel.
function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return value => from + ((value - low) / span) * (to - from);
}

// Round numbers inside a range.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++)
    result.push(Number((i * step).toPrecision(12)));
  return result;
}

// An empty plot: lines at round values of y, and the name of x.
function plane(width, { height, left, right, top, bottom }, title, [low, high], count, xName) {
  const toY = linear([low, high], [height - bottom, top]);
  const made = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of ticks(low, high, count)) {
    made.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }));
    made.append(svg("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  made.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  return { made, toY };
}

// Those of a path that were trained from nothing too lie beside it: maps and curves are of the path.
const onPath = ids => ids.filter(id => !runs[id].config.confirm);
const scored = section => section.runs.filter(id => runs[id].score !== null);
const scoreRange = section => range(scored(section).map(id => runs[id].score), section.sign);
const from0 = (part, sign) => (sign < 0 ? value => 1 - part(value) : part); // 0 is the best

// A run's value on an axis, and on all axes of its section, as texts.
const valueOn = (axis, id) => runs[id].config[axis.key] ?? "-";
const settingOf = (section, id) => section.axes.map(axis => valueOn(axis, id)).join("\n");

// Where a swept key's values lie on its axis, from 0 to 1, by their texts.
function axisPositions(axis) {
  const lies = axis.numbers && axis.numbers.map(axis.is_logarithmic ? Math.log : Number);
  const [low, high] = lies ? [Math.min(...lies), Math.max(...lies)] : [0, axis.texts.length - 1];
  const part = partIn([low, high], 0.5);
  return new Map(axis.texts.map((text, i) => [text, part(lies ? lies[i] : i)]));
}

// The first six are of Okabe and Ito, told apart by those who see fewer colors too; black and yellow are left out, which
// one of the two backgrounds would hide. The others are like some of them to those, and so their lines have dashes.
const CATEGORIES = {
  light: [
    ...["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b58900"],
    ...["#882255", "#777777", "#332288", "#7a7a14", "#3fb6a4", "#a23fa0"],
  ],
  dark: [
    ...["#4aa8e0", "#f0803c", "#2fc69a", "#dd95bd", "#8fd0f5", "#e5b73b"],
    ...["#cf5585", "#a8a8a8", "#8c7ae6", "#c5c56a", "#9df0e2", "#d873d4"],
  ],
};
const UNLIKE = 6; // of them
const DASHES = [null, "7 3", "2 3"];
const MAX_NAMED = 12; // of more runs a color is a value

// Viridis, at nine places.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemTheme.matches ? "dark" : "light")) === "dark";

// 0 is the best: what stands out most from the background. The end that would vanish in it is not used.
function shade(part) {
  const at = (isDark() ? 1 - 0.8 * between(part, 0, 1) : 0.88 * between(part, 0, 1)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const [from, to] = [VIRIDIS[i], VIRIDIS[i + 1]].map(hex => [1, 3, 5].map(c => parseInt(hex.slice(c, c + 2), 16)));
  return `rgb(${from.map((value, c) => Math.round(value + (to[c] - value) * (at - i))).join(" ")})`;
}

// Black or white, whichever is read better on a color.
function inkOn(color) {
  const [r, g, b] = color.match(/\d+/g).map(value => (value / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.22 ? "#000" : "#fff";
}

// What colors the runs of a section: their names where they are few, else their result or a swept key.
function colorings(section) {
  const ofScore = from0(partIn(scored(section).length ? scoreRange(section) : [0, 1]), section.sign);
  const byScore = { name: section.metric, part: id => (runs[id].score === null ? null : ofScore(runs[id].score)) };
  const byKey = section.axes.map(axis => {
    const positions = axisPositions(axis);
    return { name: axis.key, axis, part: id => positions.get(valueOn(axis, id)) ?? null };
  });
  return [byScore, ...byKey];
}

const isNamed = section => section.runs.length <= MAX_NAMED;

function paint(section, coloring) {
  const palette = CATEGORIES[isDark() ? "dark" : "light"];
  const group = id => (section.axes.length ? settingOf(section, id) : id); // seeds alone have a color each
  const settings = [...new Set(section.runs.map(group))];
  const used = palette.map(() => 0);
  for (const id of section.runs) {
    const part = coloring.part(id);
    const i = settings.indexOf(group(id)) % palette.length; // seeds of a setting share its color, with other dashes
    const color = isNamed(section) ? palette[i] : part === null ? "var(--faint)" : shade(part);
    document.documentElement.style.setProperty(`--run-${id}`, color);
    runs[id].dash = isNamed(section) ? DASHES[Math.min((i >= UNLIKE) + used[i]++, DASHES.length - 1)] : null;
  }
}
