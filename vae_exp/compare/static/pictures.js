// Pictures: held once in the page, and given to the browser when they come near the screen.

let store = null;

function source(index) {
  store ??= JSON.parse(document.getElementById("pictures").textContent);
  return `data:image/png;base64,${store[index]}`;
}

// The pictures stand at the end of the file, and the script runs before they are read.
const read = new Promise(done => document.addEventListener("DOMContentLoaded", done));

const CAPTIONS = {
  test_reconstructions: "test images and their reconstructions",
  reconstructions: "held-out images and their reconstructions",
  samples: "samples from the prior",
};
const caption = name => CAPTIONS[name] ?? name.replaceAll("_", " ");

const nearScreen = new IntersectionObserver(
  seen => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      nearScreen.unobserve(target);
      read.then(() => (target.src = source(target.dataset.picture)));
    }
  },
  { rootMargin: "600px" },
);

function lazyPicture(index, alt) {
  const [width, height] = data.sizes[index]; // with them nothing moves when the picture comes
  const made = element("img", { alt, title: alt, "data-picture": index, width, height });
  nearScreen.observe(made);
  return made;
}

const MAX_FIRST = 24; // runs: the sheet of all is long
const lastOf = (run, name) => run.pictures[name].at(-1)[1];

// The sheet of a section: of each run the last picture of the chosen kinds, the best run first.
function pictures(section) {
  const withPictures = section.ranked.filter(id => Object.keys(runs[id].pictures).length);
  if (!withPictures.length) return [];
  const kinds = [...new Set(withPictures.flatMap(id => Object.keys(runs[id].pictures)))];
  const pairs = kinds.includes("test_reconstructions") ? "test_reconstructions" : "reconstructions";
  const usual = [pairs, "samples"].filter(kind => kinds.includes(kind));
  const choices = [usual, ...kinds.map(kind => [kind])].filter(choice => choice.length);
  const sheet = element("div", { class: "sheet" });
  const show = chosen => {
    const figures = withPictures.map(id => ofRun(id, choices[chosen], section.metric)).filter(Boolean);
    figures.slice(MAX_FIRST).forEach(figure => figure.classList.add("later"));
    sheet.replaceChildren(...figures);
    hideFiltered();
  };
  show(0);
  const texts = choices.map(choice => choice.map(kind => kind.replaceAll("_", " ")).join(" and "));
  const isChoice = choices.length > 1 && new Set(texts).size > 1;
  const left = section.runs.reduce((sum, id) => sum + runs[id].left_out, 0);
  const note = `${left} more pictures would make this page too large: earlier epochs, of the lower ranked runs first. They are in the runs' folders.`;
  const more = button(`show all ${withPictures.length} runs`, () => {
    sheet.classList.add("all");
    more.remove();
  });
  return [
    element("h3", {}, "Pictures"),
    isChoice && choice("Show", texts, show),
    element(
      "p",
      { class: "note" },
      "Of the last epoch; test images are reconstructed by the best epoch. ",
      left > 0 && note,
    ),
    sheet,
    withPictures.length > MAX_FIRST && more,
  ];
}

function ofRun(id, kinds, metric) {
  const run = runs[id];
  const shown = kinds.filter(kind => run.pictures[kind]);
  if (!shown.length) return null;
  const says = `${run.label}: ${run.results[metric] ?? run.state}`;
  const images = shown.map(kind => lazyPicture(lastOf(run, kind), caption(kind)));
  const head = [dot(), says, run.seeds > 1 && `, of ${run.shown}`, badge(run)];
  return element("figure", belonging([id]), element("figcaption", { title: run.shown }, head), images);
}
