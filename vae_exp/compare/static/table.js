// The table of a section: a row a run, columns to sort by, bookkeeping on request.

function table(section) {
  const first = head("name", ["run"], id => runs[id].name);
  const heads = section.columns.map(column =>
    head(kinds(column), breakable(column.name), id => runs[id].known[column.name] ?? null),
  );
  const rows = new Map(section.runs.map(id => [id, row(section, id)]));
  const body = element("tbody", {}, [...rows.values()]);
  const made = element(
    "table",
    { class: "runs" },
    element("caption", { class: "unseen" }, `runs of ${section.title ?? "this page"}`),
    element("thead", {}, element("tr", {}, first, heads)),
    body,
  );
  roving(body);

  function head(kind, text, value) {
    const made = element("th", { scope: "col", class: kind });
    made.append(button("", () => sortBy(made, value)));
    made.firstChild.append(...text);
    return made;
  }

  function sortBy(chosen, value) {
    const order = chosen.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of made.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    chosen.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    const sorted = [...section.runs].sort((a, b) => compared(value(a), value(b), order));
    body.append(...sorted.map(id => rows.get(id)));
  }

  const hidden = section.not_shown.join(", ");
  const box = [element("div", { class: section.runs.length > 15 ? "scroll tall" : "scroll" }, made)];
  if (hidden) box.push(element("p", { class: "note" }, `not shown: ${hidden} (swept, and not among --columns)`));
  const folded = section.columns.filter(column => column.is_folded);
  if (!folded.length) return box;
  const names = folded.map(column => column.name).join(", ");
  const toggle = () => more.setAttribute("aria-expanded", made.classList.toggle("with-folded"));
  const more = button(`${folded.length} more: ${names}`, toggle, { class: "quiet", "aria-expanded": "false" });
  return [...box, more];
}

const kinds = column => [column.is_number && "number", column.is_folded && "folded"].filter(Boolean).join(" ");

function row(section, id) {
  const run = runs[id];
  const name = [dot(), breakable(run.short, /(?<=[/_])/), badge(run)];
  const cells = section.columns.map((column, i) => {
    const attributes = { class: kinds(column) || null };
    if (column.name === "reason") Object.assign(attributes, { class: "reason", title: run.reason });
    if (column.name === "state") attributes.class = `state ${run.state.split(" ").pop()}`;
    return element("td", attributes, run.cells[i]);
  });
  const head = element("th", { scope: "row", class: "name", title: run.name }, name);
  return element("tr", belonging([id], { class: run.is_best ? "best" : null, tabindex: -1 }), head, cells);
}

// Numbers by size, then texts by name; what is missing stays last in either order.
function compared(a, b, order) {
  if (a === null || b === null) return (a === null) - (b === null);
  const isNumber = [a, b].map(value => typeof value === "number");
  if (isNumber[0] !== isNumber[1]) return order * (isNumber[1] - isNumber[0]);
  return order * (isNumber[0] ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

// The table is one stop of the Tab key; arrows go from row to row, Enter opens the run's page.
function roving(body) {
  const reach = row => {
    if (!row) return;
    body.querySelectorAll('[tabindex="0"]').forEach(other => other.setAttribute("tabindex", -1));
    row.setAttribute("tabindex", 0);
  };
  reach(body.rows[0]);
  body.addEventListener("focusin", event => reach(event.target.closest("tr")));
  body.addEventListener("keydown", event => {
    const shown = [...body.rows].filter(row => !row.hidden);
    const at = shown.indexOf(event.target.closest("tr"));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      shown[between(to, 0, shown.length - 1)]?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      openRun(runsOf(event.target)[0]);
    }
  });
}
