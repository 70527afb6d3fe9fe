// The page: a view is a code, what the model is given beside it, two images with a place between them, and the two
// latents of the pad. Whatever changes it asks for the next frame, which draws everything from it.

const page = JSON.parse(document.getElementById("explorer").textContent);
const place = name => document.getElementById(name);
const between = (value, low, high) => Math.min(high, Math.max(low, value));
const Z = page.low.length;
const FIRST = 20; // sliders that are shown at once
const operations = withWeights(page.operations, (page.is_half ? halvesOf : floatsOf)(page.weights));
const codes = floatsOf(page.codes);
const codeOf = i => codes.slice(i * Z, (i + 1) * Z);
const N_DRAWS = codes.length / Z - page.images.length;

const view = { z: codeOf(0), choices: [], ends: [0, Math.min(1, page.images.length - 1)], t: 0, pad: [], end: 0 };

function decode() {
  const context = page.controls.flatMap((control, i) => {
    const { low, high } = control; // which the model knows as -1 and 1
    if (!control.values) return [high > low ? (2 * (view.choices[i] - low)) / (high - low) - 1 : 0];
    return Array.from({ length: control.width }, (_, value) => Number(value === view.choices[i]));
  });
  const data = Float32Array.from([...view.z, ...context]);
  return run(operations, { data, height: 1, width: 1, channels: data.length });
}

function paint({ data, height, width, channels }) {
  const canvas = place("picture");
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = Math.round(255 * data[i * channels + (k % channels)]);
    image.data[4 * i + 3] = 255;
  }
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

let isAsked = false;
let saving;

function update() {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    const start = performance.now();
    paint(decode());
    const milliseconds = (performance.now() - start).toFixed(1);
    place("about").textContent = `${page.shape.slice(1).join("×")} pixels in ${milliseconds} ms`;
    for (const each of shown) each();
  });
  clearTimeout(saving);
  saving = setTimeout(() => history.replaceState(null, "", link()), 250); // browsers refuse more than a few a second
}

const shown = []; // what follows the view, such as a slider's handle

const changing = change => value => {
  change(value);
  update();
};

// The link. Anybody may have written it: what is no number of ours stays as it is.

function link() {
  const z = Array.from(view.z, value => Number(value.toPrecision(9))); // all that 32 bits hold
  return `#z=${z}&given=${view.choices}&images=${view.ends}&between=${view.t}&pad=${view.pad}`;
}

function readLink(hash) {
  const given = new URLSearchParams(hash.slice(1));
  const read = (name, old, isRight) => {
    const numbers = (given.get(name) ?? "").split(",").map(Number);
    if (!given.get(name) || numbers.length !== old.length) return old;
    return old.map((value, i) => (Number.isFinite(numbers[i]) && isRight(numbers[i], i) ? numbers[i] : value));
  };
  const isIndex = length => value => Number.isInteger(value) && value >= 0 && value < length;
  view.z = Float32Array.from(read("z", Array.from(view.z), value => Math.abs(value) < 1e6));
  const isChoice = (value, i) => !page.controls[i].values || isIndex(page.controls[i].values.length)(value);
  view.choices = read("given", view.choices, isChoice);
  view.ends = read("images", view.ends, isIndex(page.images.length));
  [view.t] = read("between", [view.t], value => value >= 0 && value <= 1);
  view.end = Math.round(view.t);
  view.pad = read("pad", view.pad, isIndex(Z));
  update();
}

// Which of the prior's Gaussians holds: that of the label, or of the nearest one that the data have.
function momentsOf() {
  const differences = page.labels.map(label => label.filter((value, i) => value !== view.choices[i]).length);
  return Math.max(0, differences.indexOf(Math.min(...differences)));
}

function reset() {
  view.z = Float32Array.from(page.means[momentsOf()]);
  update();
}

function drawCode() {
  const at = momentsOf();
  if (N_DRAWS) view.z = codeOf(page.images.length + Math.floor(Math.random() * N_DRAWS));
  else view.z = Float32Array.from(page.means[at], (mean, i) => mean + page.stds[at][i] * normal());
  update();
}

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function moveBetween(t) {
  const [a, b] = view.ends.map(codeOf);
  view.t = t;
  view.z = a.map((value, i) => (1 - t) * value + t * b[i]);
  view.choices = [...page.images[view.ends[Math.round(t)]].choices];
  update();
}

// A slider by mouse and arrows, as fine as can be: values of codes lie anywhere.
function slider(name, low, high, read, write) {
  const made = element("input", { type: "range", min: low, max: high, step: "any", "aria-label": name });
  made.addEventListener("input", () => write(Number(made.value)));
  shown.push(() => (made.value = read()));
  return made;
}

function following(read) {
  const made = element("output");
  shown.push(() => (made.textContent = read()));
  return made;
}

function buttons() {
  const drawn = page.is_stochastic ? "a draw from the prior" : "the code of a held-out image";
  const copy = button("copy link", async () => {
    history.replaceState(null, "", link()); // where it can be copied by hand, if the page may not
    await navigator.clipboard?.writeText(location.href).then(
      () => (copy.textContent = "copied"),
      () => {},
    );
  });
  shown.push(() => (copy.textContent = "copy link")); // of another view
  const back = button("reset", reset, { title: page.is_stochastic ? "the prior's mean" : "the mean of the codes" });
  return [button("random", drawCode, { title: drawn }), back, copy];
}

