"""One prompt's decisions while a text is written: what is chosen, when it ends, and what may be shown already.

Free of the model: the loops that run it, plain or with drafts, call ``choose_next`` and ``push``.
"""

from array import array
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shared.vocabulary import BOS, EOS, OFFSET, VOCABULARY_SIZE, byte_tokens, is_special, token_bytes
from trainer.generation.piece import Ending, Piece, TokenScore
from trainer.generation.sampling import Draw, Uniforms, choose
from trainer.generation.settings import GenerateSettings
from trainer.generation.utf8 import LONGEST, Utf8State

if TYPE_CHECKING:
    from torch import Tensor


# ---- Ending a text before a stop string, while showing every byte as early as it is certain.


class Shown(NamedTuple):
    """What one more byte decides."""

    text: bytes
    """The bytes that are now certain to be shown, in order."""
    found: bool
    """Whether a stop string has just ended: it is not shown, and neither is what would follow."""


class Stops:
    """Incremental search for any of some strings.

    The one that ends first is found; of several that end with the same byte, the longest. Bytes at the end that may be
    the beginning of a stop string are held back until that is decided.
    """

    def __init__(self, stop: Sequence[bytes] = ()) -> None:
        if b"" in stop:
            raise ValueError("an empty stop string would end every text before it begins")
        self._stops = tuple(sorted(set(stop), key=len, reverse=True))
        self._falls = tuple(map(_falls, self._stops))
        self._matched = (0,) * len(self._stops)
        """Of each, how much of its beginning the text ends with."""
        self.held = b""
        """What is held back: the longest end of the text that begins a stop string."""

    def push(self, byte: int) -> Shown:
        """Take the next byte of the text."""
        held, matched = self.held + bytes((byte,)), []
        for stop, falls, length in zip(self._stops, self._falls, self._matched):
            while length and stop[length] != byte:
                length = falls[length - 1]
            length += stop[length] == byte
            if length == len(stop):  # the longest that ends here, since they are in this order
                self.held, self._matched = b"", (0,) * len(self._stops)
                return Shown(held[: -len(stop)], True)
            matched.append(length)
        self._matched = tuple(matched)
        begin = len(held) - max(matched, default=0)
        self.held = held[begin:]
        return Shown(held[:begin], False)


@lru_cache(maxsize=256)
def _falls(stop: bytes) -> "array[int]":
    """For each beginning of a stop string the longest shorter one that it ends with (Knuth, Morris & Pratt 1977).

    Linear in its length, and shared by all rows that stop there.
    """
    falls, length = array("i", bytes(4 * len(stop))), 0
    for place in range(1, len(stop)):
        while length and stop[place] != stop[length]:
            length = falls[length - 1]
        length += stop[place] == stop[length]
        falls[place] = length
    return falls


class _Progress:
    """How far a row is: what its next choice depends on but for the logits."""

    def __init__(self, prompt: bytes, settings: GenerateSettings, end: int | None) -> None:
        self.end = end
        self.written = 0
        self.left = settings.length
        self.stops = Stops(settings.stop)
        self.utf8 = Utf8State(prompt) if settings.utf8 else None
        self.ended: Ending | None = None if self.left else "length"

    def push(self, token: int) -> int:
        """Take a token; returns how many of the bytes not shown so far may be shown now."""
        if token in (EOS, self.end):
            self.ended = "end of document" if token == EOS else "end of turn"
            return len(self.stops.held)
        self.written, self.left = self.written + 1, self.left - 1
        if self.utf8 is not None:
            self.utf8.push(token - OFFSET)
        text, found = self.stops.push(token - OFFSET)
        if found:
            self.ended = "stop"
        elif self.left == 0:
            self.ended = "length"
            return len(text) + len(self.stops.held)
        return len(text)

    def after(self, tokens: Sequence[int]) -> "_Progress":
        """Where a row would be once these were written too; one that has ended stays there."""
        ahead = copy(self)
        ahead.stops, ahead.utf8 = copy(self.stops), copy(self.utf8)
        for token in tokens:
            if ahead.ended is None:
                ahead.push(token)
        return ahead


