"""Packs: flat arrays of tokens, labels and patches, and the batch that a model reads.

T tokens, P patches, S slices. Arrays hold what is real; padding to the static sizes is added in ``Pack.batch``. Arrays
of several packs lie one after the other while they are built and sent: there each array costs as much as kilobytes do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from shared.bpe.vocabulary import NO_TOKEN
from shared.layers.batch import Batch, Patches, PatchRoom, TeacherTargets, patch_room, segments
from shared.vocabulary import BOE, IGNORED_LABEL, without_named
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.planner import totals_before
from trainer.data.sampling.cursor import CursorChange


@dataclass(frozen=True)
class PackPatches:
    """The patches of a pack."""

    of_token: np.ndarray
    """int32 [T], non-decreasing."""
    of_decoder: np.ndarray
    """int32 [T], the last patch complete when the next token is predicted."""


@dataclass(frozen=True)
class Step:
    """What all packs of one optimizer step have in common, so that no rank need ask another."""

    number: int
    targets: int
    """Labels that count: what the loss is divided by."""
    bytes: int
    """Bytes of text among them."""
    change: CursorChange | None = None
    """What the step changes of the data state; None outside training."""


@dataclass(frozen=True)
class PackArrays:
    """What packs hold, as numpy arrays: of one pack, or of several that follow one another."""

    ids: np.ndarray
    """int16 [T]."""
    last_labels: np.ndarray
    """int16 [S], the label of the last token of each slice: that of the others is the token after it."""
    span_labels: np.ndarray | None
    """int16 [T], all labels; None where no slice built with these is of a document with spans."""
    in_slice: np.ndarray
    """int64 [S], tokens of each slice, BOE included."""
    patch_lengths: np.ndarray | None
    """uint16 [P], tokens of each patch; None when unpatched."""
    in_patches: np.ndarray
    """int64 [S], patches of each slice, those of BOS and BOE included; 0 when unpatched."""
    next_starts: np.ndarray
    """bool [S], whether the token after each slice begins a new patch."""
    subset: np.ndarray
    """int32 [S], code into the dataset's subset names."""
    document: np.ndarray
    """int64 [S], reference of the document; in validation packs its number in the dataset."""
    slice_targets: np.ndarray
    """int64 [S], labels of each slice that count; of subwords the bytes they stand for, and EOS."""
    slice_bytes: np.ndarray
    """int64 [S], bytes of text among the targets of each slice."""
    slice_text: np.ndarray
    """int64 [S], bytes of text that are predicted, targets or not; those of a document sum to its length."""
    slice_patches: np.ndarray
    """int64 [S], patches other than BOS and BOE, one of EOS alone included (as the manifest counts); 0 if unpatched."""
    ended: np.ndarray
    """bool [S], whether the document ends in the slice."""
    subword_ids: np.ndarray | None = None
    """int32 [P], the patches as tokens of a tokenizer, BOS or BOE first in each slice; None: a model reads bytes."""
    subword_labels: np.ndarray | None = None
    """int32 [P]: the next token of the slice, EOS after the last one of a document, or IGNORED_LABEL.

    Where a slice ends inside a document, its last token has no label: BOE, which begins the next slice, predicts the
    token that follows. So each token is a target once.
    """
    teacher_symbols: np.ndarray | None = None
    """int16 [T, K], ids of the most probable next symbols by a teacher; None where there is none. Of BOE anything."""
    teacher_logs: np.ndarray | None = None
    """float32 [T, K + 1], ln of the probabilities of these, and of all others together."""
    teacher_tokens: np.ndarray | None = None
    """int32 [P], the patches as tokens of a teacher (`TeacherTargets.tokens`)."""


_OF_TOKENS = ("ids", "span_labels", "teacher_symbols", "teacher_logs")
_OF_PATCHES = ("patch_lengths", "subword_ids", "subword_labels", "teacher_tokens")
_BY_SIZE = (
    *("in_slice", "in_patches", "document", "slice_targets", "slice_bytes", "slice_text", "slice_patches"),
    *("subset", "subword_ids", "subword_labels", "teacher_logs", "teacher_tokens"),
    *("ids", "last_labels", "span_labels", "patch_lengths", "teacher_symbols", "next_starts", "ended"),
)
"""The arrays by size of their numbers, the largest first: in one buffer each then begins at a multiple of its size."""


