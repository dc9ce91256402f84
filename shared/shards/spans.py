"""Spans of a row: where special ids stand between its bytes, and which of its tokens are training targets.

A row's body is its tokens but BOS and EOS: bytes of span 1, special id of span 1, bytes of span 2 and so on. A row
without spans is plain text: its body is its bytes, all of them targets. n bytes, S spans, N = n + special ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.vocabulary import VOCABULARY_SIZE, byte_tokens

NO_SPECIAL = -1
LARGEST_ID = np.iinfo(np.int16).max
"""Token ids are int16."""


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of one row, or of a whole document; there is at least one."""

    ends: np.ndarray
    """int64 [S], offset in the text at which each ends; non-decreasing, the last is n. A span may be empty."""
    specials: np.ndarray
    """int32 [S], id that ends the span; NO_SPECIAL: none."""
    losses: np.ndarray
    """bool [S], whether its bytes and its special id are targets. EOS is one if the last span is."""

    @property
    def special_count(self) -> int:
        return int((self.specials != NO_SPECIAL).sum())

    @property
    def last_loss(self) -> bool:
        """Whether EOS after the last span is a target."""
        return bool(self.losses[-1])

    def tokens(self, text: bytes | memoryview | np.ndarray) -> np.ndarray:
        """int16 [N]: the body."""
        named = self.specials != NO_SPECIAL
        return np.insert(byte_tokens(text), self.ends[named], self.specials[named].astype(np.int16))

    def target_mask(self) -> np.ndarray:
        """bool [N], whether each token of the body is a target."""
        return np.repeat(self.losses, self._sizes())

    def target_bytes(self) -> int:
        """Bytes of text among the targets."""
        return int(np.diff(self.ends, prepend=0)[self.losses].sum())

    def split(self, tokens: int) -> tuple["Spans", "Spans", int]:
        """The spans of the first so many tokens of the body, those of the rest, and how many bytes the first have.

        A span that the cut falls in is in both. After all of the body the loss of what follows, EOS, is left.
        """
        if tokens == int(self._sizes().sum()):
            return self, spans_of([(0, None, self.last_loss)]), int(self.ends[-1])
        ends = np.cumsum(self._sizes())
        cut = int(np.searchsorted(ends, tokens, side="left"))  # the span that holds the last of the first tokens
        before = int(ends[cut - 1]) if cut else 0
        inside = tokens - before
        size = int(self.ends[cut - 1] if cut else 0) + inside
        whole = tokens == ends[cut]
        if whole:
            size = int(self.ends[cut])
        kept = slice(0, cut + 1)
        first = Spans(
            np.minimum(self.ends[kept], size),
            np.append(self.specials[:cut], self.specials[cut] if whole else NO_SPECIAL).astype(np.int32),
            self.losses[kept],
        )
        rest = slice(cut + whole, None)
        return first, Spans(self.ends[rest] - size, self.specials[rest], self.losses[rest]), size

    def tokens_before(self, size: int) -> int:
        """Tokens of the body up to so many bytes, without special ids that come right after them."""
        return size + int(((self.specials != NO_SPECIAL) & (self.ends < size)).sum())

    def _sizes(self) -> np.ndarray:
        """int64 [S]: tokens of each span."""
        lengths: np.ndarray = np.diff(self.ends, prepend=0) + (self.specials != NO_SPECIAL)
        return lengths

    def as_json(self) -> list[dict[str, Any]]:
        """As shards store them."""
        return [
            {"end": end, "special": None if special == NO_SPECIAL else special, "loss": loss}
            for end, special, loss in zip(self.ends.tolist(), self.specials.tolist(), self.losses.tolist())
        ]


def spans_of(values: Sequence[tuple[int, int | None, bool]]) -> Spans:
    """Spans from (end, special id or None, loss) each."""
    ends, specials, losses = zip(*values)
    ids = [NO_SPECIAL if special is None else special for special in specials]
    return Spans(np.array(ends, np.int64), np.array(ids, np.int32), np.array(losses, bool))


def joined_spans(parts: Sequence[tuple[Spans, int]]) -> Spans:
    """The spans of a document from those of its parts, each with the bytes of its part; what a cut divided is whole."""
    offsets = np.cumsum([0, *(size for _, size in parts)])
    ends = np.concatenate([spans.ends + offset for (spans, _), offset in zip(parts, offsets)])
    specials = np.concatenate([spans.specials for spans, _ in parts])
    losses = np.concatenate([spans.losses for spans, _ in parts])
    # An empty span without special id says something only of EOS, and nothing where the span before it says the same.
    empty = (specials == NO_SPECIAL) & (np.diff(ends, prepend=0) == 0)
    places = np.flatnonzero(~empty[:-1])
    if not len(places) or not empty[-1] or losses[-1] != losses[places[-1]]:
        places = np.append(places, len(ends) - 1)
    ends, specials, losses = ends[places], specials[places], losses[places]
    # A span that no special id ends goes on in the next one if both are alike.
    kept = np.ones(len(ends), bool)
    kept[:-1] = (specials[:-1] != NO_SPECIAL) | (losses[:-1] != losses[1:])
    return Spans(ends[kept], specials[kept], losses[kept])


def spans_problem(spans: Spans, size: int) -> str | None:
    """Why these are no spans of a text of so many bytes; None if they are."""
    if not len(spans.ends):
        return "an empty list of spans; plain text has null"
    if int(spans.ends[-1]) != size or int(spans.ends[0]) < 0 or (np.diff(spans.ends) < 0).any():
        return f"spans that end at {_shown(spans.ends)}; they must not decrease, and the last must end at {size}"
    ids = spans.specials[spans.specials != NO_SPECIAL]
    if len(ids) and (int(ids.min()) < VOCABULARY_SIZE or int(ids.max()) > LARGEST_ID):
        return f"spans with the special ids {_shown(np.unique(ids))}; named ones are {VOCABULARY_SIZE} and above"
    return None


def _shown(values: np.ndarray) -> str:
    shown = ", ".join(str(value) for value in values[:8].tolist())
    return shown + (", ..." if len(values) > 8 else "")
