// A run's own page: its numbers, curves, pictures over epochs, KL of each latent, configuration and commands.

let dialog = null;
let open = null; // the run, and what to stop when its page is closed

// In the page's address, so that a run's page can be bookmarked; a name from the disk may not be whole Unicode.
const address = run => `#${encodeURIComponent(run.name.toWellFormed?.() ?? run.name)}`;

function openRun(id) {
  if (id === undefined || document.readyState === "loading") return; // its pictures are not read yet
  open?.stop();
  dialog ??= element("dialog", { id: "run", "aria-label": "a run" });
  if (!dialog.isConnected) {
    document.body.append(dialog);
    dialog.addEventListener("close", closed);
    dialog.addEventListener("click", event => event.target === dialog && dialog.close());
  }
  open = { id, ...contentOf(id) };
  dialog.replaceChildren(open.page);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  tip.hidden = true;
  history.replaceState(null, "", address(runs[id]));
}

// Back to the row of the run that was open last, from where the arrows go on.
function closed() {
  open.stop();
  history.replaceState(null, "", "#");
  const row = document.querySelector(`table.runs tr[data-runs="${open.id}"]`);
  open = null;
  row?.focus();
}

function contentOf(id) {
  const run = runs[id];
  const section = sections.find(section => section.runs.includes(id));
  const charts = chartsOf(id);
  const commands = Object.entries({ ...run.commands, folder: run.folder }).map(commandOf);
  const page = filled(document.createDocumentFragment(), {}, [
    headOf(id, section),
    run.reason && element("p", { class: "reason" }, run.reason),
    tiles(run),
    run.members.length > 0 && membersOf(run, section),
    charts.length > 0 && element("div", { class: "charts" }, charts),
    overEpochs(run),
    element("h3", {}, "Commands"),
    element("dl", { class: "commands" }, commands),
    element("h3", {}, "Configuration"),
    configOf(run, section),
  ]);
  return { page, stop: () => charts.forEach(made => made.stop()) };
}

function headOf(id, section) {
  const run = runs[id];
  const rows = [...document.querySelectorAll("table.runs tbody tr:not([hidden])")].map(row => runsOf(row)[0]);
  const beside = step => rows[rows.indexOf(id) + step];
  const go = (text, step, label) =>
    button(text, () => openRun(beside(step)), {
      "aria-label": label,
      disabled: beside(step) === undefined || !rows.includes(id),
    });
  const close = button("×", () => dialog.close(), { "aria-label": "close", autofocus: true, class: "close" });
  const state = element("span", { class: `state ${run.state.split(" ").pop()}` }, run.state);
  const title = { style: `--color: ${colorOf(id)}`, title: run.name };
  return element(
    "header",
    {},
    element("h2", title, dot(), run.name, badge(run)),
    state,
    element("nav", {}, go("‹", -1, "the run before"), go("›", 1, "the next run"), close),
  );
}

function tiles(run) {
  const tile = ([name, text]) =>
    element("div", { class: "tile" }, element("span", {}, name), element("strong", {}, text));
  return element("div", { class: "tiles" }, Object.entries(run.results).map(tile));
}

function membersOf(run, section) {
  const rows = run.members.map(member => element("li", {}, `${member.name}: ${member.score}`));
  const head = `${section.metric} of each seed; pictures, latents and commands are of ${run.shown}`;
  return element("details", {}, element("summary", {}, head), element("ul", {}, rows));
}

// Training and held-out numbers of one term in one chart.
function chartsOf(id) {
  const run = runs[id];
  return ["neg_elbo", "reconstruction", "kl", "active_units"].flatMap(term => {
    const parts = ["val", "test", "train_epoch"].filter(part => hasCurve(run, `${part}/${term}`));
    if (!parts.length) return [];
    const lines = parts.map(part => ({
      ...run.curves[`${part}/${term}`],
      ids: [],
      color: part === "train_epoch" ? "var(--second)" : "var(--accent)",
      dash: part === "train_epoch" ? "6 3" : null,
      label: `${part.replace("_epoch", "")} ${term}`,
    }));
    const title = `${term}: ${parts.map(part => (part === "train_epoch" ? "train dashed" : part)).join(", ")}`;
    return [chart(title, () => lines, { height: 200, isLive: false })];
  });
}

