// What stands in the page for runs: their colors, names, drawings that follow its width, and the text at the pointer.

const data = JSON.parse(document.getElementById("runs").textContent);
// The runs that are shown now: each by itself, or folded over seeds.
let { runs, sections } = data.views[0];

const badge = run => run.is_best && element("span", { class: "badge" }, "best");
const dot = () => element("span", { class: "dot", "aria-hidden": "true" });

// A run's color is a property of the page, so that a change of it reaches all that shows the run.
const colorOf = id => `var(--run-${id})`;

// What belongs to runs: pointing at it marks them, a click opens the first.
function belonging(ids, attributes = {}) {
  return { "data-runs": ids.join(" "), style: `--color: ${colorOf(ids[0])}`, ...attributes };
}

// Long keys may break after a dot or a slash, names of runs also between their words.
const breakable = (text, after = /(?<=[./])/) =>
  text.split(after).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

const shortened = text => (text.length > 14 ? `${text.slice(0, 13)}…` : text);

// Draws into a box at its own width, again when that changes and when asked: letters keep their size on any screen.
const drawings = new Set();

function drawInto(box, draw) {
  let width = 0;
  const again = () => width > 0 && box.replaceChildren(...draw(width));
  drawings.add(again);
  const watch = new ResizeObserver(() => {
    const now = Math.floor(box.clientWidth);
    if (now !== width) {
      width = now;
      again();
    }
  });
  watch.observe(box);
  again.stop = () => {
    watch.disconnect();
    drawings.delete(again);
  };
  return again.stop; // what a closed run's page drew is not drawn again
}

function redraw() {
  for (const again of drawings) again();
}

// One small text beside the pointer.
const tip = element("div", { id: "tip", role: "status", hidden: true });

function showTip(event, ...lines) {
  tip.replaceChildren(...lines.map(line => element("div", {}, line)));
  (document.querySelector("dialog[open]") ?? document.body).append(tip);
  tip.hidden = false;
  const [x, y] = [event.clientX, event.clientY];
  const left = x + 16 + tip.offsetWidth > innerWidth ? x - 12 - tip.offsetWidth : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 4))}px`;
}
