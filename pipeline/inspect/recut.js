"use strict";

/**
 * Where patches begin, exactly as the library decides it: positions of the first tokens, ascending, 0 (BOS) first.
 *
 * count: tokens in view: BOS, the bytes, and EOS if the document ends there. entropies: Float32Array of count - 1 nats
 * or more; entropies[t - 1] was known before token t. specials: positions of special ids between the bytes, each of
 * which ends its patch. bytes: Uint8Array of those after BOS, with any one below 0x80 for a special id. settings: rule
 * (entropy, monotonic or entropy_rise), theta, theta_rise, min_length, max_length, whole_characters (may be missing),
 * entropy_dtype and reference_starts, as in a dataset's manifest.
 * All arithmetic is that of fp32. NaN never opens a patch. The boundaries of a beginning are a beginning of the
 * boundaries, so that a document cut off for display is cut into patches as the whole one is.
 */
function recut(count, entropies, settings, specials, bytes) {
  const theta = Math.fround(settings.theta);
  const thetaRise = Math.fround(settings.theta_rise);
  const rounded = settings.entropy_dtype === "float16" ? toHalf : (value) => value;
  const firstRise = settings.reference_starts && settings.rule === "entropy_rise" ? 4 : 3;
  const wants = (t) => {
    if (settings.rule === "entropy") return entropies[t - 1] > theta;
    if (t < firstRise) return settings.reference_starts && t === 2;
    const rise = Math.fround(rounded(entropies[t - 1]) - rounded(entropies[t - 2]));
    if (settings.rule === "monotonic") return rise > theta;
    return entropies[t - 1] > theta && rise > thetaRise;
  };
  const forced = new Set(specials.map((position) => position + 1));
  const cutLength = settings.max_length - (settings.whole_characters ? 3 : 0);
  const starts = [];
  let start = 0;
  let awaited = 0; // continuation bytes before the next character, where characters are kept whole
  for (let t = 0; t < count; t++) {
    const length = t - start;
    if (settings.whole_characters && t > 1) awaited = awaitedAfter(bytes[t - 2], awaited);
    const longEnough = length >= cutLength || (length >= settings.min_length && wants(t));
    if (t <= 1 || forced.has(t) || (longEnough && awaited === 0)) {
      starts.push(t);
      start = t;
    }
  }
  return Int32Array.from(starts);
}

/** Continuation bytes that are still to come after a byte, when so many were awaited before it. */
function awaitedAfter(byte, awaited) {
  if (awaited > 0) return byte >= 0x80 && byte < 0xc0 ? awaited - 1 : 0;
  if (byte < 0xc2 || byte > 0xf4) return 0;
  return byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
}

/** A float32 number rounded to the nearest float16, ties to even. */
function toHalf(value) {
  const magnitude = Math.abs(value);
  if (!(magnitude < 65520)) return Number.isNaN(value) ? value : Math.sign(value) * Infinity;
  const exponent = (new Uint32Array(Float32Array.of(magnitude).buffer)[0] >>> 23) - 127;
  const unit = 2 ** (Math.max(exponent, -14) - 10);
  const whole = magnitude / unit + 2 ** 52 - 2 ** 52; // doubles of this size are whole numbers, rounded ties to even
  return Math.sign(value) * whole * unit;
}

/**
 * Bytes a patch over a whole dataset under the entropy rule with one threshold, from counts of entropies alone.
 *
 * histogram: positions by grid value 0..255; grid: Float32Array of 255 thresholds; firstEntropy: that of a document's
 * first byte, nats; totals: documents and bytes. Exact where theta lies on the grid and no length limit takes hold;
 * between two values of the grid it is interpolated.
 */
function estimatedPatchSize(theta, histogram, grid, firstEntropy, totals) {
  const above = (g) => histogram.slice(g + 1).reduce((sum, count) => sum + count, 0);
  let upper = grid.findIndex((value) => value >= Math.fround(theta));
  if (upper < 0) upper = grid.length - 1;
  const lower = Math.max(upper - 1, 0);
  const span = grid[upper] - grid[lower];
  const share = span > 0 ? Math.min((theta - grid[lower]) / span, 1) : 1;
  const wanted = above(lower) + share * (above(upper) - above(lower));
  // The first byte always begins a patch, wanted or not.
  return totals.bytes / (wanted + (firstEntropy > Math.fround(theta) ? 0 : totals.documents));
}

/**
 * The characters of a byte string: {start, end, text}; text is null for a byte that is part of no valid UTF-8.
 */
function characters(bytes) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const found = [];
  for (let start = 0; start < bytes.length; ) {
    const lead = bytes[start];
    const width = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 0;
    let text = null;
    if (width === 1) text = String.fromCharCode(lead);
    else if (width && start + width <= bytes.length) {
      try {
        text = decoder.decode(bytes.subarray(start, start + width));
      } catch {
        text = null;
      }
    }
    const end = start + (text === null ? 1 : width);
    found.push({ start, end, text });
    start = end;
  }
  return found;
}
