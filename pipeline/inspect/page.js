const page = JSON.parse(document.getElementById("data").textContent);
const grid = floats(page.grid);
const cells = floats(page.cells);
const MAXIMUM = page.maximum_entropy;
const RULES = { entropy: "by entropy", monotonic: "by rise (monotonic)", entropy_rise: "by entropy and rise" };

let dataset = null; // one of page.datasets
let opened = []; // its documents with decoded arrays
let current = 0; // the one in view
let shown = null; // {starts, spans} of the one in view
let cutting = null; // settings of the cut chosen here; null: as stored

const at = (id) => document.getElementById(id);

/** An element with attributes and children; text only ever becomes text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function vector(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function decoded(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function floats(base64) {
  return new Float32Array(decoded(base64).buffer);
}

/** A document with its arrays: bytes, entropies (nats; null without a sidecar), stored starts (null if unpatched). */
function open(entry) {
  const text = decoded(entry.text);
  const count = text.length + 1 + (entry.whole ? 1 : 0);
  let entropies = null;
  if (entry.values !== null) {
    entropies = dataset.sidecar === "uint8" ? Float32Array.from(decoded(entry.values), (q) => cells[q]) : floats(entry.values);
  }
  let starts = null;
  if (entry.lengths !== null) {
    const lengths = new Uint16Array(decoded(entry.lengths).buffer);
    starts = new Int32Array(lengths.length);
    for (let patch = 1; patch < lengths.length; patch++) starts[patch] = starts[patch - 1] + lengths[patch - 1];
  }
  return { ...entry, text, count, entropies, stored: starts, characters: null };
}

/** Settings that the dataset stores for documents of one subset. */
function storedSettings(subset) {
  return { ...dataset.patching, theta: dataset.patching.thetas[subset] ?? dataset.patching.theta };
}

function cutAgain(entry, settings) {
  return recut(entry.count, entry.entropies, settings, entry.specials, entry.text);
}

function startsOf(entry) {
  if (cutting !== null && entry.entropies !== null) return cutAgain(entry, cutting);
  return entry.stored ?? Int32Array.of(0, 1);
}

/** Text bytes over patches other than BOS, over the documents in the page. */
function meanPatchSize(entries) {
  let bytes = 0;
  let patches = 0;
  for (const entry of entries) {
    bytes += entry.text.length;
    patches += startsOf(entry).length - 1;
  }
  return bytes / patches;
}

/** How many documents the stored settings cut here as they are stored, or null where that cannot be told. */
function foundAgain() {
  if (!dataset.replayable) return null;
  return opened.filter((entry) => {
    const ours = cutAgain(entry, storedSettings(entry.subset));
    return ours.length === entry.stored.length && ours.every((start, patch) => start === entry.stored[patch]);
  }).length;
}