_NO_ARRAYS = dict.fromkeys(field.name for field in fields(PackArrays))


@dataclass(frozen=True)
class Packs:
    """Packs that follow one another, for another process: one buffer, of which each pack has its views."""

    arrays: PackArrays
    limits: list[PackLimits]
    """Of each pack."""
    numbers: list[int]
    """Of each pack."""
    steps: list[Step]
    slices: list[int]
    """S of each pack."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator["Pack"]:
        arrays, bounds = self.arrays, np.cumsum([0, *self.slices])
        of_slices, of_tokens, of_patches = (
            [slice(low, high) for low, high in pairwise(ends.tolist())]
            for ends in (bounds, totals_before(arrays.in_slice)[bounds], totals_before(arrays.in_patches)[bounds])
        )
        axes = dict.fromkeys(_OF_TOKENS, of_tokens) | dict.fromkeys(_OF_PATCHES, of_patches)
        held = [(name, array, axes.get(name, of_slices)) for name, array in vars(arrays).items() if array is not None]
        for place, (number, step) in enumerate(zip(self.numbers, self.steps)):
            own: dict[str, Any] = _NO_ARRAYS | {name: array[axis[place]] for name, array, axis in held}
            yield Pack(number=number, step=step, limits=self.limits[place], **own)

    def __reduce__(self) -> tuple[Callable[..., "Packs"], tuple[object, ...]]:
        """All arrays in one buffer."""
        arrays = [getattr(self.arrays, name) for name in _BY_SIZE]
        layout = [None if array is None else (array.dtype.char, array.shape) for array in arrays]
        buffer = bytearray().join([np.ascontiguousarray(array).data for array in arrays if array is not None])
        return _received, (buffer, layout, self.limits, self.numbers, self.steps, self.slices)


def _received(
    buffer: bytearray,
    layout: Sequence[tuple[str, tuple[int, ...]] | None],
    limits: list[PackLimits],
    numbers: list[int],
    steps: list[Step],
    slices: list[int],
) -> Packs:
    """What `Packs.__reduce__` has sent."""
    values, offset = dict[str, Any](), 0
    for name, found in zip(_BY_SIZE, layout):
        values[name] = None
        if found is not None:
            dtype, shape = found
            values[name] = array = np.frombuffer(buffer, dtype, math.prod(shape), offset).reshape(shape)
            offset += array.nbytes
    return Packs(PackArrays(**values), limits, numbers, steps, slices)


@dataclass(frozen=True, kw_only=True)
class Pack(PackArrays):
    """One pack."""

    number: int
    step: Step
    limits: PackLimits

    @cached_property
    def labels(self) -> np.ndarray:
        """int16 [T]: the next token, or IGNORED_LABEL (after BOE, and where spans leave it out)."""
        return next_labels(self.ids, self.in_slice, self.last_labels) if self.span_labels is None else self.span_labels

    @cached_property
    def patches(self) -> PackPatches | None:
        """Of the tokens alone; None when unpatched."""
        if self._padded_map is None:
            return None
        tokens = len(self.ids)
        return PackPatches(self._padded_map.of_token[:tokens], self._padded_map.of_decoder[:tokens])

    @cached_property
    def _padded_map(self) -> PackPatches | None:
        if self.patch_lengths is None:
            return None
        return patch_map(self.patch_lengths, self.in_slice, self.next_starts, self.limits.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]: positions of each slice on the axis that a model reads."""
        return self.in_slice if self.subword_ids is None else self.in_patches

    @property
    def targets(self) -> int:
        """Labels that count."""
        return int(self.slice_targets.sum())

    @cached_property
    def batch(self) -> Batch:
        """The pack with its axes padded to T_max and P_max, ids as narrow as the pack has them (`Batch.NARROW`).

        Padding tokens are a segment of their own at the end, their labels are ignored, and they lie in a patch of their
        own (the first past the real ones); further padding patches own no tokens. None of it changes a loss. Of
        subwords there is one axis, of P_max.
        """
        if self.subword_ids is not None:
            assert self.subword_labels is not None
            return self._of_subwords(self.subword_ids, self.subword_labels)
        tokens = self.limits.tokens
        padding = tokens - len(self.ids)  # may be none; of patches one is always left, see `Room`
        # A model that learns without patches has no named special ids.
        labels = without_named(self.labels) if self.patch_lengths is None else self.labels
        return Batch(
            ids=_padded(self.ids, tokens, BOE),
            labels=_padded(labels, tokens, IGNORED_LABEL),
            documents=segments([*self.in_slice.tolist(), padding] if padding else self.in_slice.tolist()),
            patches=self._patch_room() if self.limits.credit else self._padded_patches(),
            teacher=self._padded_teacher(),
        )

    def _padded_teacher(self) -> TeacherTargets | None:
        symbols, logs, of_patches = self.teacher_symbols, self.teacher_logs, self.teacher_tokens
        if symbols is None or logs is None or of_patches is None:
            return None
        tokens, patches = self.limits.tokens, self.limits.patches
        assert patches is not None
        return TeacherTargets(
            symbols=_padded(symbols, tokens, 0),
            logs=_padded(logs, tokens, 0),
            tokens=_padded(of_patches, patches, NO_TOKEN),
        )

    def _of_subwords(self, ids: np.ndarray, labels: np.ndarray) -> Batch:
        size = self.limits.read.tokens
        return Batch(
            ids=_padded(ids, size, BOE),
            labels=_padded(labels, size, IGNORED_LABEL),
            documents=segments([*self.lengths.tolist(), size - len(ids)]),
            patches=None,
        )

    def _patch_room(self) -> PatchRoom:
        assert self.limits.credit is not None and self.limits.patches is not None  # noqa: PT018
        return patch_room(self.in_slice, self.limits.credit, self.limits.tokens, self.limits.patches)

    def _padded_patches(self) -> Patches | None:
        if self._padded_map is None or self.patch_lengths is None:
            return None
        assert self.limits.patches is not None
        return Patches(
            of_token=torch.from_numpy(self._padded_map.of_token),
            of_decoder=torch.from_numpy(self._padded_map.of_decoder),
            documents=segments([*self.in_patches.tolist(), self.limits.patches - len(self.patch_lengths)]),
        )


