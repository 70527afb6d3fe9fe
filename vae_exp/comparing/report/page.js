// The page: its head, a section for each group of runs that compare, light and dark.

function head() {
  const count = `${held.count} run${held.count === 1 ? "" : "s"}`;
  const folded = held.isFolded ? " Runs that differ in their seed alone are one: the mean, with a band of one standard deviation." : "";
  const says = `Nats per image; lower is better.${folded} Point at a run to see it marked everywhere; click it, or use the arrows and Enter, for its own page.`;
  const made = element("header", { class: "top" }, element("h1", {}, count), ...filterBox(), themeButton());
  const why = held.whySeveral && element("p", { class: "note" }, `${held.whySeveral[0].toUpperCase()}${held.whySeveral.slice(1)}.`);
  const places = held.sections.map((section, i) => element("li", {}, element("a", { href: `#section-${i}` }, section.title ?? ""), ` (${section.runs.length})`));
  return [made, element("p", { class: "note" }, says), why, places.length > 1 && element("ul", { class: "places" }, ...places)].filter(Boolean);
}

function themeButton() {
  const made = button("", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    repaint();
    name();
  }, { class: "quiet theme" });
  const name = () => {
    made.textContent = isDark() ? "light" : "dark";
    made.setAttribute("aria-label", `${made.textContent} colors`);
  };
  name();
  systemTheme.addEventListener("change", () => {
    repaint();
    name();
  });
  return made;
}

const chosenColoring = new Map();

function repaint() {
  for (const section of held.sections) paint(section, chosenColoring.get(section));
  redraw();
}

// Names with their colors where runs are few; else what the colors mean, and the choice of it.
function legend(section) {
  if (section.runs.length < 2) return [];
  if (isNamed(section)) {
    const chips = section.runs.map(id => {
      const line = drawn("svg", { width: 26, height: 8, "aria-hidden": "true" });
      line.append(drawn("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: "line", "stroke-dasharray": runs[id].dash }));
      return element("li", belonging([id]), line, runs[id].label, runs[id].is_best ? element("span", { class: "badge" }, "best") : null);
    });
    return [element("ul", { class: "legend" }, ...chips)];
  }
  const all = colorings(section);
  const scale = element("span", { class: "color-scale" });
  drawnInto(scale, () => scaleOf(section, chosenColoring.get(section)));
  const choose = chosen => {
    chosenColoring.set(section, all[chosen]);
    repaint();
  };
  return [element("div", { class: "legend" }, choice("Color", all.map(coloring => coloring.name), 0, choose), scale)];
}

// From the best to the worst result, or the values of a key.
function scaleOf(section, coloring) {
  const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map(shade).join(", ");
  const bar = element("span", { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops})`;
  if (coloring.axis) return [coloring.axis.texts[0], bar, coloring.axis.texts.at(-1)];
  const [low, high] = range(section.runs.map(id => runs[id].score).filter(score => score !== null));
  return [number(low), bar, number(high)];
}

function sectionOf(section, i) {
  chosenColoring.set(section, colorings(section)[0]);
  paint(section, chosenColoring.get(section));
  return element(
    "section",
    { id: `section-${i}`, "aria-label": section.title ?? "runs" },
    section.title && element("h2", {}, section.title),
    element("p", { class: "verdict" }, section.verdict),
    ...table(section),
    ...legend(section),
    ...curves(section),
    ...heatMaps(section),
    ...overKey(section),
    ...parallel(section),
    ...pictures(section),
  );
}

document.body.append(...head(), tip);
const main = element("main");
document.body.append(main);
for (const [i, section] of held.sections.entries()) main.append(sectionOf(section, i));
const named = decodeURIComponent(location.hash.slice(1));
if (named) {
  const asked = runs.findIndex(run => run.name === named);
  if (asked >= 0) read.then(() => openRun(asked));
}
