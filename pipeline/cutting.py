"""A document with its entropies to the rows that stand for it in a shard: pure."""

from collections.abc import Iterator

import numpy as np

from pipeline.records import Record
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.document import LONGEST_PART, Row
from shared.vocabulary import document_tokens


def document_rows(
    record: Record, patching: PatchingSettings, entropies: np.ndarray | None, longest: int = LONGEST_PART
) -> Iterator[Row]:
    """The rows of a document: one, or several parts of at most ``longest`` bytes that end where patches end.

    ``entropies`` float32 [n + 1] nats, or None; ``patching`` is that of all subsets.
    """
    lengths = None
    if patching.patched:
        lengths = patch_lengths(document_tokens(record.text), patching.for_subset(record.subset), entropies)
    for part, (tokens, patches) in enumerate(_parts(len(record.text) + 2, lengths, longest)):
        yield Row(
            id=record.id,
            subset=record.subset,
            # Token t is byte t - 1; BOS and EOS are no bytes.
            text=record.text[max(tokens.start - 1, 0) : tokens.stop - 1],
            part=part,
            patch_lengths=None if lengths is None else lengths[patches],
            entropies=None if entropies is None else entropies[tokens],
            meta=record.meta,
        )


def _parts(tokens: int, lengths: np.ndarray | None, longest: int) -> list[tuple[slice, slice]]:
    """Ranges of tokens and of patches for each part; together they cover the ``tokens`` = n + 2 of the document."""
    if tokens - 2 <= longest:
        return [(slice(0, tokens), slice(0, 0 if lengths is None else len(lengths)))]
    ends = np.arange(1, tokens + 1) if lengths is None else np.cumsum(lengths, dtype=np.int64)
    parts, begin, patch = [], 0, 0
    while begin < tokens:
        # ``longest`` tokens hold at most as many bytes; the first part has BOS beside them.
        following = int(np.searchsorted(ends, begin + longest + (begin == 0), side="right"))
        if tokens - begin - 1 <= longest:
            following = len(ends)
        parts.append((slice(begin, int(ends[following - 1])), slice(patch, following)))
        begin, patch = int(ends[following - 1]), following
    return parts