class Row:
    """A text that grows from a prompt.

    Plain writing alternates ``choose_next`` and ``push`` until ``ended``. Drafts are chosen in the same way with the
    tokens drafted before as ``pending``, and so are the tokens that verify them: both see the same draw u[i], stop
    strings and UTF-8 for the i-th token of the row, whichever other rows there are.
    """

    def __init__(
        self,
        prompt: bytes | np.ndarray,
        settings: GenerateSettings,
        specials: Sequence[str] = (),
        end: int | None = None,
    ) -> None:
        """The prompt is a text, or tokens int16 that begin with BOS and may hold special ids of these names.

        ``end`` is a special id that ends the row.
        """
        if isinstance(prompt, bytes):
            prompt = np.concatenate([np.array([BOS], np.int16), byte_tokens(prompt)])
        self.tokens = prompt
        """int16 [N]."""
        self._specials = specials
        self.settings = settings
        self._sampling = settings.sampling
        self._uniforms = Uniforms(settings.sampling.seed)
        last = int(np.flatnonzero(is_special(prompt))[-1])
        # A special id ends the character before it, whatever that was. So does a lead byte: the last bytes of a prompt
        # say where in a character it ends.
        self._progress = _Progress(token_bytes(prompt[max(last, len(prompt) - LONGEST) :]), settings, end)
        self._held: list[Piece] = []
        self.end_score: TokenScore | None = None
        """What the model thought of the special id that ended the row, where it was asked and one did."""

    @property
    def ended(self) -> Ending | None:
        """Why nothing more is to be written; None while there is."""
        return self._progress.ended

    @property
    def end(self) -> int | None:
        """The special id that ends it, where one does."""
        return self._progress.end

    @property
    def written(self) -> int:
        """Bytes pushed, with those of a stop string."""
        return self._progress.written

    @property
    def left(self) -> int:
        """Bytes that may still be written: drafting more is in vain."""
        return 0 if self.ended else self._progress.left

    def draw(self, pending: Sequence[int] = ()) -> Draw | None:
        """How the next token is chosen: a byte's id, EOS or ``end``; None when there is none because the row has ended.

        With ``pending``, how it would be once these tokens were pushed too. Changes nothing: the same arguments give
        the same until something is pushed.
        """
        progress = self._progress.after(pending) if pending else self._progress
        if progress.ended is not None:
            return None
        allowed = None if progress.utf8 is None else progress.utf8.allowed(progress.left)
        return Draw(self._sampling, self._uniforms[progress.written], allowed, progress.end)

    def show_prompt(
        self,
        first: int,
        starts: Sequence[bool],
        entropies: Sequence[float] | None = None,
        scores: Sequence[TokenScore] | None = None,
    ) -> list[Piece]:
        """The pieces of the prompt's own tokens from number ``first`` (1 or more: BOS is none), given for each whether
        a patch begins there, the nats about it, and what the model thought of it.
        """
        tokens = self.tokens[first : first + len(starts)].tolist()
        return [
            Piece(
                b"" if is_special(token) else bytes((token - OFFSET,)),
                bool(start),
                None if entropies is None else float(entropies[place]),
                from_prompt=True,
                special=self._specials[token - VOCABULARY_SIZE] if token >= VOCABULARY_SIZE else None,
                score=None if scores is None else scores[place],
            )
            for place, (token, start) in enumerate(zip(tokens, starts, strict=True))
        ]

    def push(
        self, token: int, starts: bool = False, entropy: float | None = None, score: TokenScore | None = None
    ) -> list[Piece]:
        """Write a token, EOS and ``end`` too; returns the pieces that are now certain to be shown: all, at the end.

        The others are those of a byte; what ends the row is not shown.
        """
        assert self.ended is None, f"the row has ended: {self.ended}"
        if not is_special(token):
            self._held.append(Piece(bytes((token - OFFSET,)), starts, entropy, score=score))
        else:
            self.end_score = score
        count = self._progress.push(token)
        shown, self._held = self._held[:count], self._held[count:]
        return shown


def choose_next(
    rows: Sequence[Row], logits: "Tensor | np.ndarray", pending: Sequence[Sequence[int]] | None = None
) -> list[int | None]:
    """The next token of each row from logits [R, V], after its ``pending`` tokens; None for rows that have ended."""
    draws = [row.draw(pending[place] if pending else ()) for place, row in enumerate(rows)]
    going = [place for place, draw in enumerate(draws) if draw is not None]
    chosen: list[int | None] = [None] * len(rows)
    if going:
        scores = np.asarray(logits)
        tokens = choose(
            scores if len(going) == len(rows) else scores[going], [draw for draw in draws if draw is not None]
        )
        for place, token in zip(going, tokens):
            chosen[place] = token
    return chosen
