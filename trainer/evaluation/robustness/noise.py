"""The five noises of the BLT paper (arXiv 2412.09871, section 6.1, "Noisy Data"), as pure functions of text and seed.

A character is a Unicode code point. What the paper leaves open is decided here, once:

- A share of the characters means that each is drawn independently with that probability. An exact share would round to
  nothing in the short completions of multiple-choice tasks.
- Case is changed as Python's ``str.upper`` and ``str.lower`` do for each character alone, so one may become several.
- Draws depend on the seed, the noise and the whole text, and on nothing else: the same text is noised the same way
  wherever and in whatever order it occurs. They are raw numbers of numpy's Philox generator (Salmon et al. 2011),
  which do not change between versions.
- Bytes that are not UTF-8 count as a character each, and no noise changes, drops or repeats them.
- No text becomes empty.

Linear in characters.
"""

import hashlib
from typing import Literal, get_args

import numpy as np

Noise = Literal["antspeak", "drop", "random-case", "repeat", "upper-case"]
NOISES: tuple[Noise, ...] = get_args(Noise)
"""In the order of the paper."""

DROPPED = 0.1
"""Share of the characters."""
UPPER = 0.5
"""Share of the characters; the others become lower case."""
REPEATED = 0.2
"""Share of the characters."""
MOST = 4
"""Times that a repeated character is written at most."""

_ESCAPED = 0xDC80
"""First code point that ``surrogateescape`` makes of a byte that is not UTF-8; the last is 0xDCFF."""


def noised(text: bytes, noise: Noise, seed: int = 0) -> bytes:
    """A text with one of the noises, the same for the same arguments on every machine."""
    characters = text.decode("utf-8", "surrogateescape")
    if drawn := {"drop": drop, "random-case": random_case, "repeat": repeat}.get(noise):
        changed = drawn(characters, _uniforms(text, noise, seed, len(characters)))
    else:
        changed = antspeak(characters) if noise == "antspeak" else characters.upper()
    return changed.encode("utf-8", "surrogateescape")


def antspeak(text: str) -> str:
    """All upper case, a space between characters: "converts the entire text into uppercase, space-separated
    characters". Spaces are characters too: between words there are three.
    """
    return " ".join(text.upper())


def drop(text: str, uniforms: np.ndarray) -> str:
    """Without those of its N characters whose draw, of N in [0, 1), is below ``DROPPED``: "Randomly removes 10% of the
    characters from the text". If all would go, the first stays.
    """
    codes = _codes(text)
    kept = (uniforms >= DROPPED) | _escaped(codes)
    return _text(codes[kept] if kept.any() else codes[:1])


def random_case(text: str, uniforms: np.ndarray) -> str:
    """Upper case where the draw is below ``UPPER``, else lower: "Converts 50% of the characters to uppercase and 50% to
    lowercase randomly throughout the text". Characters without case are among those drawn and stay.
    """
    different, which = np.unique(_codes(text), return_inverse=True)
    pairs = [case for character in map(chr, different) for case in (character.lower(), character.upper())]
    return "".join(map(pairs.__getitem__, (2 * which + (uniforms < UPPER)).tolist()))


def repeat(text: str, uniforms: np.ndarray) -> str:
    """Those whose draw is below ``REPEATED`` are written 2 to ``MOST`` times, each number equally often: "Repeats 20%
    of the characters up to a maximum of four times". The paper does not say how often each number occurs, nor whether
    the character itself counts; here it does.
    """
    codes = _codes(text)
    chosen = (uniforms < REPEATED) & ~_escaped(codes)
    # A draw below REPEATED is uniform there: what it is within it decides how often.
    times = np.where(chosen, 2 + (uniforms / REPEATED * (MOST - 1)).astype(np.int64), 1)
    return _text(codes.repeat(times))


def _uniforms(text: bytes, noise: Noise, seed: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1)."""
    digest = hashlib.sha256(f"{noise} {seed} ".encode() + text).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _text(codes: np.ndarray) -> str:
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def _escaped(codes: np.ndarray) -> np.ndarray:
    return (codes >= _ESCAPED) & (codes < _ESCAPED + 128)
