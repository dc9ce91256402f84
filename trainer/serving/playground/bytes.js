/** Bytes into characters that can be shown, as the server decodes them: U+FFFD for what is none. */

/** Entries of `details`, grouped: {text, bytes}, the text of one character and the entries of its bytes. */
export function characters(details) {
  const found = [];
  for (let at = 0; at < details.length; ) {
    const { special, hex } = details[at];
    if (special !== undefined) {
      found.push({ text: `<${special}>`, bytes: [details[at]], kind: "special" });
      at += 1;
      continue;
    }
    const [length, whole] = extent(details, at);
    const bytes = details.slice(at, at + length);
    found.push(whole ? shown(bytes) : { text: "\ufffd", bytes, kind: "invalid" });
    at += length;
  }
  return found;
}

/** How many bytes belong to the character that begins here, and whether they are all of it. */
function extent(details, at) {
  const lead = parseInt(details[at].hex, 16);
  if (lead < 0x80) return [1, true];
  if (lead < 0xc2 || lead > 0xf4) return [1, false];
  const wanted = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Nothing overlong, no surrogates, at most U+10FFFF (RFC 3629): only the first continuation byte tells.
  let low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
  let high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
  for (let length = 1; length < wanted; length += 1) {
    const next = parseInt(details[at + length]?.hex, 16); // NaN where there is none, or a special id
    if (!(low <= next && next <= high)) return [length, false];
    [low, high] = [0x80, 0xbf];
  }
  return [wanted, true];
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
// What reorders its neighbours or ends a line where no newline is.
const REORDERING = /[\u0080-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/;

/** A whole character; one that would disturb the page as a picture of itself. */
function shown(bytes) {
  const text = decoder.decode(Uint8Array.from(bytes, ({ hex }) => parseInt(hex, 16)));
  const code = text.codePointAt(0);
  if (text === "\n") return { text, bytes, kind: "newline" };
  if (text === "\t") return { text, bytes, kind: "tab" };
  if (code < 0x20) return { text: String.fromCharCode(0x2400 + code), bytes, kind: "control" };
  if (code === 0x7f) return { text: "\u2421", bytes, kind: "control" };
  if (REORDERING.test(text)) return { text: "\ufffd", bytes, kind: "control" };
  return { text, bytes, kind: "" };
}
