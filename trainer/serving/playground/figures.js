/** How fast it goes, and how much it was. */

const at = (id) => document.getElementById(id);

export class Figures {
  #asked = performance.now();
  #first = null;
  #counts = { prompt: [0, 0], text: [0, 0] };
  #patched;
  #next = 0;

  /** `patched`: whether the model has patches. */
  constructor(patched) {
    this.#patched = patched;
    for (const id of ["bytes-rate", "patches-rate", "patch-size", "first-byte", "prompt-total", "text-total"]) {
      at(id).textContent = "–";
    }
  }

  get written() {
    return this.#counts.text[0];
  }

  /** Take entries of `details` at the moment when they have come. */
  count(details) {
    for (const { prompt, starts } of details) {
      const counts = this.#counts[prompt ? "prompt" : "text"];
      counts[0] += 1;
      counts[1] += starts;
    }
    if (this.#first === null && this.written) {
      this.#first = performance.now();
      at("first-byte").textContent = seconds((this.#first - this.#asked) / 1000);
    }
  }

  /** Show them, at most a few times a second: nobody reads faster. */
  show(now) {
    if (now < this.#next || this.#first === null) return;
    this.#next = now + 250;
    const elapsed = (performance.now() - this.#first) / 1000;
    // The first byte began the clock.
    if (elapsed > 0.2) this.#rates((this.written - 1) / elapsed);
    this.#totals();
  }

  /** Those that the server has at the end, if it came so far. */
  end(usage, rates) {
    if (usage) {
      this.#counts.prompt = [usage.prompt_tokens, usage.patches.prompt];
      this.#counts.text = [usage.completion_tokens, usage.patches.completion];
    }
    if (rates?.bytes_per_second) this.#rates(rates.bytes_per_second);
    this.#totals();
  }

  #rates(rate) {
    const [bytes, patches] = this.#counts.text;
    at("bytes-rate").textContent = digits(rate);
    at("patches-rate").textContent = digits((rate * patches) / bytes);
  }

  #totals() {
    const [bytes, patches] = this.#counts.text;
    if (patches) at("patch-size").textContent = (bytes / patches).toFixed(1);
    for (const [name, [size, parts]] of Object.entries(this.#counts)) {
      const told = counted(size, "byte");
      at(`${name}-total`).textContent = this.#patched ? `${told}, ${counted(parts, "patch", "es")}` : told;
    }
  }
}

export function counted(number, unit, plural = "s") {
  return `${number.toLocaleString("en")} ${unit}${number === 1 ? "" : plural}`;
}

function digits(value) {
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
