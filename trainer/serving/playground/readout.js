/** One character looked at closely, by pointer or by keys. */

import { characterOf, made } from "./passage.js";

export class Readout {
  #pane;
  #line;
  #current = null;

  constructor(pane, line) {
    this.#pane = pane;
    this.#line = line;
    pane.addEventListener("pointerover", ({ target }) => this.#look(target.closest(".c")));
    pane.addEventListener("focus", () => {
      // A click has found its character by itself.
      if (this.#current === null && pane.matches(":focus-visible")) this.#look(pane.querySelector(".c"));
    });
    pane.addEventListener("keydown", (event) => this.#key(event));
    this.clear();
  }

  clear() {
    this.#current?.classList.remove("on");
    this.#current = null;
    this.#line.replaceChildren("Point at a character to look at its bytes.");
  }

  #look(cell) {
    if (cell === null || cell === this.#current) return;
    this.#current?.classList.remove("on");
    this.#current = cell;
    cell.classList.add("on");
    const { text, bytes, kind } = characterOf(cell);
    const name = { newline: "newline", tab: "tab", invalid: "no UTF-8" }[kind] ?? (text === " " ? "space" : text);
    const parts = [made("b", "")];
    parts[0].textContent = name;
    const add = (words) => {
      const part = made("span", "");
      part.textContent = words;
      parts.push(part);
    };
    const each = (told) => bytes.map(told).join(" ");
    if (bytes[0].hex) add(each(({ hex }) => `0x${hex}`));
    if (bytes[0].entropy !== null) add(`${each(({ entropy }) => entropy?.toFixed(2) ?? "–")} nats`);
    if (bytes[0].logprob !== undefined) add(`${each(({ logprob }) => percent(Math.exp(logprob)))} likely`);
    const begins = bytes.flatMap(({ starts }, place) => (starts ? [place + 1] : []));
    if (begins.length) add(bytes.length === 1 ? "begins a patch" : `a patch begins with byte ${begins.join(", ")}`);
    this.#line.replaceChildren(...parts);
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const cells = [...this.#pane.querySelectorAll(".c")];
    const at = cells.indexOf(this.#current);
    const starts = (cell) => cell.classList.contains("starts");
    const found = {
      ArrowLeft: () => cells[at - 1],
      ArrowRight: () => cells[at + 1],
      ArrowUp: () => cells.slice(0, Math.max(at, 0)).findLast(starts),
      ArrowDown: () => cells.slice(at + 1).find(starts),
      Home: () => cells[0],
      End: () => cells.at(-1),
    }[event.key];
    if (found === undefined || cells.length === 0) return;
    event.preventDefault();
    const cell = found() ?? null;
    this.#look(cell);
    cell?.scrollIntoView({ block: "nearest" });
  }
}

function percent(share) {
  return `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)}%`;
}
