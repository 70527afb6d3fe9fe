// Elements of a page and of its drawings. Names are strangers' text: they reach the page as text nodes and as values of
// a few fixed attributes, never as markup.

// Children may be lists; what is null, undefined or false is left out, of children and of attributes.
function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(2).filter(child => child !== undefined && child !== null && child !== false));
  return made;
}

const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function button(text, onclick, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", onclick);
  return made;
}

// A list of texts to choose from; the choice is the text's index.
function choice(name, texts, onchange) {
  const list = element("select", {}, ...texts.map((text, i) => element("option", { value: i }, text)));
  list.addEventListener("change", () => onchange(Number(list.value)));
  return element("label", { class: "choice" }, name, list);
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 4)));
}
