// Pointing at one run, or reaching it with the keyboard, marks it everywhere: in the table, in the curves, in the
// parallel coordinates, in the heat map and on its pictures.

let marked = [];
let resting = []; // what the keyboard is at: marked while the pointer is at nothing

const elementsOf = id => document.querySelectorAll(`[data-runs~="${id}"]`);

function mark(ids) {
  if (ids.join() === marked.join()) return;
  for (const id of marked) elementsOf(id).forEach(item => item.classList.remove("marked"));
  marked = ids;
  for (const id of marked) elementsOf(id).forEach(item => item.classList.add("marked"));
  // The others of the same section step back.
  document.querySelectorAll("section").forEach((section, i) => {
    section.classList.toggle(
      "marking",
      ids.some(id => sections[i].runs.includes(id)),
    );
  });
}

function runsOf(item) {
  const found = item?.closest?.("[data-runs]");
  return found ? found.dataset.runs.split(" ").map(Number) : [];
}

document.addEventListener("pointerover", event => {
  if (event.target.closest?.("dialog, .nearest")) return; // a chart marks what is nearest to the pointer itself
  const ids = runsOf(event.target);
  mark(ids.length ? ids : resting);
});
document.documentElement.addEventListener("pointerleave", () => mark(resting));

document.addEventListener("focusin", event => {
  if (event.target.closest("dialog")) return;
  resting = runsOf(event.target);
  mark(resting);
});

document.addEventListener("focusout", () => {
  resting = [];
  mark([]);
});

document.addEventListener("click", event => {
  if (event.target.closest("dialog, button, a, select, input, label, .nearest")) return;
  const ids = runsOf(event.target);
  if (ids.length && !String(getSelection())) openRun(ids[0]); // whoever selects text to copy it stays here
});
