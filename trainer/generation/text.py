"""Bytes as a terminal shows them: whole characters, and patches by colour or set apart by |."""

from collections.abc import Iterable, Iterator
from typing import Literal

from trainer.generation.piece import Piece
from trainer.generation.utf8 import Utf8State

PatchStyle = Literal["none", "marks", "colours"]
MARK = "|"
RESET = "\x1b[0m"
PATCH_COLOURS = ("30;46", "30;47")  # black on cyan, black on white
DIM = "2;"


class Characters:
    """Pieces in, characters out as soon as they are whole, with their bytes; special ids as names in angle brackets.

    Joined they are ``bytes.decode("utf-8", "replace")`` of all bytes: U+FFFD stands for each byte that cannot be part
    of a character, and for each character that is not finished.
    """

    def __init__(self) -> None:
        self._state = Utf8State()
        self._held: list[Piece] = []

    def push(self, piece: Piece) -> Iterator[tuple[str, list[Piece]]]:
        """Take the next piece."""
        if piece.special is not None:
            yield from self.end()
            yield f"<{piece.special}>", [piece]
            return
        (byte,) = piece.byte
        if self._held and not self._state.accepts(byte):
            held, self._held = self._held, []
            yield character(held), held
        self._state.push(byte)
        self._held.append(piece)
        if self._state.complete:
            held, self._held = self._held, []
            yield character(held), held

    def end(self) -> Iterator[tuple[str, list[Piece]]]:
        """What is left, when nothing more can follow."""
        held, self._held, self._state = self._held, [], Utf8State()
        if held:
            yield character(held), held


def characters(pieces: Iterable[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    """Each character of all these pieces, as `Characters` has them."""
    found = Characters()
    for piece in pieces:
        yield from found.push(piece)
    yield from found.end()


def character(pieces: Iterable[Piece]) -> str:
    """The one character that some bytes make, or U+FFFD."""
    return b"".join(piece.byte for piece in pieces).decode("utf-8", "replace")


def text_of(pieces: Iterable[Piece], patches: PatchStyle = "none", terminal: bool = False) -> Iterator[str]:
    """Text to print as it comes, never with half a character.

    A character belongs to the patch of its last byte: where a patch begins inside a character the mark comes before
    it, once even if several begin there. ``marks`` puts | before each patch; ``colours`` gives them two colours in
    turn, dim in the prompt, and none across line ends and after the last. With ``terminal``, control characters other
    than tab and newline are shown by their pictures, so that no text can steer the terminal.
    """
    if patches == "colours":
        yield from _coloured(pieces, terminal)
        return
    for text, of in characters(pieces):
        mark = MARK if patches == "marks" and any(piece.starts for piece in of) else ""
        yield mark + (visible(text) if terminal else text)


def _coloured(pieces: Iterable[Piece], terminal: bool) -> Iterator[str]:
    turn, worn = 1, ""
    for text, of in characters(pieces):
        turn ^= any(piece.starts for piece in of)
        style = f"\x1b[{DIM if of[-1].from_prompt else ''}{PATCH_COLOURS[turn]}m"
        if text == "\n":
            yield (RESET if worn else "") + text
            worn = ""
            continue
        # A new style begins from nothing: otherwise the prompt's dimness would stay.
        change = "" if style == worn else (RESET if worn else "") + style
        worn = style
        yield change + (visible(text) if terminal else text)
    if worn:
        yield RESET


REORDERING = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that show text in another order than it has, and that end lines where no newline is."""


def visible(character: str) -> str:
    """A character that does nothing to a terminal: control codes become their Unicode pictures, or U+FFFD, as
    do characters that reorder their neighbours.
    """
    code = ord(character)
    if code < 0x20 and character not in "\t\n":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0x80 <= code < 0xA0 or character in REORDERING else character