// One slider moves all pictures, and the KL of the latents, over the epochs.
function overEpochs(run) {
  const names = Object.keys(run.pictures);
  const latents = hasCurve(run, "val/kl") || hasCurve(run, "test/kl") ? run.latents : [];
  const stages = [...Object.values(run.pictures), latents].flat().map(([epoch]) => epoch);
  const epochs = [...new Set(stages)].sort((a, b) => a - b);
  if (!epochs.length) return [];
  const slider = element("input", { type: "range", min: 0, max: epochs.length - 1, step: 1, "aria-label": "epoch" });
  const says = element("output", {});
  const images = names.map(name => element("img", { alt: caption(name) }));
  // Small ones are enlarged with their pixels, large ones need the room of two.
  const kinds = names.map(name => (data.sizes[lastOf(run, name)][0] < 350 ? "small" : "large"));
  const ages = names.map(() => element("span", { class: "note" }));
  const bars = element("div", { class: "latents" });
  const latest = (all, epoch) => all.findLast(([at]) => at <= epoch) ?? all[0];
  const show = () => {
    const epoch = epochs[slider.value];
    says.textContent = `epoch ${number(epoch)}`;
    slider.setAttribute("aria-valuetext", says.textContent);
    names.forEach((name, i) => {
      const [at, index] = latest(run.pictures[name], epoch);
      const url = source(index);
      if (images[i].src !== url) images[i].src = url;
      ages[i].textContent = at === epoch ? "" : `epoch ${number(at)}`;
    });
    if (latents.length) bars.replaceChildren(...barsOf(latents, latest(latents, epoch)));
  };
  slider.value = epochs.length - 1;
  slider.addEventListener("input", show);
  show();
  const figures = names.map((name, i) =>
    element("figure", { class: kinds[i] }, element("figcaption", {}, caption(name), " ", ages[i]), images[i]),
  );
  const left = `${run.left_out} more pictures are in ${run.folder}/images: the page would be too large with all.`;
  const all = element(
    "div", // the slider stays in sight as far as what it moves
    {},
    epochs.length > 1 && element("div", { class: "slider" }, slider, says),
    element("div", { class: "pictures" }, figures),
    run.left_out > 0 && element("p", { class: "note" }, left),
    latents.length > 0 && bars,
  );
  return [element("h3", {}, "Over the epochs"), all];
}

// The KL of each latent, the largest first: those near zero are not used.
function barsOf(latents, [epoch, kl]) {
  const most = Math.max(...latents.flatMap(([, values]) => values), 1e-9);
  const order = kl.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0]);
  const bars = order.map(([value, i]) => {
    const bar = element("span", { class: "bar", title: `latent ${i}: ${number(value)} nats` });
    bar.style.height = `${between((100 * value) / most, 0.5, 100)}%`;
    return element("li", {}, bar, kl.length <= 32 && element("small", {}, String(i)));
  });
  const text = `KL of each latent at epoch ${number(epoch)}, up to ${number(most)} nats; ${number(kl.reduce((a, b) => a + b, 0))} in all`;
  return [element("p", { class: "note" }, text), element("ol", { class: "bars" }, bars)];
}

function commandOf([name, text]) {
  const copy = button("copy", async () => {
    // Where a page from a file may not write to the clipboard the text is selected, to be copied by hand.
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(text).then(
      () => (copy.textContent = "copied"),
      () => {},
    );
  });
  const code = element("code", {}, text);
  return [element("dt", {}, name), element("dd", {}, code, copy)];
}

// Keys that differ among the runs stand out.
function configOf(run, section) {
  const rows = Object.entries(run.config).map(([key, text]) => {
    const kind = section.differing.includes(key) ? "differs" : null;
    return element("div", { class: kind }, element("dt", {}, breakable(key)), element("dd", {}, text));
  });
  return element("dl", { class: "config" }, rows);
}
