// Scales of axes and of colors.

// The range of values without those far above the rest: a run that went off must not flatten the others. Lower values
// are better everywhere here, so that nothing far below is cut off.
function range(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = part => sorted[Math.round(part * (sorted.length - 1))];
  const fence = at(0.75) + 3 * (at(0.75) - at(0.25));
  const top = sorted.length < 5 ? at(1) : sorted.findLast(value => value <= fence);
  return [sorted[0], top];
}

const between = (value, low, high) => Math.min(high, Math.max(low, value));

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
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Where a swept key's values lie on its axis, from 0 to 1, by their texts.
function axisPlaces(axis) {
  const lies = axis.numbers && axis.numbers.map(axis.is_logarithmic ? Math.log : Number);
  const [low, high] = lies ? [Math.min(...lies), Math.max(...lies)] : [0, axis.texts.length - 1];
  const at = i => (high > low ? ((lies ? lies[i] : i) - low) / (high - low) : 0.5);
  return new Map(axis.texts.map((text, i) => [text, at(i)]));
}

// Of Okabe and Ito, told apart by those who see fewer colors too; black and yellow are left out, which one of the two
// backgrounds would hide. More runs than colors get dashes.
const CATEGORIES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b58900"],
  dark: ["#4aa8e0", "#f0803c", "#2fc69a", "#dd95bd", "#8fd0f5", "#e5b73b"],
};
const DASHES = [null, "7 3", "2 3"];
const MOST_NAMED = 12; // of more runs a color is a value

// Viridis, at nine places.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemTheme.matches ? "dark" : "light")) === "dark";

function rgb(hex) {
  return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
}

// 0 is the best: what stands out most from the background. The end that would vanish in it is not used.
function shade(part) {
  const place = (isDark() ? 1 - 0.8 * between(part, 0, 1) : 0.88 * between(part, 0, 1)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const [from, to] = [rgb(VIRIDIS[i]), rgb(VIRIDIS[i + 1])];
  return `rgb(${from.map((value, c) => Math.round(value + (to[c] - value) * (place - i))).join(" ")})`;
}

// Black or white, whichever is read better on a color.
function inkOn(color) {
  const [r, g, b] = color.match(/\d+/g).map(value => (value / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.22 ? "#000" : "#fff";
}

// What colors the runs of a section: their names where they are few, else their result or a swept key.
function colorings(section) {
  const score = { name: section.metric, of: scoreParts(section) };
  const byKey = section.axes.map((axis, i) => {
    const places = axisPlaces(axis);
    return { name: axis.key, axis, of: new Map(section.runs.map(id => [id, places.get(runs[id].places[i])])) };
  });
  return [score, ...byKey];
}

function scoreParts(section) {
  const scores = section.runs.map(id => runs[id].score).filter(score => score !== null);
  const [low, high] = scores.length ? range(scores) : [0, 1];
  const part = score => (high > low ? between((score - low) / (high - low), 0, 1) : 0);
  return new Map(section.runs.map(id => [id, runs[id].score === null ? null : part(runs[id].score)]));
}

const isNamed = section => section.runs.length <= MOST_NAMED;

function paint(section, coloring) {
  const palette = CATEGORIES[isDark() ? "dark" : "light"];
  const settingOf = id => (section.axes.length ? runs[id].places.join("\n") : id); // seeds alone have a color each
  const settings = [...new Set(section.runs.map(settingOf))];
  const used = palette.map(() => 0);
  for (const id of section.runs) {
    const part = coloring.of.get(id);
    // Seeds of a setting share its color, and so do settings that are more than the colors: dashes tell them apart.
    const i = settings.indexOf(settingOf(id)) % palette.length;
    const value = isNamed(section) ? palette[i] : (part ?? null) === null ? "var(--faint)" : shade(part);
    document.documentElement.style.setProperty(`--run-${id}`, value);
    runs[id].dash = isNamed(section) ? DASHES[Math.min(used[i]++, DASHES.length - 1)] : null;
  }
}
