"""From a plan to a pack: flat arrays of tokens, labels and patches, and the batch that a model reads.

T tokens, P patches, S slices. Arrays hold what is real; padding to the static sizes is added in ``Pack.batch``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch

from shared.bpe.vocabulary import NO_TOKEN
from shared.layers.batch import Batch, Patches, segments
from shared.vocabulary import BOE, BOS, EOS, IGNORED_LABEL, OFFSET, is_special, without_named
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.planner import PackPlan
from trainer.data.packing.slices import Place, SliceReader
from trainer.data.sampling.cursor import CursorChange


@dataclass(frozen=True)
class PackPatches:
    """The patches of a pack."""

    of_token: np.ndarray
    """int32 [T], non-decreasing."""
    of_decoder: np.ndarray
    """int32 [T], the last patch complete when the next token is predicted."""


@dataclass(frozen=True)
class PackSubwords:
    """The patches of a pack as tokens of a tokenizer."""

    ids: np.ndarray
    """int32 [P], BOS or BOE first in each slice."""
    labels: np.ndarray
    """int32 [P]: the next token of the slice, EOS after the last one of a document, or IGNORED_LABEL.

    Where a slice ends inside a document, its last token has no label: BOE, which begins the next slice, predicts the
    token that follows. So each token is a target once.
    """


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
class Pack:
    """One pack, as numpy arrays that are cheap to send between processes."""

    number: int
    step: Step
    limits: PackLimits
    ids: np.ndarray
    """int16 [T]."""
    last_labels: np.ndarray
    """int16 [S], the label of the last token of each slice: that of the others is the token after it."""
    span_labels: np.ndarray | None
    """int16 [T], all labels where a slice is of a document with spans; None where none is."""
    in_slice: np.ndarray
    """int64 [S], tokens of each slice, BOE included."""
    patch_lengths: np.ndarray | None
    """uint16 [P], tokens of each patch; None when unpatched."""
    in_patches: np.ndarray
    """int64 [S], patches of each slice, those of BOS and BOE included; 0 when unpatched."""
    next_starts: np.ndarray
    """bool [S], whether the token after each slice begins a new patch."""
    subwords: PackSubwords | None
    """None: a model reads bytes."""
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

    def __reduce__(self) -> tuple[Callable[..., "Pack"], tuple[object, ...]]:
        """For another process: all arrays in one buffer, for each object costs as much as kilobytes do."""
        arrays = [None if (array := getattr(self, name)) is None else np.ascontiguousarray(array) for name in _ARRAYS]
        layout = [None if array is None else (array.dtype.char, len(array)) for array in arrays]
        buffer = bytearray().join([array for array in arrays if array is not None])  # type: ignore[misc]
        return _received, (buffer, layout, *(getattr(self, name) for name in _OTHERS))

    @cached_property
    def labels(self) -> np.ndarray:
        """int16 [T]: the next token, or IGNORED_LABEL (after BOE, and where spans leave it out)."""
        return next_labels(self.ids, self.in_slice, self.last_labels) if self.span_labels is None else self.span_labels

    @cached_property
    def patches(self) -> PackPatches | None:
        """None when unpatched."""
        if self.patch_lengths is None:
            return None
        return patch_map(self.patch_lengths, self.in_slice, self.next_starts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]: positions of each slice on the axis that a model reads."""
        return self.in_slice if self.subwords is None else self.in_patches

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
        if self.subwords is not None:
            return self._of_subwords(self.subwords)
        tokens = self.limits.tokens
        padding = tokens - len(self.ids)  # may be none; of patches one is always left, see `Room`
        # A model that learns without patches has no named special ids.
        labels = without_named(self.labels) if self.patches is None else self.labels
        return Batch(
            ids=_padded(self.ids, tokens, BOE),
            labels=_padded(labels, tokens, IGNORED_LABEL),
            documents=segments([*self.in_slice.tolist(), padding] if padding else self.in_slice.tolist()),
            patches=self._padded_patches(),
        )

    def _of_subwords(self, subwords: PackSubwords) -> Batch:
        size = self.limits.read.tokens
        return Batch(
            ids=_padded(subwords.ids, size, BOE),
            labels=_padded(subwords.labels, size, IGNORED_LABEL),
            documents=segments([*self.lengths.tolist(), size - len(subwords.ids)]),
            patches=None,
        )

    def _padded_patches(self) -> Patches | None:
        if self.patches is None:
            return None
        assert self.limits.patches is not None
        tokens = self.limits.tokens
        real = int(self.in_patches.sum())
        return Patches(
            of_token=_padded(self.patches.of_token, tokens, real),
            of_decoder=_padded(self.patches.of_decoder, tokens, real),
            documents=segments([*self.in_patches.tolist(), self.limits.patches - real]),
        )


