"""Records through the entropy model: the chunks of each come out with the entropies of their tokens."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cutting import Chunk, unscored
from pipeline.records import CHUNK, Record, chunks_of
from shared.vocabulary import BOS, byte_tokens

if TYPE_CHECKING:
    from shared.scoring import Inputs, Scorer


def scored(records: Iterable[Record], scorer: "Scorer | None") -> Iterator[Chunk]:
    """Each record in chunks with entropies, or without where there is no scorer; memory is that of a few chunks."""
    if scorer is None:
        yield from unscored(records)
        return
    waiting: deque[_Waiting] = deque()

    def inputs() -> "Iterator[Inputs]":
        from shared.scoring import Inputs

        for record in records:
            waiting.append(_Waiting(record))
            yield Inputs(len(record.text) + 1, waiting[-1].tokens())

    found: list[np.ndarray] = []
    count = 0
    for piece, last in scorer.score_pieces(inputs()):
        found.append(piece)
        count += len(piece)
        if last or count >= CHUNK:
            document = waiting[0]
            entropies = found[0] if len(found) == 1 else np.concatenate(found)
            yield Chunk(document.record, document.text(count), entropies, last)
            found, count = [], 0
            if last:
                waiting.popleft()


class _Waiting:
    """A record whose text has gone into the scorer, and not yet come out."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._held = bytearray()
        self._begun = False

    def tokens(self) -> Iterator[np.ndarray]:
        """int16 [N] each: BOS and the bytes."""
        yield np.array([BOS], np.int16)
        for chunk in chunks_of(self.record.text):
            self._held += chunk
            yield byte_tokens(chunk)

    def text(self, tokens: int) -> bytes:
        """The bytes of the next ``tokens``, of which BOS is the first."""
        size = tokens - (not self._begun)
        self._begun = True
        text = bytes(self._held[:size])
        del self._held[:size]
        return text
