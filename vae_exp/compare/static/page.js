// The page: its head, a section for each group of runs that compare, light and dark.

function head() {
  const count = `${data.count} run${data.count === 1 ? "" : "s"}`;
  const higher = [...new Set(sections.filter(section => section.sign < 0).map(section => section.metric))];
  const says = `Nats per image; lower is better${higher.length ? `, but higher ${higher.join(", ")}` : ""}. Point at a run to see it marked everywhere; click it, or use the arrows and Enter, for its own page.`;
  const why = data.groups && `${data.groups[0].toUpperCase()}${data.groups.slice(1)}.`;
  const links = sections.map((section, i) =>
    element("li", {}, element("a", { href: `#section-${i}` }, section.title ?? "")),
  );
  return [
    element("header", { class: "top" }, element("h1", {}, count), filterBox(), foldButton(), themeButton()),
    element("p", { class: "note" }, says),
    data.about && element("p", { class: "note" }, data.about),
    why && element("p", { class: "note" }, why),
    links.length > 1 && element("ul", { class: "places" }, links),
  ];
}

// Runs that differ in their seed alone as one: the mean, with a band of one standard deviation.
function foldButton() {
  if (data.views.length < 2) return null;
  const title = "runs that differ in their seed alone as one: the mean, with a band of one standard deviation";
  const showOther = () => show(data.views.find(view => view.runs !== runs));
  return button("fold seeds", showOther, { class: "quiet fold", title });
}

function show(view) {
  ({ runs, sections } = view);
  for (const again of drawings) again.stop();
  brushes.clear();
  resting = [];
  mark([]);
  main.replaceChildren(...sections.map(sectionOf));
  document.querySelector("button.fold")?.setAttribute("aria-pressed", view.is_folded);
  refilter();
}

function themeButton() {
  const toggle = () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    update();
  };
  const made = button("", toggle, { class: "quiet theme" });
  const name = () => {
    made.textContent = isDark() ? "light" : "dark";
    made.setAttribute("aria-label", `${made.textContent} colors`);
  };
  const update = () => {
    repaint();
    name();
  };
  name();
  systemTheme.addEventListener("change", update);
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
      const line = svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: "line", "stroke-dasharray": runs[id].dash });
      const sample = svg("svg", { width: 26, height: 8, "aria-hidden": "true" }, line);
      return element("li", belonging([id]), sample, runs[id].label, badge(runs[id]));
    });
    return [element("ul", { class: "legend" }, chips)];
  }
  const all = colorings(section);
  const scale = element("span", { class: "color-scale" });
  drawInto(scale, () => scaleOf(section, chosenColoring.get(section)));
  const choose = chosen => {
    chosenColoring.set(section, all[chosen]);
    repaint();
  };
  const names = all.map(coloring => coloring.name);
  return [element("div", { class: "legend" }, choice("Color", names, choose), scale)];
}

// From the best to the worst result, or the values of a key.
function scaleOf(section, coloring) {
  const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map(shade).join(", ");
  const bar = element("span", { class: "bar", style: `background: linear-gradient(to right, ${stops})` });
  if (coloring.axis) return [coloring.axis.texts[0], bar, coloring.axis.texts.at(-1)];
  const [low, high] = scoreRange(section).map(number);
  return section.sign < 0 ? [high, bar, low] : [low, bar, high];
}

function sectionOf(section, i) {
  chosenColoring.set(section, colorings(section)[0]);
  paint(section, chosenColoring.get(section));
  return element(
    "section",
    { id: `section-${i}`, "aria-label": section.title ?? "runs" },
    section.title && element("h2", {}, section.title),
    element("p", { class: "verdict" }, section.verdict),
    [table, legend, curves, heatMaps, rateDistortion, overKey, tradeOffs, parallel, pictures].map(part => part(section)),
  );
}

const main = element("main");
filled(document.body, {}, [head(), main, tip]);
show(data.views[0]);

// The run whose page the address names; the view that is shown comes first, so that a name that is in both stays there.
function openAsked() {
  const of = view => view.runs.findIndex(run => location.hash === address(run));
  const views = [...data.views].sort((a, b) => (b.runs === runs) - (a.runs === runs));
  const view = views.find(each => of(each) >= 0);
  if (!view) return;
  if (view.runs !== runs) show(view);
  read.then(() => openRun(of(view)));
}

addEventListener("hashchange", openAsked);
openAsked();
