"""What kind of text a stretch of bytes is: prose, code, mathematics, or a script; a rule of thumb, linear and pure.

A document is looked at in windows of 256 bytes. Characters are found in the bytes, and the bytes of a window are
counted by what their characters are. These counts alone decide, by the first of these rules that holds:

- binary: a tenth of the bytes or more are no valid UTF-8, or control characters;
- mathematics: 3% or more belong to operators beyond ASCII, are ``^``, or begin a command as in ``\\alpha``;
- a script: half of the letters or more, and more than of any other, belong to that script, Latin excepted;
- numbers and marks: less than a fifth of what is not blank is letters;
- code: 10% or more of what is not blank is marks that prose seldom has;
- Latin prose: anything else.
"""

import numpy as np

WINDOW = 256
"""Bytes."""
BINARY_SHARE = 0.10
MATHEMATICS_SHARE = 0.03
SCRIPT_SHARE = 0.50
LETTERS_SHARE = 0.20
CODE_SHARE = 0.10

SCRIPTS = (
    "Greek",
    "Cyrillic",
    "Hebrew",
    "Arabic",
    "Indic",
    "Thai and Lao",
    "Chinese and Japanese",
    "Korean",
    "other scripts",
)
TYPES = ("Latin prose", "code", "mathematics", *SCRIPTS, "numbers and marks", "binary")
"""Names of the content types; elsewhere a type is its place in this list."""

_LATIN, _CODE_MARK, _OTHER_MARK, _BLANK, _CONTROL, _OPERATOR = range(6)
_FIRST_SCRIPT = 6
_CLASSES = _FIRST_SCRIPT + len(SCRIPTS)
_OTHER_SCRIPT = _CLASSES - 1
_CODE_MARKS = b"#$%&*+/:;<=>@[\\]^_`{|}~()"

