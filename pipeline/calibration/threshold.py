"""Thresholds for wanted mean patch sizes, over groups of documents that share every pass over their entropies.

A sketch of what the rule compares gives a first guess. Then a few candidates of each group are cut at once, exactly as
they would be stored, until none of the thresholds that there are is nearer. Memory does not grow with the documents but
for a few numbers of each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.calibration.threshold_search import FINE, Thetas, UnreachableTarget, search, thetas_of
from pipeline.read.formats.datasets import documents_at
from pipeline.records import chunks_of
from pipeline.scoring.cut import TOGETHER
from pipeline.scoring.entropies import Entropies, Piece
from shared.io.display.progress import ByteProgress
from shared.patching import PatchingSettings
from shared.patching.chunks import ChunkedLengths
from shared.patching.grid import quantise
from shared.patching.lengths import patch_lengths_together
from shared.patching.rules import rounded
from shared.vocabulary import BOS, EOS, OFFSET, byte_tokens

# ---- Quantiles of what a rule compares with theta, counted in bounded memory: a first guess at a threshold, in one
# pass.
#
# The guess knows nothing of lengths that are cut short or made longer; sizes counted exactly correct it
# (threshold.py).


_WIDTH = 128
"""Thresholds that a bin covers where no grid binds them: 1/512 nat."""


class Sketch:
    """How many compared values lie above each of some ordered thresholds. Sketches of parts add up to that of all."""

    def __init__(self, thetas: Thetas) -> None:
        self._thetas = thetas
        self.near = 1 if thetas.grid else _WIDTH
        """A guess is off by so many thresholds at most, were there no limits on length."""
        self._counts = np.zeros((thetas.count - 1) // self.near + 3, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count float32 values in nats; NaN never opens a patch, and is left out."""
        if self._thetas.grid:
            bins = quantise(values).astype(np.int64)
        else:
            steps = np.ceil(values[~np.isnan(values)].astype(np.float64) * FINE) - self._thetas.first
            bins = np.clip(steps, 0, self._thetas.count).astype(np.int64) // self.near
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def guess(self, patches: float) -> int:
        """The number of a threshold with about so many values above it."""
        above = self._counts[::-1].cumsum()[::-1][1:]
        bins = int(np.argmin(np.abs(above - patches))) + 1  # that lie below
        return min(bins * self.near - 1, self._thetas.count - 1)


def compared(entropies: np.ndarray, patching: PatchingSettings) -> np.ndarray:
    """float32: the values among entropies float32 [N] in nats, of one document, that theta decides upon.

    With entropy_rise those whose rise is enough. The first entropy has no rise.
    """
    if patching.rule == "entropy":
        return entropies
    values = rounded(entropies, patching)
    rise = values[1:] - values[:-1]
    return np.asarray(rise if patching.rule == "monotonic" else entropies[1:][rise > np.float32(patching.theta_rise)])


@dataclass(frozen=True)
class Goal:
    """A mean patch size that some documents should have."""

    documents: np.ndarray
    """int64 [N], their numbers in order."""
    target: float
    """Bytes."""


def find_thetas(
    entropies: Entropies, draft: PatchingSettings, goals: Sequence[Goal]
) -> list[float | UnreachableTarget]:
    """The threshold (nats) for each goal whose mean patch size is nearest to the one wanted, or why there is none.

    ``draft`` says everything but theta. Thresholds lie on the sidecar's grid if ``draft.grid``, else they are whole
    numbers of 1/65,536 nat; one within 0.01% of the target is taken at once. Raises DatasetError.
    """
    thetas = thetas_of(draft.rule, draft.grid)
    sizes = [int(entropies.documents.bytes[goal.documents].sum()) for goal in goals]
    sketches = _sketches(entropies, draft, [goal.documents for goal in goals])
    searches = [
        search(thetas.count, sketch.guess(size / goal.target), sketch.near, goal.target)
        for goal, sketch, size in zip(goals, sketches, sizes)
    ]
    asked = {number: next(searching) for number, searching in enumerate(searches)}
    found: dict[int, float | UnreachableTarget] = {}
    while asked:
        groups = {number: goals[number].documents for number in asked}
        candidates = {number: [thetas[theta] for theta in asked[number]] for number in asked}
        counts = _counts(entropies, draft, groups, candidates)
        for number in list(asked):
            try:
                asked[number] = searches[number].send((sizes[number] / counts[number]).tolist())
            except StopIteration as end:
                found[number] = thetas[end.value[0]]
                del asked[number]
            except UnreachableTarget as error:
                found[number] = error
                del asked[number]
    return [found[number] for number in range(len(goals))]


def patches_of(entropies: Entropies, patching: PatchingSettings) -> np.ndarray:
    """int64 [N]: patches other than BOS of every document, each with the threshold of its subset."""
    documents, theta = entropies.documents, patching.theta
    assert theta is not None, "rules on entropy have a threshold"
    thetas = [[patching.thetas.get(name, theta)] for name in documents.names]
    counts = np.zeros(len(documents), np.int64)
    for number, found in _cut(entropies, patching, np.arange(len(documents)), lambda n: thetas[documents.subset[n]]):
        counts[number] = found[0]
    return counts


