// One box that filters the runs of the whole page: words, key=value, and numbers by <, >, <=, >=, !=.

const filteredOut = new Set();
const OPERATORS = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
};

const TEST = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.+)$/;
const called = key => name => `.${name}`.toLowerCase().endsWith(`.${key}`);
const isName = key => ["name", "run"].includes(key);
// A test of what no run has, such as z_dum=2.
function unknown(word) {
  const key = word.match(TEST)?.[1];
  return key && !isName(key) && !runs.some(run => Object.keys(run.known).some(called(key)));
}

// z_dim=2 finds model.z_dim=2, and not z_dim=20.
function passes(run, word) {
  const found = word.match(TEST);
  if (!found) return [run.name, run.state, run.label].join(" ").toLowerCase().includes(word);
  const [, key, sign, text] = found;
  if (isName(key)) return OPERATORS[sign](run.name.toLowerCase().includes(text), true);
  const names = Object.keys(run.known).filter(called(key));
  if (!names.length && sign === "=") return run.name.toLowerCase().includes(word);
  return names.some(name => {
    const value = run.known[name];
    if (typeof value === "number") return text.trim() !== "" && OPERATORS[sign](value, Number(text));
    return OPERATORS[sign](String(value).toLowerCase().replaceAll(" ", ""), text);
  });
}

// Parts of axes that runs must pass, by section and axis.
const brushes = new Map();

function passesBrushes(id) {
  return [...brushes.values()].every(({ section, of, low, high }) => {
    if (!section.runs.includes(id)) return true;
    return runs[id].score !== null && of(id) >= low - 1e-9 && of(id) <= high + 1e-9;
  });
}

const filterWords = () => document.getElementById("filter").value.toLowerCase().trim().split(/\s+/).filter(Boolean);

function refilter() {
  const words = filterWords();
  filteredOut.clear();
  runs.forEach((run, id) => (words.every(word => passes(run, word)) && passesBrushes(id)) || filteredOut.add(id));
  hideFiltered();
  redraw();
}

const isShown = id => !filteredOut.has(id);

// Charts leave out what is filtered when they draw; rows, names and pictures are hidden where they stand.
function hideFiltered() {
  for (const item of document.querySelectorAll("main [data-runs]")) {
    if (item instanceof HTMLElement) item.hidden = !runsOf(item).some(isShown);
  }
  document.body.classList.toggle("filtering", filteredOut.size > 0);
  const count = runs.length - filteredOut.size;
  const wrong = filterWords().filter(unknown);
  const shown = filteredOut.size ? `${count} of ${runs.length} shown` : "";
  document.getElementById("found").textContent = wrong.length && !count ? `no such column: ${wrong.join(" ")}` : shown;
}

function filterBox() {
  const box = element("input", {
    id: "filter",
    type: "search",
    placeholder: "filter: z_dim=8 lr<1e-3 finished",
    "aria-label": "filter runs by words, or by a key and a value",
    autocomplete: "off",
    spellcheck: "false",
  });
  box.addEventListener("input", refilter);
  box.title = "/ brings the cursor here";
  document.addEventListener("keydown", event => {
    if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
    event.preventDefault();
    box.focus();
  });
  return [box, element("span", { id: "found", role: "status" })];
}
