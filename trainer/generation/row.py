"""One prompt's decisions while a text is written: what is chosen, when it ends, and what may be shown already.

Free of the model: the loops that run it, plain or with drafts, call ``choose`` and ``push``.
"""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from shared.vocabulary import EOS, OFFSET
from trainer.generation.piece import Ending, Piece
from trainer.generation.sampling import Uniforms, choose
from trainer.generation.settings import GenerateSettings
from trainer.generation.stops import Stops
from trainer.generation.utf8 import Utf8State

if TYPE_CHECKING:
    from torch import Tensor


class _Progress:
    """How far a row is: what its next choice depends on but for the logits."""

    def __init__(self, prompt: bytes, settings: GenerateSettings) -> None:
        self.written = 0
        self.left = settings.length
        self.stops = Stops(settings.stop)
        self.utf8 = Utf8State(prompt) if settings.utf8 else None
        self.ended: Ending | None = None if self.left else "length"

    def push(self, token: int) -> int:
        """Take a token; returns how many of the bytes not shown so far may be shown now."""
        if token == EOS:
            self.ended = "end of document"
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

    Plain writing alternates ``choose`` and ``push`` until ``ended``. Drafts are chosen by the same ``choose`` with the
    tokens drafted before as ``pending``, and so are the tokens that verify them: both see the same draw u[i], stop
    strings and UTF-8 for the i-th token of the row, whichever other rows there are.
    """

    def __init__(self, prompt: bytes, settings: GenerateSettings) -> None:
        self.prompt = prompt
        self._sampling = settings.sampling
        self._uniforms = Uniforms(settings.sampling.seed)
        self._progress = _Progress(prompt, settings)
        self._held: list[Piece] = []

    @property
    def ended(self) -> Ending | None:
        """Why nothing more is to be written; None while there is."""
        return self._progress.ended

    @property
    def written(self) -> int:
        """Bytes pushed, with those of a stop string."""
        return self._progress.written

    @property
    def left(self) -> int:
        """Bytes that may still be written: drafting more is in vain."""
        return 0 if self.ended else self._progress.left

    def choose(self, logits: "Tensor | np.ndarray", pending: Sequence[int] = ()) -> int | None:
        """The next token, a byte's id or EOS; None when there is none to choose because the row has ended.

        With ``pending``, what it would be once these tokens were pushed too. Logits [V] as ``sampling.choose`` takes
        them. Changes nothing: the same arguments choose the same until something is pushed.
        """
        progress = self._progress.after(pending) if pending else self._progress
        if progress.ended is not None:
            return None
        allowed = None if progress.utf8 is None else progress.utf8.allowed(progress.left)
        return choose(logits, self._sampling, self._uniforms[progress.written], allowed)

    def show_prompt(self, starts: Sequence[bool], entropies: Sequence[float] | None = None) -> list[Piece]:
        """The prompt's own pieces, given for each byte whether a patch begins there and the nats about it."""
        nats = [None] * len(self.prompt) if entropies is None else entropies
        return [
            Piece(bytes((byte,)), bool(start), None if about is None else float(about), from_prompt=True)
            for byte, start, about in zip(self.prompt, starts, nats, strict=True)
        ]

    def push(self, token: int, starts: bool = False, entropy: float | None = None) -> list[Piece]:
        """Write a token, EOS too; returns the pieces that are now certain to be shown, all that are left at the end.

        ``starts`` and ``entropy`` are those of a byte; EOS is not shown.
        """
        assert self.ended is None, f"the row has ended: {self.ended}"
        if token != EOS:
            self._held.append(Piece(bytes((token - OFFSET,)), starts, entropy))
        count = self._progress.push(token)
        shown, self._held = self._held[:count], self._held[count:]
        return shown