# First code point of a range, and what its characters are, up to the next range.
_RANGES = [
    (0x80, _CONTROL),
    (0xA0, _OTHER_MARK),
    (0xAC, _OPERATOR),
    (0xAD, _OTHER_MARK),
    (0xB1, _OPERATOR),
    (0xB2, _OTHER_MARK),
    (0xC0, _LATIN),
    (0xD7, _OPERATOR),
    (0xD8, _LATIN),
    (0xF7, _OPERATOR),
    (0xF8, _LATIN),
    (0x370, _FIRST_SCRIPT + SCRIPTS.index("Greek")),
    (0x400, _FIRST_SCRIPT + SCRIPTS.index("Cyrillic")),
    (0x530, _OTHER_SCRIPT),
    (0x590, _FIRST_SCRIPT + SCRIPTS.index("Hebrew")),
    (0x600, _FIRST_SCRIPT + SCRIPTS.index("Arabic")),
    (0x700, _OTHER_SCRIPT),
    (0x750, _FIRST_SCRIPT + SCRIPTS.index("Arabic")),
    (0x780, _OTHER_SCRIPT),
    (0x8A0, _FIRST_SCRIPT + SCRIPTS.index("Arabic")),
    (0x900, _FIRST_SCRIPT + SCRIPTS.index("Indic")),
    (0xE00, _FIRST_SCRIPT + SCRIPTS.index("Thai and Lao")),
    (0xF00, _OTHER_SCRIPT),
    (0x1100, _FIRST_SCRIPT + SCRIPTS.index("Korean")),
    (0x1200, _OTHER_SCRIPT),
    (0x1C80, _FIRST_SCRIPT + SCRIPTS.index("Cyrillic")),
    (0x1C90, _OTHER_SCRIPT),
    (0x1D00, _LATIN),
    (0x1F00, _FIRST_SCRIPT + SCRIPTS.index("Greek")),
    (0x2000, _OTHER_MARK),
    (0x2190, _OPERATOR),  # arrows and mathematical operators
    (0x2300, _OTHER_MARK),
    (0x27C0, _OPERATOR),
    (0x2800, _OTHER_MARK),
    (0x2900, _OPERATOR),
    (0x2B00, _OTHER_MARK),
    (0x2C00, _OTHER_SCRIPT),
    (0x2C60, _LATIN),
    (0x2C80, _OTHER_SCRIPT),
    (0x2DE0, _FIRST_SCRIPT + SCRIPTS.index("Cyrillic")),
    (0x2E00, _OTHER_MARK),
    (0x2E80, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0x3000, _OTHER_MARK),
    (0x3040, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0x3130, _FIRST_SCRIPT + SCRIPTS.index("Korean")),
    (0x3190, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0xA000, _OTHER_SCRIPT),
    (0xA640, _FIRST_SCRIPT + SCRIPTS.index("Cyrillic")),
    (0xA6A0, _OTHER_SCRIPT),
    (0xA720, _LATIN),
    (0xA800, _OTHER_SCRIPT),
    (0xA8E0, _FIRST_SCRIPT + SCRIPTS.index("Indic")),
    (0xA900, _OTHER_SCRIPT),
    (0xA960, _FIRST_SCRIPT + SCRIPTS.index("Korean")),
    (0xA980, _OTHER_SCRIPT),
    (0xAC00, _FIRST_SCRIPT + SCRIPTS.index("Korean")),
    (0xD800, _CONTROL),  # surrogates
    (0xE000, _OTHER_MARK),
    (0xF900, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0xFB00, _LATIN),
    (0xFB1D, _FIRST_SCRIPT + SCRIPTS.index("Hebrew")),
    (0xFB50, _FIRST_SCRIPT + SCRIPTS.index("Arabic")),
    (0xFE00, _OTHER_MARK),
    (0xFE70, _FIRST_SCRIPT + SCRIPTS.index("Arabic")),
    (0xFEFF, _OTHER_MARK),
    (0xFF21, _LATIN),
    (0xFF5B, _OTHER_MARK),
    (0xFF66, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0xFFA0, _FIRST_SCRIPT + SCRIPTS.index("Korean")),
    (0xFFE0, _OTHER_MARK),
    (0x10000, _OTHER_SCRIPT),
    (0x1D400, _OPERATOR),  # mathematical letters
    (0x1D800, _OTHER_SCRIPT),
    (0x1F000, _OTHER_MARK),  # pictures
    (0x20000, _FIRST_SCRIPT + SCRIPTS.index("Chinese and Japanese")),
    (0x32000, _OTHER_MARK),
    (0x110000, _CONTROL),
]
_RANGE_STARTS = np.array([start for start, _ in _RANGES])
_RANGE_CLASSES = np.array([kind for _, kind in _RANGES], np.uint8)