def _counts(
    entropies: Entropies, draft: PatchingSettings, groups: Mapping[int, np.ndarray], thetas: Mapping[int, list[float]]
) -> dict[int, np.ndarray]:
    """int64 [thetas]: patches other than BOS of each group of documents with each of its thresholds."""
    members = _Members(groups, len(entropies.documents))
    counts = {group: np.zeros(len(thetas[group]), np.int64) for group in groups}

    def wanted(document: int) -> list[float]:
        return [theta for group in members.groups(document) for theta in thetas[group]]

    for number, found in _cut(entropies, draft, members.documents, wanted):
        begin = 0
        for group in members.groups(number):
            end = begin + len(counts[group])
            counts[group] += found[begin:end]
            begin = end
    return counts


def _cut(
    entropies: Entropies, draft: PatchingSettings, numbers: np.ndarray, wanted: Callable[[int], Sequence[float]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Each of these documents with its patches other than BOS, int64, under every threshold wanted of it.

    Short documents are cut together, the others as they come.
    """
    long: list[ChunkedLengths] = []
    counts = np.zeros(0, np.int64)
    short: list[_Cut] = []
    held = 0
    with ByteProgress("Counting patches", int(entropies.documents.bytes[numbers].sum())) as progress:
        for piece, tokens in _with_tokens(entropies, numbers, draft.whole_characters):
            progress.update(len(piece.entropies))
            if piece.first and piece.last and len(piece.entropies) < TOGETHER:
                short.append((piece, tokens))
                held += len(piece.entropies) * len(wanted(piece.document))
                if held >= TOGETHER:
                    yield from _together(short, draft, wanted)
                    short, held = [], 0
                continue
            if piece.first:
                long = [ChunkedLengths(draft.with_theta(theta, draft.grid)) for theta in wanted(piece.document)]
                counts = np.full(len(long), -1, np.int64)  # BOS
            counts += [len(lengths.add(tokens, piece.entropies, piece.last)) for lengths in long]
            if piece.last:
                yield piece.document, counts
        yield from _together(short, draft, wanted)


_Cut = tuple[Piece, np.ndarray]
"""Entropies, and the tokens that go with them: int16, one for each, and EOS at the end of a document."""


def _together(
    short: Sequence[_Cut], draft: PatchingSettings, wanted: Callable[[int], Sequence[float]]
) -> Iterator[tuple[int, np.ndarray]]:
    """The same for whole documents."""
    cuts = [(piece, own, theta) for piece, own in short for theta in wanted(piece.document)]
    if not cuts:
        return
    pieces, tokens, thetas = zip(*cuts)
    lengths = patch_lengths_together(tokens, draft, [piece.entropies for piece in pieces], thetas)
    counts = np.array([len(found) - 1 for found in lengths], np.int64)
    begin = 0
    for piece, _ in short:
        end = begin + len(wanted(piece.document))
        yield piece.document, counts[begin:end]
        begin = end


def _with_tokens(entropies: Entropies, numbers: np.ndarray, needed: bool) -> Iterator[_Cut]:
    """The pieces of these documents with their tokens.

    Rules on entropy look at none by themselves: unless they are ``needed``, any byte stands for all.
    """
    documents = entropies.documents.take(numbers)
    records = documents_at(documents.dataset, documents.starts, documents.stops) if needed else iter(())
    chunks: Iterator[bytes] = iter(())
    unread = np.zeros(0, np.int16)
    for piece in entropies.pieces(numbers):
        tokens = np.full(len(piece.entropies) + piece.last, OFFSET, np.int16)
        if needed:
            if piece.first:
                chunks = iter(chunks_of(next(records).text))
            text = tokens[int(piece.first) : len(piece.entropies)]
            while len(unread) < len(text):
                unread = np.concatenate([unread, byte_tokens(next(chunks))])
            text[:], unread = unread[: len(text)], unread[len(text) :]
        if piece.first:
            tokens[0] = BOS
        if piece.last:
            tokens[-1] = EOS
        yield piece, tokens


def _sketches(entropies: Entropies, draft: PatchingSettings, groups: Sequence[np.ndarray]) -> list[Sketch]:
    """What the rule compares, of each group of documents."""
    members = _Members(dict(enumerate(groups)), len(entropies.documents))
    sketches = [Sketch(thetas_of(draft.rule, draft.grid)) for _ in groups]
    for piece in entropies.pieces(members.documents):
        values = compared(piece.entropies, draft)
        for group in members.groups(piece.document):
            sketches[group].add(values)
    return sketches


class _Members:
    """Which groups each document belongs to."""

    def __init__(self, groups: Mapping[int, np.ndarray], count: int) -> None:
        """``groups``: numbers of documents below ``count``, int64 in order."""
        empty = np.zeros(0, np.int64)
        documents = np.concatenate([empty, *groups.values()])
        names = np.concatenate([empty, *(np.full(len(numbers), group) for group, numbers in groups.items())])
        order = np.argsort(documents, kind="stable")
        self._groups = names[order]
        self._begins = np.searchsorted(documents[order], np.arange(count + 1))
        self.documents = np.flatnonzero(np.diff(self._begins))
        """int64, those that belong to any, in order."""

    def groups(self, document: int) -> list[int]:
        return list(map(int, self._groups[self._begins[document] : self._begins[document + 1]]))