function showDataset(number) {
  dataset = page.datasets[number];
  opened = dataset.documents.map(open);
  cutting = null;
  document.title = at("title").textContent = dataset.folder;
  at("identity").replaceChildren(...dataset.facts.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
  const warnings = [...dataset.warnings];
  const again = foundAgain();
  if (again !== null && again < opened.length) {
    warnings.push(`This browser finds the stored boundaries again in ${again} of ${opened.length} documents only: run verify.`);
  }
  at("warnings").replaceChildren(...warnings.map((warning) => element("li", {}, warning)));
  at("documents").hidden = !opened.length;
  fillDocuments();
  fillCutting();
  fillSubsets();
  fillTypes();
  if (opened.length) showDocument(representative());
}

function fillDocuments() {
  const groups = new Map();
  opened.forEach((entry, number) => {
    if (!groups.has(entry.group)) groups.set(entry.group, element("optgroup", { label: entry.group }));
    const mean = entry.mean === null ? "" : `, ${entry.mean.toFixed(3)} nats`;
    groups.get(entry.group).append(element("option", { value: number }, `${entry.id} (${entry.subset}${mean})`));
  });
  at("document").replaceChildren(...groups.values());
}

/** The controls of the cut; none without entropies. */
function fillCutting() {
  const scored = dataset.sidecar !== "none";
  at("cutting").hidden = !scored;
  const options = [element("option", { value: "" }, `as stored (${dataset.patching.rule})`)];
  for (const [rule, words] of Object.entries(RULES)) {
    const possible = rule === "entropy" || dataset.sidecar === "float32";
    const option = element("option", { value: rule }, possible ? words : `${words}: float32 sidecar only`);
    option.disabled = !possible;
    options.push(option);
  }
  at("rule").replaceChildren(...options);
  showCutting();
}

/** The document to begin with: of those sampled at random the one of middling entropy. */
function representative() {
  const sampled = opened.map((_, number) => number).filter((number) => opened[number].group.startsWith("sampled"));
  sampled.sort((a, b) => (opened[a].mean ?? 0) - (opened[b].mean ?? 0));
  return sampled[sampled.length >> 1] ?? 0;
}

/** The rule, if it is one on entropies, and thresholds that the controls begin with: those of the subset in view. */
function firstSettings(rule) {
  const stored = storedSettings(opened[current]?.subset);
  const same = stored.rule === rule;
  const theta = same ? stored.theta : rule === "monotonic" ? 0.5 : grid[64];
  return {
    ...stored,
    rule,
    theta,
    theta_rise: rule === "entropy_rise" ? stored.theta_rise ?? 0.5 : null,
    reference_starts: stored.reference_starts && rule !== "entropy",
  };
}

function settingsInView() {
  const rule = dataset.patching.rule in RULES ? dataset.patching.rule : "entropy";
  return cutting ?? firstSettings(rule);
}

const snaps = () => dataset.sidecar === "uint8";

/** The place on the grid nearest to theta. */
function nearest(theta) {
  let best = 0;
  grid.forEach((value, place) => {
    if (Math.abs(value - theta) < Math.abs(grid[best] - theta)) best = place;
  });
  return best;
}

function showCutting() {
  showControls();
  showOutcome();
}

function showControls() {
  const settings = settingsInView();
  at("rule").value = cutting === null ? "" : cutting.rule;
  const slider = at("theta");
  slider.min = snaps() ? 0 : settings.rule === "monotonic" ? -MAXIMUM : 0;
  slider.max = snaps() ? grid.length - 1 : MAXIMUM;
  slider.step = snaps() ? 1 : 0.001;
  slider.value = snaps() ? nearest(settings.theta) : settings.theta;
  at("theta-exact").value = String(Number(settings.theta.toFixed(6)));
  at("rise-label").hidden = settings.rule !== "entropy_rise";
  at("theta-rise").value = settings.theta_rise ?? "";
  at("min-length").value = settings.min_length;
  at("max-length").value = settings.max_length;
  at("whole-characters").checked = Boolean(settings.whole_characters);
  at("stored").disabled = cutting === null;
}

function showOutcome() {
  const words = [];
  const cut = cutting !== null || dataset.patching.rule !== "none";
  if (cut) words.push(`${meanPatchSize(opened).toFixed(3)} bytes a patch in the ${opened.length} documents of this page`);
  if (cutting === null) {
    if (dataset.bytes_a_patch !== null) words.push(`${dataset.bytes_a_patch.toFixed(3)} in the whole dataset, as stored`);
    const again = foundAgain();
    if (again === opened.length) words.push("the same settings give the same boundaries here");
  } else if (cutting.rule === "entropy" && dataset.entropy_histogram.length && opened.length) {
    const first = opened[0].entropies[0];
    const size = estimatedPatchSize(cutting.theta, dataset.entropy_histogram, grid, first, dataset.totals);
    const limits = "an estimate from the histogram of its entropies, which leaves min and max length out";
    words.push(`about ${size.toFixed(3)} in the whole dataset (${limits})`);
  } else {
    words.push("no estimate for the whole dataset: it keeps no histogram of rises");
  }
  at("outcome").textContent = cut ? `${words.join("; ")}.` : "Unpatched: choose a cut to try one.";
}

/** Take what the controls say; what is no number, or no possible limit, leaves the cut as it was. */
function changeCutting(change) {
  const next = { ...settingsInView(), ...change };
  const possible = [next.theta, next.theta_rise ?? 0].every(Number.isFinite);
  const limits = [next.min_length, next.max_length].every((value) => Number.isInteger(value) && value >= 1 && value <= 65535);
  const longest = next.max_length - (next.whole_characters ? 3 : 0);
  if (possible && limits && next.min_length <= longest) {
    if (snaps()) next.theta = grid[nearest(next.theta)];
    cutting = next;
  }
  showCutting();
  showPatches();
}

function showDocument(number) {
  current = number;
  at("document").value = number;
  at("previous").disabled = number === 0;
  at("next").disabled = number === opened.length - 1;
  const entry = opened[number];
  entry.characters ??= characters(entry.text);
  const part = entry.whole ? "" : `, the first ${entry.text.length.toLocaleString("en")} shown`;
  const mean = entry.mean === null ? "" : `, mean entropy ${entry.mean.toFixed(3)} nats`;
  at("about").textContent = `${entry.id}: subset ${entry.subset}, ${entry.size.toLocaleString("en")} bytes${part}${mean}`;
  at("curve").hidden = entry.entropies === null;
  at("zoom").parentElement.hidden = entry.entropies === null;
  at("scroll").scrollLeft = 0;
  showControls();
  showPatches();
}

function showPatches() {
  if (!opened.length) return;
  const entry = opened[current];
  const starts = startsOf(entry);
  shown = { starts, spans: patchElements(entry, starts) };
  at("text").replaceChildren(...shown.spans);
  at("readout").textContent = "";
  if (entry.entropies !== null) drawCurve(entry, starts);
}

/** One element a patch. Every byte is in it: as text, or as a mark whose data-hex says it. */
function patchElements(entry, starts) {
  let next = 0;
  return Array.from(starts, (start, patch) => {
    const end = patch + 1 < starts.length ? starts[patch + 1] : entry.count;
    const span = element("span", { class: "patch", "data-patch": patch });
    if (start === 0) span.append(element("i", { class: "byte special" }, "BOS"));
    const [first, last] = [Math.max(start - 1, 0), Math.min(end - 1, entry.text.length)];
    while (next < entry.characters.length && entry.characters[next].end <= first) next++;
    for (let place = next; place < entry.characters.length && entry.characters[place].start < last; place++) {
      span.append(characterElement(entry.text, entry.characters[place], first, last));
    }
    if (entry.whole && end === entry.count) span.append(element("i", { class: "byte special" }, "EOS"));
    return span;
  });
}

/** How a character is shown in a patch that covers the bytes from first up to last, all of it or a part. */
function characterElement(bytes, character, first, last) {
  const { start, end, text } = character;
  if (text === null || start < first || end > last) {
    const marks = document.createDocumentFragment();
    for (let place = Math.max(start, first); place < Math.min(end, last); place++) {
      const hex = bytes[place].toString(16).toUpperCase().padStart(2, "0");
      const kind = text === null ? "byte invalid" : "byte";
      const title = text === null ? "no valid UTF-8" : `byte ${place - start + 1} of ${end - start} of ${text}`;
      const mark = element("i", { class: kind, "data-hex": hex, title }, hex);
      if (text !== null && place === start) mark.dataset.character = text;
      marks.append(mark);
    }
    return marks;
  }
  if (text === "\n") return element("i", { class: "newline" }, text);
  if (text === "\t") return element("i", { class: "tab" }, text);
  // Joiners are needed for the shapes of their neighbours; other characters without a shape could mislead the eye.
  if (/[\p{C}\p{Zl}\p{Zp}]/u.test(text) && !/[\u200c\u200d]/.test(text)) {
    const hex = Array.from(bytes.subarray(start, end), (byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join("");
    const point = text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return element("i", { class: "byte control", "data-hex": hex }, `U+${point}`);
  }
  return document.createTextNode(text);
}

/** The entropy of each byte as steps, one unit of x a byte; lines where patches begin. */
function drawCurve(entry, starts) {
  const count = entry.count - 1;
  const top = MAXIMUM;
  const y = (nats) => (Number.isNaN(nats) ? top : top - Math.min(nats, top)).toFixed(3);
  let area = `M0 ${top}`;
  for (let place = 0; place < count; place++) area += `V${y(entry.entropies[place])}H${place + 1}`;
  const lines = Array.from(starts).filter((start) => start > 0).map((start) => `M${start - 1} 0V${top}`).join("");
  const plot = at("plot");
  plot.setAttribute("viewBox", `0 0 ${count} ${top}`);
  plot.replaceChildren(
    vector("path", { class: "area", d: `${area}V${top}Z` }),
    vector("path", { class: "starts", d: lines || "M0 0" }),
    vector("rect", { id: "mark", x: 0, y: 0, width: 0, height: top }),
  );
  const settings = cutting ?? storedSettings(entry.subset);
  if (settings.rule === "entropy" || settings.rule === "entropy_rise") {
    plot.append(vector("path", { class: "theta", d: `M0 ${y(settings.theta)}H${count}` }));
  }
  const ticks = [0, 1, 2, 3, 4, 5].map((nats) => {
    const label = element("span", {}, String(nats));
    label.style.bottom = `${(100 * nats) / top}%`;
    return label;
  });
  const unit = element("span", {}, "nats");
  unit.style.bottom = "99%";
  at("axis").replaceChildren(unit, ...ticks);
  zoom();
}

function zoom() {
  const count = opened[current].count - 1;
  at("plot").style.width = `${Math.max(Math.round(count * 2 ** Number(at("zoom").value)), 1)}px`;
  at("axis").style.height = `${at("scroll").clientHeight}px`; // a scroll bar is no part of it
}

/** Mark a patch in text and curve, and say what is known about it; byte: the one pointed at, or its first. */
function point(patch, byte) {
  const entry = opened[current];
  const { starts, spans } = shown;
  at("text").querySelector(".on")?.classList.remove("on");
  spans[patch].classList.add("on");
  const end = patch + 1 < starts.length ? starts[patch + 1] : entry.count;
  const mark = at("mark");
  if (mark) {
    mark.setAttribute("x", Math.max(starts[patch] - 1, 0));
    mark.setAttribute("width", end - Math.max(starts[patch], 1));
  }
  const place = byte ?? Math.max(starts[patch] - 1, 0);
  const nats = entry.entropies === null || starts[patch] === 0 ? "" : `, ${entry.entropies[place].toFixed(3)} nats`;
  const what = place >= entry.text.length ? "EOS" : `byte ${place}`;
  at("readout").textContent = `patch ${patch} of ${end - starts[patch]} tokens; ${starts[patch] === 0 ? "BOS" : what}${nats}`;
}

function patchOf(token) {
  let patch = shown.starts.findIndex((start) => start > token);
  if (patch < 0) patch = shown.starts.length;
  return patch - 1;
}

/** Rows of [label, count]: share of all, and a bar relative to the largest. */
function bars(title, labels, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const largest = Math.max(...counts, 1);
  const box = element("div", { class: "bars" });
  labels.forEach((label, place) => {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${(100 * counts[place]) / largest}%`;
    box.append(element("span", {}, label), element("span", {}, `${((100 * counts[place]) / Math.max(total, 1)).toFixed(1)}%`), bar);
  });
  const note = total ? [] : [element("p", { class: "note" }, "nothing counted")];
  return element("div", {}, element("h3", {}, `${title} (${total.toLocaleString("en")})`), ...(total ? [box] : note));
}

/** Rows of cells; the last cell is a bar for the number given there, null for none. */
function fillTable(table, header, rows) {
  const largest = Math.max(...rows.map((row) => row.at(-1) ?? 0), 0);
  const body = rows.map((row) => {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${largest > 0 ? (100 * (row.at(-1) ?? 0)) / largest : 0}%`;
    return element("tr", {}, ...row.slice(0, -1).map((cell) => element("td", {}, cell)), element("td", {}, bar));
  });
  table.replaceChildren(element("tr", {}, ...header.map((cell) => element("th", {}, cell))), ...body);
}

const whole = (count) => count.toLocaleString("en");
const size = (value) => (value === null ? "-" : value.toFixed(2));

function fillSubsets() {
  fillTable(
    at("subsets"),
    ["subset", "documents", "bytes", "patches", "bytes/patch", ""],
    dataset.subsets.map((subset) => [
      subset.name,
      whole(subset.documents),
      whole(subset.bytes),
      subset.bytes_a_patch === null ? "-" : whole(subset.patches),
      size(subset.bytes_a_patch),
      dataset.patching.rule === "none" ? subset.bytes : subset.bytes_a_patch,
    ]),
  );
  at("sampled").textContent = dataset.sampled;
  const options = dataset.histograms.map((own, number) => element("option", { value: number }, own.name));
  at("subset").replaceChildren(...options);
  showHistograms(0);
}

function showHistograms(number) {
  const own = dataset.histograms[number];
  at("histograms").replaceChildren(
    bars("patches by tokens", page.length_labels, own.lengths),
    bars("positions by entropy, nats", page.entropy_labels, own.entropies),
    bars("documents by bytes a patch", page.size_labels, own.sizes),
  );
}

function fillTypes() {
  at("types-note").textContent = `${page.types_note} ${dataset.sampled}`;
  const patched = dataset.patching.rule !== "none";
  fillTable(
    at("types"),
    ["type", "bytes", "mean nats", "bytes/patch", ""],
    dataset.types.map((kind) => [
      kind.name,
      whole(kind.bytes),
      kind.nats === null ? "-" : kind.nats.toFixed(3),
      size(kind.bytes_a_patch),
      patched ? kind.bytes_a_patch : kind.bytes,
    ]),
  );
  at("type").parentElement.hidden = !patched || !dataset.types.length;
  at("type").replaceChildren(...dataset.types.map((kind, number) => element("option", { value: number }, kind.name)));
  showTypeLengths(0);
}

function showTypeLengths(number) {
  const kind = dataset.types[number];
  const patched = dataset.patching.rule !== "none" && kind;
  at("type-lengths").replaceChildren(...(patched ? [bars("patches by tokens", page.length_labels, kind.lengths)] : []));
}

at("dataset").addEventListener("change", (event) => showDataset(Number(event.target.value)));
at("document").addEventListener("change", (event) => showDocument(Number(event.target.value)));
at("previous").addEventListener("click", () => showDocument(current - 1));
at("next").addEventListener("click", () => showDocument(current + 1));
at("rule").addEventListener("change", (event) => {
  cutting = event.target.value === "" ? null : firstSettings(event.target.value);
  if (cutting === null) showCutting();
  else changeCutting({});
  showPatches();
});
at("theta").addEventListener("input", (event) => {
  const value = Number(event.target.value);
  changeCutting({ theta: snaps() ? grid[value] : value });
});
at("theta-exact").addEventListener("change", (event) => changeCutting({ theta: event.target.valueAsNumber }));
at("theta-rise").addEventListener("change", (event) => changeCutting({ theta_rise: event.target.valueAsNumber }));
at("min-length").addEventListener("change", (event) => changeCutting({ min_length: event.target.valueAsNumber }));
at("max-length").addEventListener("change", (event) => changeCutting({ max_length: event.target.valueAsNumber }));
at("whole-characters").addEventListener("change", (event) => changeCutting({ whole_characters: event.target.checked }));
at("stored").addEventListener("click", () => {
  cutting = null;
  showCutting();
  showPatches();
});
at("zoom").addEventListener("input", zoom);
at("plot").addEventListener("pointermove", (event) => {
  const box = at("plot").getBoundingClientRect();
  const count = opened[current].count - 1;
  const byte = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * count), 0), count - 1);
  point(patchOf(byte + 1), byte);
});
at("plot").addEventListener("click", () => at("text").querySelector(".on")?.scrollIntoView({ block: "nearest" }));
at("text").addEventListener("pointerover", (event) => {
  const span = event.target.closest(".patch");
  if (span) point(Number(span.dataset.patch));
});
at("text").addEventListener("click", (event) => {
  const span = event.target.closest(".patch");
  if (!span || opened[current].entropies === null) return;
  const scroll = at("scroll");
  const start = Math.max(shown.starts[Number(span.dataset.patch)] - 1, 0);
  scroll.scrollLeft = (start / (opened[current].count - 1)) * at("plot").clientWidth - scroll.clientWidth / 2;
});
at("subset").addEventListener("change", (event) => showHistograms(Number(event.target.value)));
at("type").addEventListener("change", (event) => showTypeLengths(Number(event.target.value)));

at("choose-dataset").hidden = page.datasets.length < 2;
at("dataset").replaceChildren(...page.datasets.map((own, number) => element("option", { value: number }, own.folder)));
showDataset(0);
