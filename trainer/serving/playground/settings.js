/** What a request asks for, from the fields of the page. */

const at = (id) => document.getElementById(id);
const PAIRS = ["theta", "temperature", "top-p", "length", "seed"];
const ENTROPY_RULES = ["entropy", "monotonic", "entropy_rise"];
const MOST_SEED = 1000;
const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };

/** Whether a threshold places the patches. */
export const hasTheta = (model) => ENTROPY_RULES.includes(model.patching.rule);
/** Whether it is one of the entropy itself, not of its rise alone. */
export const hasLine = (model) => hasTheta(model) && model.patching.rule !== "monotonic";
/** Whether the entropy of each byte is known. */
export const hasEntropies = (model) => hasTheta(model) || model.kind === "entropy";
/** Whether there are patches: an H-Net finds its own, without a rule. */
export const hasPatches = (model) => model.patching.rule !== "none" || model.kind === "hnet";

/** Tie each slider to its number; `changed` is called with the name of a field that a person moved. */
export function tie(changed) {
  for (const name of PAIRS) {
    const [number, slider] = [at(name), at(`${name}-slider`)];
    slider.value = number.value;
    number.addEventListener("input", () => {
      slider.value = number.value;
      changed(name);
    });
    slider.addEventListener("input", () => {
      number.value = slider.value;
      changed(name);
    });
  }
}

/** Set a number and its slider. */
export function set(name, value) {
  at(name).value = value;
  at(`${name}-slider`).value = value;
}

/** Begin with the threshold of a model. */
export function offerTheta(model) {
  at("theta-field").hidden = !hasTheta(model);
  if (!hasTheta(model)) return;
  const falls = model.patching.rule === "monotonic"; // a rise may be below zero
  for (const id of ["theta", "theta-slider"]) {
    at(id).min = falls ? -6 : 0;
    at(id).max = 6;
  }
  resetTheta(model);
}

export function resetTheta(model) {
  set("theta", shortTheta(model));
}

/** The threshold in force; null for models without one. */
export function theta(model) {
  if (!hasTheta(model)) return null;
  return at("theta").value === shortTheta(model) ? model.patching.theta : Number(at("theta").value);
}

// So many digits as anybody reads; the threshold of training is asked for by leaving it out.
const shortTheta = (model) => String(Number(model.patching.theta.toFixed(3)));

/** The first field that holds what cannot be asked for; null when all are well. */
export function faulty() {
  return PAIRS.map(at).find((field) => !field.closest("[hidden]") && !field.checkValidity()) ?? null;
}

/** The fields of a request that both views share. */
export function request(model) {
  if (at("reseed").checked) set("seed", Math.floor(Math.random() * MOST_SEED));
  const stop = at("stop").value.split("\n").filter(Boolean).map(unescaped);
  return {
    model: model.id,
    temperature: Number(at("temperature").value),
    top_p: Number(at("top-p").value),
    max_tokens: Number(at("length").value),
    seed: Number(at("seed").value),
    ...(stop.length ? { stop } : {}),
    ...(hasTheta(model) && at("theta").value !== shortTheta(model) ? { theta: theta(model) } : {}),
    utf8: at("utf8").checked,
    stream: true,
    stream_options: { include_usage: true },
    details: true,
  };
}

/** A line of a field as text: a line cannot hold its own end. */
function unescaped(line) {
  return line.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);
}