def _ascii_classes() -> np.ndarray:
    """uint8 [128]."""
    classes = np.full(128, _OTHER_MARK, np.uint8)
    classes[:32] = classes[127] = _CONTROL
    classes[list(b" \t\n\r\f")] = _BLANK
    classes[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")] = _LATIN
    classes[list(_CODE_MARKS)] = _CODE_MARK
    return classes


_ASCII_CLASSES = _ascii_classes()


def window_starts(sizes: np.ndarray) -> np.ndarray:
    """int64 [W]: where windows begin in documents of ``sizes`` bytes (int64 [D]) that stand one behind the other."""
    counts = -(-sizes // WINDOW)
    begins = np.cumsum(sizes) - sizes
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts: np.ndarray = np.repeat(begins, counts) + WINDOW * inside
    return starts


def content_types(text: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """uint8 [W]: the place in TYPES of each window of ``window_starts(sizes)``.

    text uint8 [T] holds documents of ``sizes`` bytes (int64 [D], sum T) one behind the other. A character belongs to
    the window of its first byte; no document has a say in the type of another.
    """
    starts = window_starts(sizes)
    ends = np.cumsum(sizes)
    places, classes = _characters(text, ends)
    window = np.searchsorted(starts, places, side="right") - 1
    lengths = np.diff(places, append=len(text))
    cells = np.bincount(window * _CLASSES + classes, lengths, minlength=len(starts) * _CLASSES)
    counts = cells.astype(np.int64).reshape(-1, _CLASSES)
    commands = places[_command_begins(text, places, ends)]
    counts[:, _OPERATOR] += np.bincount(
        np.searchsorted(starts, commands, side="right") - 1, minlength=len(starts)
    ) + np.add.reduceat(np.append(text == ord("^"), False), starts).astype(np.int64)
    return _judged(counts)


def _characters(text: np.ndarray, document_ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where characters begin, int64 [C], and what they are, uint8 [C]. A byte of no valid character is one itself."""
    padded = np.append(text, np.zeros(3, np.uint8)).astype(np.int64)
    continues = padded & 0xC0 == 0x80
    classes = np.full(len(text), _CONTROL, np.uint8)
    begins = np.ones(len(text), bool)
    ascii_ = np.flatnonzero(text < 128)
    classes[ascii_] = _ASCII_CLASSES[text[ascii_]]
    for length, low, high, smallest in ((2, 0xC2, 0xE0, 0x80), (3, 0xE0, 0xF0, 0x800), (4, 0xF0, 0xF5, 0x10000)):
        at = np.flatnonzero((text >= low) & (text < high))
        ends = document_ends[np.searchsorted(document_ends, at, side="right")]
        whole = at + length <= ends
        point = padded[at] & (0xFF >> (length + 1))
        for offset in range(1, length):
            whole &= continues[at + offset]
            point = point << 6 | padded[at + offset] & 0x3F
        whole &= point >= smallest
        at, point = at[whole], point[whole]
        classes[at] = _RANGE_CLASSES[np.searchsorted(_RANGE_STARTS, point, side="right") - 1]
        for offset in range(1, length):
            begins[at + offset] = False
    places = np.flatnonzero(begins)
    return places, classes[places]


def _command_begins(text: np.ndarray, places: np.ndarray, document_ends: np.ndarray) -> np.ndarray:
    """bool [C]: a backslash before two ASCII letters of its document, as in ``\\frac``; ``\\n`` before a word is taken
    for one.
    """
    begins = np.zeros(len(places), bool)
    here = text[places]
    letter = (_ASCII_CLASSES[here & 0x7F] == _LATIN) & (here < 128)
    at = np.flatnonzero((here[:-2] == ord("\\")) & letter[1:-1] & letter[2:])
    begins[at] = places[at + 2] < document_ends[np.searchsorted(document_ends, places[at], side="right")]
    return begins


def _judged(counts: np.ndarray) -> np.ndarray:
    """uint8 [W] from int64 [W, classes]: the rules in the order in which the module's text lists them."""
    total = counts.sum(1)
    solid = total - counts[:, _BLANK]
    scripts = counts[:, _FIRST_SCRIPT:]
    letters = scripts.sum(1) + counts[:, _LATIN]
    greatest = scripts.argmax(1)
    in_script = (scripts.max(1) >= SCRIPT_SHARE * letters) & (scripts.max(1) > 0)
    rules = [
        (counts[:, _CONTROL] >= BINARY_SHARE * total, TYPES.index("binary")),
        (counts[:, _OPERATOR] >= MATHEMATICS_SHARE * total, TYPES.index("mathematics")),
        (in_script & (letters >= LETTERS_SHARE * solid), TYPES.index(SCRIPTS[0]) + greatest),
        (letters < LETTERS_SHARE * solid, TYPES.index("numbers and marks")),
        (counts[:, _CODE_MARK] >= CODE_SHARE * solid, TYPES.index("code")),
    ]
    return np.asarray(
        np.select([rule for rule, _ in rules], [kind for _, kind in rules], TYPES.index("Latin prose")), np.uint8
    )
