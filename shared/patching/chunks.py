"""Patch lengths of a document that comes in chunks: the same lengths as at once, in memory for one chunk."""

import numpy as np

from shared.patching.characters import awaited_bytes
from shared.patching.lengths import patch_starts
from shared.patching.rules import CONTEXT, decisions
from shared.patching.settings import PatchingSettings
from shared.vocabulary import is_special


class ChunkedLengths:
    """Lengths of the patches of one document, as its tokens [BOS, b1..bn, EOS] arrive."""

    def __init__(self, patching: PatchingSettings) -> None:
        self._patching = patching
        self._tokens = np.zeros(0, np.int16)
        self._entropies = np.zeros(0, np.float32)
        self._position = 0  # of the next token
        self._open = 0  # where the patch that has not ended starts
        self._awaited = 0  # continuation bytes before the next character, where characters are kept whole

    def add(self, tokens: np.ndarray, entropies: np.ndarray | None = None, last: bool = False) -> np.ndarray:
        """uint16 [p]: lengths of the patches that are known to have ended; with ``last`` also of the one that EOS ends.

        tokens int16 [N] come next in the document; entropies float32 [N] nats, one a token ([N - 1] with the last
        chunk: EOS is no input), for rules that need them. Raises ValueError when they do not fit.
        """
        seen = len(self._tokens)  # context before the chunk
        begin, end = self._position - seen, self._position + len(tokens)
        closed = None
        if self._patching.whole_characters:
            awaited = awaited_bytes(tokens, self._awaited)
            closed, self._awaited = awaited[:-1] > 0, int(awaited[-1])
        tokens = np.concatenate([self._tokens, tokens])
        if entropies is not None:
            none = np.full(int(last), np.nan, np.float32)  # EOS is no input
            entropies = np.concatenate([self._entropies, entropies, none])
        wanted = decisions(tokens, np.arange(begin, end), self._patching, entropies)
        forced = np.zeros(len(tokens), bool)
        forced[1:] = is_special(tokens[:-1])
        forced[: max(2 - begin, 0)] = True
        starts = self._starts(wanted[seen:], forced[seen:], closed)
        lengths = np.diff(starts, append=end) if last else np.diff(starts)
        self._open, self._position = int(starts[-1]), end
        self._tokens = tokens[-CONTEXT:].copy()  # a view would hold the whole chunk
        if entropies is not None:
            self._entropies = entropies[-CONTEXT:].copy()
        return lengths.astype(np.uint16)

    def _starts(self, wanted: np.ndarray, forced: np.ndarray, closed: np.ndarray | None) -> np.ndarray:
        """int64 [p + 1]: the open patch's start, then those in this chunk (bool [N] each), as positions."""
        carried = self._position - self._open
        if self._position:  # seen from the start of the open patch, whose own start is forced
            inside = np.zeros(carried, bool)
            first = inside.copy()
            first[:1] = True
            wanted, forced = np.concatenate([inside, wanted]), np.concatenate([first, forced])
            # No cut was due before the chunk, so positions that were open there are as good as closed.
            closed = None if closed is None else np.concatenate([~first, closed])
        return patch_starts(wanted, forced, self._patching, closed) + self._open