_ARRAYS = (
    *("in_slice", "in_patches", "document", "slice_targets", "slice_bytes", "slice_text", "slice_patches"),
    *("subset", "ids", "last_labels", "span_labels", "patch_lengths", "next_starts", "ended"),
)
"""By size of their numbers, the largest first, so that each begins at a multiple of it in a buffer of them all."""
_OTHERS = tuple(field.name for field in fields(Pack) if field.name not in _ARRAYS)


def _received(buffer: bytearray, layout: Sequence[tuple[str, int] | None], *others: object) -> Pack:
    """What `Pack.__reduce__` has sent."""
    pack = object.__new__(Pack)
    values, offset = pack.__dict__, 0
    values.update(zip(_OTHERS, others))
    for name, found in zip(_ARRAYS, layout):
        values[name] = array = None if found is None else np.frombuffer(buffer, *found, offset)
        offset += 0 if array is None else array.nbytes
    return pack


def _padded(values: np.ndarray, length: int, fill: int) -> torch.Tensor:
    """[length], of the values' dtype: a batch is widened where it is read."""
    padded = np.empty(length, values.dtype)
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


def build_pack(plan: PackPlan, step: Step, limits: PackLimits, reader: SliceReader) -> Pack:
    """Read the slices of a plan. Raises DatasetError naming shard and document where the data is damaged."""
    documents = plan.documents
    ended = plan.stops == documents.inputs
    boe = plan.starts > 0
    in_slice = plan.stops - plan.starts + boe
    plain = documents.plain
    pieces = reader.pieces(plan, limits.patches is not None)
    # Where a slice begins with BOS or BOE the pieces have a byte of any value, which is replaced here.
    ids = np.add(pieces.text, OFFSET, dtype=np.int16)
    last = np.cumsum(in_slice) - 1
    first = last - in_slice + 1
    ids[first] = np.where(boe, BOE, BOS)
    last_labels = np.full(len(in_slice), EOS, np.int16)
    # The label of the last input of a slice that is cut is the document's next byte, which is not in the pack.
    for cut in (~ended & plain).nonzero()[0].tolist():
        last_labels[cut] = reader.byte(documents[cut], int(plan.stops[cut]) - 1) + OFFSET
    slice_targets, slice_text = plan.stops - plan.starts, plan.stops - plan.starts - ended
    slice_bytes = slice_text.copy()
    span_labels = None if plain.all() else next_labels(ids, in_slice, last_labels)
    for number in [] if span_labels is None else np.flatnonzero(~plain).tolist():
        marked = reader.marked(documents[number], int(plan.starts[number]), int(plan.stops[number]))
        place = slice(first[number] + boe[number], last[number] + 1)
        ids[place] = marked.tokens[:-1]
        assert span_labels is not None
        span_labels[place] = np.where(marked.is_target[1:], marked.tokens[1:], IGNORED_LABEL)
        slice_targets[number], slice_bytes[number] = marked.targets, marked.target_bytes
        slice_text[number] = marked.text
    lengths, in_patches, eos_alone = None, np.zeros(len(in_slice), np.int64), ended & documents.eos_alone
    slice_patches = in_patches
    if limits.patches is not None:
        lengths, in_patches = pieces.lengths, plan.patches + boe
        ends = np.cumsum(in_patches)
        lengths[(ends - 1)[ended & ~eos_alone]] -= 1  # EOS is no input
        _check_lengths(lengths, ends - in_patches, in_slice, plan, reader)
        slice_patches = in_patches - 1 + eos_alone
    pack = Pack(
        number=plan.number,
        step=step,
        limits=limits,
        ids=ids,
        last_labels=last_labels,
        span_labels=span_labels,
        in_slice=in_slice,
        patch_lengths=lengths,
        in_patches=in_patches,
        next_starts=~ended | eos_alone,
        subwords=None,
        subset=documents.subset.astype(np.int32),
        document=documents.reference,
        slice_targets=slice_targets,
        slice_bytes=slice_bytes,
        slice_text=slice_text,
        slice_patches=slice_patches,
        ended=ended,
    )
    return in_subwords(pack, plan, reader) if limits.subwords else pack


