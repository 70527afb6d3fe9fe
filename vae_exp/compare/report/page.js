// The page: its head, a section for each group of runs that compare, light and dark.

function head() {
  const count = `${held.count} run${held.count === 1 ? "" : "s"}`;
  const says =
    "Nats per image; lower is better. Point at a run to see it marked everywhere; click it, or use the arrows and Enter, for its own page.";
  const why = held.whySeveral && `${held.whySeveral[0].toUpperCase()}${held.whySeveral.slice(1)}.`;
  const places = sections.map((section, i) =>
    element("li", {}, element("a", { href: `#section-${i}` }, section.title ?? "")),
  );
  return [
    element("header", { class: "top" }, element("h1", {}, count), ...filterBox(), foldButton(), themeButton()),
    element("p", { class: "note" }, says),
    why && element("p", { class: "note" }, why),
    places.length > 1 && element("ul", { class: "places" }, ...places),
  ].filter(Boolean);
}

// Runs that differ in their seed alone as one: the mean, with a band of one standard deviation.
function foldButton() {
  if (held.views.length < 2) return null;
  const title = "runs that differ in their seed alone as one: the mean, with a band of one standard deviation";
  const made = button("fold seeds", () => show(held.views.find(view => view.runs !== runs)), {
    class: "quiet fold",
    title,
  });
  return made;
}

function show(view) {
  ({ runs, sections } = view);
  forgetDrawings();
  brushes.clear();
  resting = [];
  mark([]);
  main.replaceChildren(...sections.map(sectionOf));
  document.querySelector("button.fold")?.setAttribute("aria-pressed", view.is_folded);
  refilter();
}

function themeButton() {
  const made = button(
    "",
    () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      repaint();
      name();
    },
    { class: "quiet theme" },
  );
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
  for (const section of sections) paint(section, chosenColoring.get(section));
  redraw();
}

// Names with their colors where runs are few; else what the colors mean, and the choice of it.
function legend(section) {
  if (section.runs.length < 2) return [];
  if (isNamed(section)) {
    const chips = section.runs.map(id => {
      const line = drawn("svg", { width: 26, height: 8, "aria-hidden": "true" });
      line.append(drawn("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: "line", "stroke-dasharray": runs[id].dash }));
      return element(
        "li",
        belonging([id]),
        line,
        runs[id].label,
        runs[id].is_best ? element("span", { class: "badge" }, "best") : null,
      );
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
  return [
    element(
      "div",
      { class: "legend" },
      choice(
        "Color",
        all.map(coloring => coloring.name),
        0,
        choose,
      ),
      scale,
    ),
  ];
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
    ...tradeOffs(section),
    ...parallel(section),
    ...pictures(section),
  );
}

const main = element("main");
document.body.append(...head(), main, tip);
show(held.views[0]);

// The run whose page the address names; the view that is shown comes first, so that a name that is in both stays there.
function openAsked() {
  const of = view => view.runs.findIndex(run => location.hash === address(run));
  const views = [...held.views].sort((a, b) => (b.runs === runs) - (a.runs === runs));
  const view = views.find(each => of(each) >= 0);
  if (!view) return;
  if (view.runs !== runs) show(view);
  read.then(() => openRun(of(view)));
}

addEventListener("hashchange", openAsked);
openAsked();