def _padded(values: np.ndarray, length: int, fill: int) -> torch.Tensor:
    """[length, ...], of the values' dtype: a batch is widened where it is read."""
    padded = np.empty((length, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    padded[len(values) :] = fill
    return torch.from_numpy(padded)


def next_labels(ids: np.ndarray, in_slice: np.ndarray, last_labels: np.ndarray) -> np.ndarray:
    """int16 [T]: the next token of each slice, and what is given for its last one; IGNORED_LABEL after BOE."""
    ends = np.cumsum(in_slice)
    first = ends - in_slice
    labels = np.empty_like(ids)
    labels[:-1] = ids[1:]
    labels[ends - 1] = last_labels
    labels[first[ids[first] == BOE]] = IGNORED_LABEL
    return labels


def patch_map(lengths: np.ndarray, in_slice: np.ndarray, next_starts: np.ndarray, size: int) -> PackPatches:
    """Patches of the tokens of a pack, and beyond them up to ``size`` that of padding: the first past the real ones.

    lengths uint16 [P]: tokens of each patch, none of them 0; in_slice int64 [S]: tokens of each slice; next_starts
    bool [S]: the token after the slice's last one begins a new patch. The decoder at a token reads the patch before
    that of the next token.
    """
    begins = np.zeros(size + 1, np.int32)
    begins[np.cumsum(lengths, dtype=np.int64)] = 1
    of_token = np.cumsum(begins, dtype=np.int32)  # several times as fast as np.repeat
    of_decoder = of_token[1:] - np.int32(1)  # of the next token's patch the one before it
    last_token = np.cumsum(in_slice) - 1
    of_decoder[last_token] = of_token[last_token] + next_starts - 1
    of_decoder[int(in_slice.sum()) :] = len(lengths)
    return PackPatches(of_token[:size], of_decoder)
