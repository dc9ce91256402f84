"""What the rows of a shard add up to: totals by subset, histograms and content hash, as its manifest entry records."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np

from shared.patching.grid import quantise
from shared.shards.document import LONGEST_NAMES, LONGEST_PART, LONGEST_SUBSET, MOST_TOKENS, Row
from shared.shards.manifest import TOTALS, SubsetTotals
from shared.shards.rows import Rows
from shared.shards.spans import Spans, spans_problem
from shared.vocabulary import EOS

LONGEST_COUNTED = 64
"""The patch-length histogram counts lengths 1 to 64 one by one, then all longer ones together: 65 entries."""
CONTENT_MODULUS = 2**256
"""Of sums of sha256 values. A sum, unlike the exclusive or, also notices a document that is there twice."""


class ContentHash:
    """Sum over documents of sha256(subset, NUL, text) modulo 2^256: the same in every order and every sharding.

    Of a document with spans it is sha256(that, sha256 of 2 id + loss of each token of its body as uint16 LE, and of
    EOS): special ids and which tokens are targets are part of the content, where a span was cut is not.
    """

    def __init__(self) -> None:
        self._total = 0
        self._document = hashlib.sha256()
        self._body = hashlib.sha256()

    def add(self, row: Row, last: bool) -> None:
        """Count a row; the parts of a document come one after the other."""
        if row.part == 0:
            self._document = hashlib.sha256(row.subset.encode() + b"\0")
            self._body = hashlib.sha256()
        self._document.update(row.text)
        if row.spans is not None:
            self._body.update(marked_tokens(row.text, row.spans))
            if last:
                self._body.update(np.array([2 * EOS + row.spans.last_loss], "<u2").tobytes())
                self._document = hashlib.sha256(self._document.digest() + self._body.digest())
        if last:
            self._total = (self._total + int.from_bytes(self._document.digest(), "big")) % CONTENT_MODULUS

    def add_rows(self, rows: Rows) -> None:
        """Count the next rows, in order."""
        if rows.spans is not None or rows.parts.any() or not rows.last.all():
            for number in range(len(rows)):
                self.add(rows.row(number), bool(rows.last[number]))
            return
        begins = {subset: subset.encode() + b"\0" for subset in set(rows.subsets)}
        digests = [sha256(begins[subset] + text).digest() for subset, text in zip(rows.subsets, rows.texts)]
        self._total = (self._total + sum([int.from_bytes(digest, "big") for digest in digests])) % CONTENT_MODULUS

    def hexdigest(self) -> str:
        return f"{self._total:064x}"


def marked_tokens(text: bytes, spans: Spans) -> bytes:
    """2 id + loss of each token of a body, uint16 LE."""
    return np.asarray(2 * spans.tokens(text).astype(np.int32) + spans.target_mask(), "<u2").tobytes()


def add_content_hashes(hashes: Iterable[str]) -> str:
    """The content hash of several shards together."""
    return f"{sum(int(h, 16) for h in hashes) % CONTENT_MODULUS:064x}"


class ShardContent:
    """Running figures over the rows of one shard, in order."""

    def __init__(self) -> None:
        self._hash = ContentHash()
        self._subsets: dict[str, dict[str, int]] = {}
        self._lengths: np.ndarray | None = None
        self._entropies: np.ndarray | None = None

    def add(self, rows: Rows) -> None:
        """Count the next rows of the shard."""
        for subset, own in rows.by(rows.subsets).items():
            self._add_totals(self._subsets.setdefault(subset, dict.fromkeys(TOTALS, 0)), own)
        if rows.lengths is not None and rows.patches is not None:
            if self._lengths is None:
                self._lengths = np.zeros(LONGEST_COUNTED + 1, np.int64)
            counted = np.bincount(np.minimum(rows.lengths, LONGEST_COUNTED + 1), minlength=LONGEST_COUNTED + 2)[1:]
            counted[0] -= np.count_nonzero(rows.parts == 0)  # patches of BOS, which have length 1
            self._lengths += counted
        if rows.entropies is not None:
            for values in rows.entropies:
                if values is not None:
                    if self._entropies is None:
                        self._entropies = np.zeros(256, np.int64)
                    places = values if values.dtype == np.uint8 else quantise(values)
                    self._entropies += np.bincount(places, minlength=256)
        self._hash.add_rows(rows)

    @staticmethod
    def _add_totals(figures: dict[str, int], rows: Rows) -> None:
        first = int(np.count_nonzero(rows.parts == 0))
        size = int(rows.sizes.sum())
        figures["documents"] += first
        figures["rows"] += len(rows)
        figures["bytes"] += size
        figures["patches"] += 0 if rows.patches is None else int(rows.patches.sum()) - first
        if rows.spans is not None:
            figures["specials"] += int(rows.tokens.sum()) - size
            targets, target_bytes = rows.target_counts()
            figures["ignored"] += int((rows.tokens + rows.last - targets).sum())
            figures["ignored_bytes"] += size - int(target_bytes.sum())

    def figures(self) -> dict[str, Any]:
        """The fields of ShardEntry that follow from the rows."""
        return {
            "content_hash": self._hash.hexdigest(),
            "subsets": {name: SubsetTotals(**self._subsets[name]) for name in sorted(self._subsets)},
            "patch_length_histogram": [] if self._lengths is None else self._lengths.tolist(),
            "entropy_histogram": [] if self._entropies is None else self._entropies.tolist(),
        }


def with_last(rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    """Each row with whether its document ends there. Reads one row ahead."""
    previous: Row | None = None
    for row in rows:
        if previous is not None:
            yield previous, row.part == 0
        previous = row
    if previous is not None:
        yield previous, True


def check_order(previous: Row | None, row: Row) -> None:
    """The parts of a document are consecutive rows of one shard. Raises ValueError."""
    if row.part == 0:
        return
    if previous is None:
        raise ValueError(f"document {row.id!r}: a shard cannot begin with part {row.part} of a document")
    expected = (previous.id, previous.subset, previous.part + 1)
    if (row.id, row.subset, row.part) != expected:
        raise ValueError(
            f"document {row.id!r} ({row.subset}): part {row.part} follows part {previous.part} of document "
            f"{previous.id!r} ({previous.subset}); the parts of a document must be consecutive"
        )
    if (row.spans is None) != (previous.spans is None):
        raise ValueError(f"document {row.id!r}: parts {previous.part} and {row.part}: one has spans, the other has not")


def check_rows(previous: Row | None, rows: Rows) -> None:
    """The next rows of a shard, which follow ``previous``. Raises ValueError that names a document it cannot hold."""
    if not _surely_good(rows):
        for number in range(len(rows)):
            row = rows.row(number)
            check_order(previous, row)
            check_row(row, bool(rows.last[number]))
            previous = row


def _surely_good(rows: Rows) -> bool:
    """Whether all rows are whole documents of plain text that can be stored. Only a False needs a second look."""
    if rows.spans is not None or rows.parts.any() or not rows.last.all():
        return False
    if any(not 0 < len(subset) <= LONGEST_SUBSET or "\0" in subset for subset in set(rows.subsets)):
        return False
    characters = sum(map(len, rows.ids)) + (sum(len(meta or "") for meta in rows.metas) if rows.metas else 0)
    if 4 * characters > LONGEST_NAMES or rows.sizes.max(initial=0) > LONGEST_PART:
        return False
    if rows.entropies is not None and [len(e) for e in rows.entropies if e is not None] != (rows.sizes + 1).tolist():
        return False
    if rows.lengths is None or rows.patches is None:
        return True
    if not rows.patches.all() or not rows.lengths.all():
        return False
    begins = np.cumsum(rows.patches) - rows.patches
    covered = np.add.reduceat(rows.lengths, begins, dtype=np.int64)
    return bool((covered == rows.sizes + 2).all() and (rows.lengths[begins] == 1).all())


def check_row(row: Row, last: bool) -> None:
    """A row that a shard can hold. Raises ValueError that names the document."""
    name = f"document {row.id!r} part {row.part}"
    if row.spans is not None and (problem := spans_problem(row.spans, len(row.text))) is not None:
        raise ValueError(f"{name} has {problem}")
    text, size, first = len(row.text), row.size, row.part == 0
    if not 0 < len(row.subset) <= LONGEST_SUBSET or "\0" in row.subset:
        shown = row.subset[:80]
        raise ValueError(f"{name}: subset {shown!r} must be a name of 1 to {LONGEST_SUBSET} characters without NUL")
    if (names := len(row.id.encode()) + len((row.meta or "").encode())) > LONGEST_NAMES:
        raise ValueError(f"{name[:80]}: {names} bytes of id and meta; a row has at most {LONGEST_NAMES}")
    if row.size > MOST_TOKENS:
        raise ValueError(f"{name}: {row.size} bytes and special ids; a row has at most {MOST_TOKENS}")
    if text > LONGEST_PART:
        raise ValueError(f"{name}: {text} bytes of text; a row holds at most {LONGEST_PART}, cut it into parts")
    if not size and not first and not last:
        raise ValueError(f"{name}: a part in the middle of a document has no text")
    if row.patch_lengths is not None:
        lengths = row.patch_lengths
        if lengths.dtype != np.uint16 or lengths.ndim != 1:
            raise ValueError(f"{name}: patch lengths must be uint16 [P], not {lengths.dtype} {list(lengths.shape)}")
        total, wanted = int(lengths.sum(dtype=np.int64)), size + first + last
        if total != wanted:
            raise ValueError(f"{name}: patch lengths sum to {total}, its bytes and special ids to {wanted}")
        if len(lengths) and not lengths.min():
            raise ValueError(f"{name}: a patch has length 0")
        if first and lengths[0] != 1:
            raise ValueError(f"{name}: the first patch holds BOS alone, but has length {lengths[0]}")
    if row.entropies is not None and len(row.entropies) != size + first:
        raise ValueError(f"{name}: {len(row.entropies)} entropies for {size + first} input tokens")


def meta_problem(row: Row) -> str | None:
    """What is wrong with the other columns of a row, which are a JSON object or null. Not asked of rows to write."""
    if row.meta is None:
        return None
    try:
        found = json.loads(row.meta, parse_constant=_no_constant)
    except RecursionError:
        problem = "it is nested too deep"
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(found, dict):
            return None
        problem = f"it is {row.meta[:40]!r}"
    return f"document {row.id!r} part {row.part}: meta is not a JSON object: {problem}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} has no form in JSON")