def in_subwords(pack: Pack, plan: PackPlan, reader: SliceReader) -> Pack:
    """A pack of bytes as a model of subwords reads it, each patch a token.

    Targets are then those inside slices (see `PackSubwords`), counted in the bytes that they stand for. Raises
    DatasetError naming shard and document where a patch is no token.
    """
    assert pack.patch_lengths is not None
    in_patches, lengths = pack.in_patches, pack.patch_lengths.astype(np.int64)
    starts, last = np.cumsum(lengths) - lengths, np.cumsum(in_patches) - 1
    first = last - in_patches + 1
    # Ids below OFFSET are no bytes: they get any here, and their own id in the next two lines.
    ids = reader.subwords.ids((np.maximum(pack.ids, OFFSET) - OFFSET).astype(np.uint8), lengths)
    ids[is_special(pack.ids[starts])] = NO_TOKEN
    ids[first] = pack.ids[starts[first]]
    for wrong in np.flatnonzero(ids == NO_TOKEN)[:1].tolist():
        problem = f"a patch of {lengths[wrong]} bytes that is no token of its tokenizer"
        raise reader.damaged(_first_place(plan, int(np.searchsorted(last, wrong))), problem)
    is_target = reader.target_mask(plan)
    eos = pack.ended & (pack.labels[np.cumsum(pack.in_slice) - 1] == EOS)
    labels = np.full_like(ids, IGNORED_LABEL)
    labels[:-1][is_target[starts[1:]]] = ids[1:][is_target[starts[1:]]]
    labels[last] = np.where(eos, EOS, IGNORED_LABEL)
    slice_bytes = np.add.reduceat(is_target, starts[first], dtype=np.int64) if len(first) else pack.slice_bytes
    return replace(
        pack,
        subwords=PackSubwords(ids, labels),
        slice_targets=slice_bytes + eos,
        slice_bytes=slice_bytes,
        slice_text=pack.in_slice - 1,
    )


def _first_place(plan: PackPlan, number: int) -> Place:
    """Where the document of a slice begins."""
    document = plan.documents[number]
    return Place(document.shard, document.batch, document.row)


def _check_lengths(
    lengths: np.ndarray, firsts: np.ndarray, in_slice: np.ndarray, plan: PackPlan, reader: SliceReader
) -> None:
    """Raise DatasetError when the patches of a slice do not add up to its tokens, or one has none."""
    if not len(firsts):
        return
    found = np.add.reduceat(lengths, firsts, dtype=np.int64)
    for wrong in ((found != in_slice) | (np.minimum.reduceat(lengths, firsts) == 0)).nonzero()[0][:1].tolist():
        problem = f"patches of {found[wrong]} inputs, the index says {in_slice[wrong]}"
        if found[wrong] == in_slice[wrong]:
            problem = "a patch without any input"
        raise reader.damaged(_first_place(plan, wrong), problem)


def patch_map(lengths: np.ndarray, in_slice: np.ndarray, next_starts: np.ndarray) -> PackPatches:
    """Patches of the tokens of a pack.

    lengths uint16 [P]: tokens of each patch, none of them 0; in_slice int64 [S]: tokens of each slice; next_starts
    bool [S]: the token after the slice's last one begins a new patch. The decoder at a token reads the patch before
    that of the next token.
    """
    begins = np.zeros(int(in_slice.sum()), np.int32)
    begins[np.cumsum(lengths[:-1], dtype=np.int64)] = 1
    of_token = np.cumsum(begins, dtype=np.int32)  # several times as fast as np.repeat
    of_decoder = np.empty_like(of_token)
    of_decoder[:-1] = of_token[1:]
    last_token = np.cumsum(in_slice) - 1
    of_decoder[last_token] = of_token[last_token] + next_starts
    of_decoder -= 1  # of the next token's patch, so far: the decoder reads the one before it
    return PackPatches(of_token, of_decoder)
