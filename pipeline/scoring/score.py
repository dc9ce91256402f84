"""Records through the entropy model: the chunks of each come out with the entropies of their tokens."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipeline.records import CHUNK, Record
from pipeline.scoring.cut import Chunk, spans_in_turn, unscored
from shared.vocabulary import BOS

if TYPE_CHECKING:
    from shared.models.scoring import Inputs, Scorer


def scored(records: Iterable[Record], scorer: "Scorer | None") -> Iterator[Chunk]:
    """Each record in chunks with entropies, or without where there is no scorer; memory is that of a few chunks."""
    if scorer is None:
        yield from unscored(records)
        return
    waiting: deque[_Waiting] = deque()

    def inputs() -> "Iterator[Inputs]":
        from shared.models.scoring import Inputs

        for record in records:
            waiting.append(_Waiting(record))
            yield Inputs(record.tokens + 1, waiting[-1].tokens())

    found: list[np.ndarray] = []
    count = 0
    for piece, last in scorer.score_pieces(inputs()):
        found.append(piece)
        count += len(piece)
        if last or count >= CHUNK:
            document = waiting[0]
            entropies = found[0] if len(found) == 1 else np.concatenate(found)
            yield document.chunk(count, entropies, last)
            found, count = [], 0
            if last:
                waiting.popleft()


class _Waiting:
    """A record whose text has gone into the scorer, and not yet come out."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._held = bytearray()
        self._begun = False
        self._spans = spans_in_turn(record)

    def tokens(self) -> Iterator[np.ndarray]:
        """int16 [N] each: BOS and the body."""
        yield np.array([BOS], np.int16)
        for chunk in unscored([self.record]):
            self._held += chunk.text
            yield chunk.body

    def chunk(self, tokens: int, entropies: np.ndarray, last: bool) -> Chunk:
        """The next ``tokens`` of the document, of which BOS is the first."""
        body = tokens - (not self._begun)
        self._begun = True
        spans = self._spans(body, last)
        size = body if spans is None else int(spans.ends[-1])
        text = bytes(self._held[:size])
        del self._held[:size]
        return Chunk(self.record, text, entropies, last, spans)
