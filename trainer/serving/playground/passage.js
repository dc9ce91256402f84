/** Text in its patches: an element that only grows. */

import { characters } from "./bytes.js";

/** Nats: the entropy of a byte of which nothing is known, and the height of the bars. */
export const MOST_ENTROPY = Math.log(256);

const LONGEST_BLOCK = 800; // characters: what the browser lays out anew for each that comes
const known = new WeakMap();

/** The character that an element shows: {text, bytes, kind}. */
export function characterOf(element) {
  return known.get(element);
}

export class Passage {
  #tint = 1;
  #line = null;
  #caret = made("span", "caret");

  constructor() {
    this.element = made("div", "passage");
  }

  /** Show more bytes, all at once. */
  append(details) {
    for (const character of characters(details)) {
      // A line is a block of its own, so that the browser lays out no other when text is added.
      if (this.#line === null) this.#newLine();
      else if (this.#line.childElementCount % LONGEST_BLOCK === 0) this.#goOnBelow();
      this.#line.append(this.#cell(character));
      if (character.kind === "newline") this.#line = null;
    }
    if (this.#line === null) this.#newLine();
    this.#line.append(this.#caret);
  }

  /** Nothing more will come. */
  end() {
    this.#caret.remove();
  }

  #newLine(direction = "auto") {
    this.#line = made("div", "line");
    this.#line.dir = direction;
    this.element.append(this.#line);
  }

  /** End a long line where it is wrapped anyway, and go on in another block, which looks the same. */
  #goOnBelow() {
    const long = this.#line;
    const cells = [...long.querySelectorAll(".c")];
    const bottom = cells.at(-1).offsetTop;
    const wrapped = cells.findLastIndex((cell) => cell.offsetTop < bottom) + 1;
    if (wrapped === 0) return; // one line on the screen, however long
    this.#newLine(getComputedStyle(long).direction);
    this.#line.append(...cells.slice(wrapped));
  }

  #cell(character) {
    const { text, bytes, kind } = character;
    const starts = bytes.flatMap((byte, place) => (byte.starts ? [place] : []));
    // A character is shown with the patch of its last byte.
    if (starts.length) this.#tint ^= 1;
    const cell = made("span", `c n${bytes.length} ${this.#tint ? "two" : "one"} ${kind}`);
    cell.textContent = text;
    cell.dataset.hex = bytes.map(({ hex }) => hex).join("");
    if (starts.length) {
      cell.classList.add("starts", ...starts.map((place) => `k${place}`));
      cell.dataset.starts = starts.join(" ");
    }
    if (bytes[0].prompt) cell.classList.add("given");
    bytes.forEach(({ entropy }, place) => {
      if (entropy !== null) cell.style.setProperty(`--e${place}`, Math.min(entropy / MOST_ENTROPY, 1).toFixed(3));
    });
    known.set(cell, character);
    return cell;
  }
}

export function made(name, kind) {
  const element = document.createElement(name);
  element.className = kind;
  return element;
}
