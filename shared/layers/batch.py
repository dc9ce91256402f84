"""What a model reads: flat token and patch axes, documents as segments, no batch axis, no padding of documents.

Why there is no batch axis: docs/decisions/no-batch-axis.md.

T tokens, P patches, S segments. Everything is built by the loader in numpy, so a step never waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from shared.patching.credit import PatchCredit


@dataclass(frozen=True)
class _Movable:
    """Tensors, and what holds such, that go to a device together."""

    NARROW: ClassVar[tuple[str, ...]] = ()
    """Tensors that may travel as int16 or int32, and are int64 on the device: what indexes there has to be."""

    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """The same on a device."""
        held = {name: value for name, value in vars(self).items() if hasattr(value, "to")}
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in held.items()}
        return replace(self, **moved | {name: moved[name].long() for name in self.NARROW})


@dataclass(frozen=True)
class Segments(_Movable):
    """Which positions of a flat axis of length N belong together (documents of tokens, or of patches)."""

    ids: Tensor
    """int64 [N], the segment of each position, non-decreasing."""
    positions: Tensor
    """int64 [N], the position inside its segment (rotary positions restart with each document)."""
    offsets: Tensor
    """int32 [S + 1], where each segment begins; the last is N. What variable-length attention kernels want."""
    lengths: tuple[int, ...]
    """The same as Python ints, so that no code needs to ask the device."""

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)


@lru_cache(maxsize=4)
def _numbers(count: int) -> np.ndarray:
    """int64 [count]: 0, 1, 2 and so forth; packs have the same two sizes again and again."""
    return np.arange(count)


def segments(lengths: Sequence[int], positions: np.ndarray | None = None) -> Segments:
    """Segments of the given lengths, side by side.

    ``positions`` (int64 [N]) replaces those counted from each segment's start: a continued document goes on counting.
    """
    counts = np.asarray(lengths, np.int64)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    if positions is None:
        positions = np.repeat(-offsets[:-1], counts)
        positions += _numbers(len(positions))
    return Segments(
        ids=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        positions=torch.from_numpy(np.ascontiguousarray(positions, np.int64)),
        offsets=torch.from_numpy(offsets.astype(np.int32)),
        lengths=tuple(counts.tolist()),
    )


@dataclass(frozen=True)
class Patches(_Movable):
    """How the tokens of a batch are grouped (paper section 2)."""

    NARROW = ("of_token", "of_decoder")
    of_token: Tensor
    """int64 [T], the patch that the encoder puts each token in, non-decreasing."""
    of_decoder: Tensor
    """int64 [T], the patch whose global output the decoder reads at each token: the last complete when it predicts."""
    documents: Segments
    """Documents on the patch axis [P]; patches past the last real one own no tokens and form a segment of their own."""

    @property
    def count(self) -> int:
        return sum(self.documents.lengths)


@dataclass(frozen=True)
class PatchRoom(_Movable):
    """Room for the patches that a model finds itself: each document has as many as its credit bounds them to.

    So the patch axis is laid out before any patch is known. Patches fill the room of their document from its beginning;
    what is left of it stands after them, where causal attention never looks.
    """

    NARROW = ("first",)
    first: Tensor
    """int64 [T], where on the patch axis the room of each token's document begins."""
    real: Tensor
    """bool [T]; false for padding."""
    documents: Segments
    """Documents on the patch axis [P]; what no document has room in is a segment of its own."""

    @property
    def count(self) -> int:
        return sum(self.documents.lengths)


def patch_room(lengths: Sequence[int] | np.ndarray, credit: PatchCredit, tokens: int, patches: int) -> PatchRoom:
    """Room for documents, or slices, of these lengths in packs of T = ``tokens`` and P = ``patches``.

    Padding tokens, if any, have what is left, at least one patch.
    """
    counts = np.asarray(lengths, np.int64)
    bounds = credit.bound(counts)
    used, rest = int(counts.sum()), patches - int(bounds.sum())
    assert rest >= int(used < tokens), "the planner leaves room for padding"
    first = np.full(tokens, patches - rest, np.int32)
    first[:used] = np.repeat(np.cumsum(bounds) - bounds, counts)
    return PatchRoom(
        first=torch.from_numpy(first),
        real=torch.from_numpy(np.arange(tokens) < used),
        documents=segments([*bounds.tolist(), rest] if rest else bounds.tolist()),
    )


@dataclass(frozen=True)
class TeacherTargets(_Movable):
    """What a teacher says of a pack (`shared.distillation`): K symbols that are kept of each target."""

    NARROW = ("symbols", "tokens")
    symbols: Tensor
    """int64 [T, K], ids of the most probable next bytes and special ids."""
    logs: Tensor
    """fp32 [T, K + 1], ln of the probability of each of them, and of all others together. Where a label is ignored they
    are anything."""
    tokens: Tensor
    """int64 [P], the teacher's token that a patch is, or what `shared.distillation.losses` has in its place."""


@dataclass(frozen=True)
class Batch(_Movable):
    """One pack as a model reads it."""

    NARROW = ("ids", "labels")
    ids: Tensor
    """int64 [T]."""
    labels: Tensor
    """int64 [T]: the next token, or IGNORED_LABEL."""
    documents: Segments
    patches: Patches | PatchRoom | None
    """None for models without patches (the entropy model)."""
    teacher: TeacherTargets | None = None
    """Only where a model is distilled."""