function controlOf(control, i) {
  const set = changing(value => (view.choices[i] = value));
  if (!control.values) {
    const range = slider(control.name, control.low, control.high, () => view.choices[i], set);
    return element("label", { class: "choice" }, control.name, range, following(() => number(view.choices[i])));
  }
  const made = choice(control.name, control.values, set);
  shown.push(() => (made.querySelector("select").value = view.choices[i]));
  return made;
}

function sliderOf({ dim, about }, i) {
  const move = changing(value => (view.z[dim] = value));
  const range = slider(`z${dim}, ${about}`, page.low[dim], page.high[dim], () => view.z[dim], move);
  const value = following(() => view.z[dim].toFixed(2));
  return element("label", { hidden: i >= FIRST }, `z${dim}`, element("small", {}, about), range, value);
}

function showAll() {
  for (const each of place("sliders").children) each.hidden = false;
  place("more").replaceChildren();
}

function axis(i) {
  const names = page.latents.map(({ dim }) => `z${dim}`);
  const choose = changing(at => (view.pad[i] = page.latents[at].dim));
  const made = choice(["across", "up"][i], names, choose);
  shown.push(() => (made.querySelector("select").value = page.latents.findIndex(({ dim }) => dim === view.pad[i])));
  return made;
}

function preparePad() {
  const pad = place("pad");
  place("axes").append(axis(0), axis(1));
  const range = i => [page.low[view.pad[i]], page.high[view.pad[i]]];
  // A latent's value to the pad's 200 units, upwards for the second, and back.
  const partOf = (value, i) => between((value - range(i)[0]) / (range(i)[1] - range(i)[0] || 1), 0, 1);
  const at = z => [200 * partOf(z[view.pad[0]], 0), 200 - 200 * partOf(z[view.pad[1]], 1)];
  const move = parts => {
    parts.forEach((part, i) => (view.z[view.pad[i]] = range(i)[0] + between(part, 0, 1) * (range(i)[1] - range(i)[0])));
    update();
  };
  const drag = event => {
    const box = pad.getBoundingClientRect();
    if (event.buttons) move([(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height]);
  };
  pad.addEventListener("pointerdown", event => {
    pad.setPointerCapture(event.pointerId);
    drag(event);
  });
  pad.addEventListener("pointermove", drag);
  pad.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const size = event.shiftKey ? 0.1 : 0.02;
    move(step.map((way, i) => partOf(view.z[view.pad[i]], i) + way * size));
  });
  const dots = page.images.map(() => svg("circle", { r: 3, class: "code" }));
  const handle = svg("circle", { r: 8, class: "at" });
  const lines = [svg("line", { y1: 0, y2: 200 }), svg("line", { x1: 0, x2: 200 })];
  pad.append(...lines, ...dots, handle);
  const put = (circle, [x, y]) => filled(circle, { cx: x, cy: y }, []);
  shown.push(() => {
    const [x, y] = at(page.means[momentsOf()]);
    filled(lines[0], { x1: x, x2: x }, []);
    filled(lines[1], { y1: y, y2: y }, []);
    dots.forEach((dot, i) => put(dot, at(codeOf(i))).classList.toggle("chosen", view.ends.includes(i)));
    put(handle, at(view.z));
    const [a, b] = view.pad;
    const says = `z${a} ${view.z[a].toFixed(2)} across, z${b} ${view.z[b].toFixed(2)} up; arrows move it`;
    pad.setAttribute("aria-label", says);
  });
}

const pictureOf = ({ png }) => `data:image/png;base64,${png}`;

// Which end of the walk a click on an image sets.
function endButton(i) {
  const image = element("img", { alt: "" });
  const made = button("", () => {
    view.end = i;
    moveBetween(i);
  });
  made.append(image, "AB"[i]);
  shown.push(() => {
    image.src = pictureOf(page.images[view.ends[i]]);
    made.setAttribute("aria-pressed", view.end === i);
    made.setAttribute("aria-label", `${"AB"[i]}: image ${view.ends[i] + 1}; a click on an image changes it`);
  });
  return made;
}

function thumbnail(image, i) {
  const mark = element("span");
  const start = () => {
    view.ends[view.end] = i;
    moveBetween(view.end);
  };
  const made = button("", start, { title: image.name });
  made.append(element("img", { src: pictureOf(image), alt: "" }), mark, image.name);
  shown.push(() => {
    const ends = view.ends.flatMap((end, k) => (end === i ? ["AB"[k]] : [])).join("");
    mark.textContent = ends;
    made.setAttribute("aria-label", `image ${i + 1} ${image.name} ${ends}`);
    made.setAttribute("aria-pressed", ends !== "");
  });
  return made;
}

place("title").textContent = page.title;
place("says").textContent =
  "The decoder is in this page. Latents that tell more about an image come first; a slider goes to three standard " +
  `deviations of the ${page.is_stochastic ? "prior" : "codes"} either way.`;
if (Math.max(...page.shape.slice(1)) <= 128) place("picture").className = "small";
view.choices = [...page.images[0].choices];
view.pad = page.latents.slice(0, 2).map(({ dim }) => dim);
place("buttons").append(...buttons());
place("controls").append(...page.controls.map(controlOf));
place("sliders").append(...page.latents.map(sliderOf));
if (Z > FIRST) place("more").append(button(`show all ${Z}`, showAll));
place("between").append(endButton(0), slider("between A and B", 0, 1, () => view.t, moveBetween), endButton(1));
place("between").append(following(() => view.t.toFixed(2)));
place("thumbnails").append(...page.images.map(thumbnail));
if (Z > 1) preparePad();
else place("plane").remove();
addEventListener("hashchange", event => readLink(new URL(event.newURL).hash)); // by now it may be an older view's
readLink(location.hash);
