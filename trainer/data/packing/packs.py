"""From a plan to a pack: flat arrays of tokens, labels and patches, and the batch that a model reads.

T tokens, P patches, S slices. Arrays hold what is real; padding to the static sizes is added in ``Pack.batch``.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from shared.bpe.vocabulary import NO_TOKEN
from shared.layers.batch import Batch, Patches, segments
from shared.vocabulary import BOE, BOS, EOS, IGNORED_LABEL, OFFSET, is_special, without_named
from trainer.data.catalogue import Catalogue
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.planner import PackPlan
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import Cursor


@dataclass(frozen=True)
class PackPatches:
    """The patches of a pack."""

    of_token: np.ndarray
    """int32 [T], non-decreasing."""
    of_decoder: np.ndarray
    """int32 [T], the last patch complete when the next token is predicted."""
    in_slice: np.ndarray
    """int64 [S], patches of each slice, those of BOS and BOE included."""


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
    cursor: Cursor | None
    """The data state after the step; None outside training."""


@dataclass(frozen=True)
class Pack:
    """One pack, as numpy arrays that are cheap to send between processes."""

    number: int
    step: Step
    limits: PackLimits
    ids: np.ndarray
    """int16 [T]."""
    labels: np.ndarray
    """int16 [T]: the next token, or IGNORED_LABEL (after BOE, and where spans leave it out)."""
    in_slice: np.ndarray
    """int64 [S], tokens of each slice, BOE included."""
    patches: PackPatches | None
    subwords: PackSubwords | None
    """None: a model reads bytes."""
    subset: np.ndarray
    """int32 [S], code into the dataset's subset names."""
    document: np.ndarray
    """int64 [S], number of the document in the dataset."""
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

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]: positions of each slice on the axis that a model reads."""
        return self.in_slice if self.subwords is None or self.patches is None else self.patches.in_slice

    @property
    def targets(self) -> int:
        """Labels that count."""
        return int(self.slice_targets.sum())

    @cached_property
    def batch(self) -> Batch:
        """The pack with its axes padded to T_max and P_max.

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
        real = int(self.patches.in_slice.sum())
        return Patches(
            of_token=_padded(self.patches.of_token, tokens, real),
            of_decoder=_padded(self.patches.of_decoder, tokens, real),
            documents=segments([*self.patches.in_slice.tolist(), self.limits.patches - real]),
        )


def _padded(values: np.ndarray, length: int, fill: int) -> torch.Tensor:
    """int64 [length]."""
    padded = np.empty(length, np.int64)
    padded[: len(values)] = values
    padded[len(values) :] = fill
    return torch.from_numpy(padded)


def build_pack(plan: PackPlan, step: Step, limits: PackLimits, catalogue: Catalogue, reader: SliceReader) -> Pack:
    """Read the slices of a plan. Raises DatasetError naming shard and document where the data is damaged."""
    ended = plan.stops == catalogue.inputs[plan.documents]
    boe = plan.starts > 0
    in_slice = plan.stops - plan.starts + boe
    plain = catalogue.plain[plan.documents]
    pieces = reader.pieces(plan, plain, limits.patches is not None)
    # Where a slice begins with BOS or BOE the pieces have a byte of any value, which is replaced here.
    ids = np.add(pieces.text, OFFSET, dtype=np.int16)
    last = np.cumsum(in_slice) - 1
    first = last - in_slice + 1
    ids[first] = np.where(boe, BOE, BOS)
    labels = np.empty_like(ids)
    labels[:-1] = ids[1:]
    labels[last] = EOS
    # The label of the last input of a slice that is cut is the document's next byte, which is not in the pack.
    for cut in np.flatnonzero(~ended & plain).tolist():
        labels[last[cut]] = reader.byte(int(plan.documents[cut]), int(plan.stops[cut]) - 1) + OFFSET
    labels[first[boe]] = IGNORED_LABEL
    slice_targets, slice_text = plan.stops - plan.starts, plan.stops - plan.starts - ended
    slice_bytes = slice_text.copy()
    for number in np.flatnonzero(~plain).tolist():
        marked = reader.marked(*(int(column[number]) for column in (plan.documents, plan.starts, plan.stops)))
        place = slice(first[number] + boe[number], last[number] + 1)
        ids[place] = marked.tokens[:-1]
        labels[place] = np.where(marked.is_target[1:], marked.tokens[1:], IGNORED_LABEL)
        slice_targets[number], slice_bytes[number] = marked.targets, marked.learnt_bytes
        slice_text[number] = marked.text
    patches, slice_patches = None, np.zeros(len(in_slice), np.int64)
    if limits.patches is not None:
        eos_alone = ended & catalogue.eos_alone[plan.documents]
        lengths = pieces.lengths.astype(np.int64)
        in_patches = plan.patches + boe
        ends = np.cumsum(in_patches)
        lengths[(ends - 1)[ended & ~eos_alone]] -= 1  # EOS is no input
        _check_lengths(lengths, ends - in_patches, in_slice, plan, catalogue, reader)
        patches = patch_map(lengths, in_patches, in_slice, ~ended | eos_alone)
        slice_patches = in_patches - 1 + eos_alone
    pack = Pack(
        number=plan.number,
        step=step,
        limits=limits,
        ids=ids,
        labels=labels,
        in_slice=in_slice,
        patches=patches,
        subwords=None,
        subset=catalogue.subset[plan.documents],
        document=plan.documents,
        slice_targets=slice_targets,
        slice_bytes=slice_bytes,
        slice_text=slice_text,
        slice_patches=slice_patches,
        ended=ended,
    )
    return in_subwords(pack, plan, catalogue, reader) if limits.subwords else pack


def in_subwords(pack: Pack, plan: PackPlan, catalogue: Catalogue, reader: SliceReader) -> Pack:
    """A pack of bytes as a model of subwords reads it, each patch a token.

    Targets are then those inside slices (see `PackSubwords`), counted in the bytes that they stand for. Raises
    DatasetError naming shard and document where a patch is no token.
    """
    assert pack.patches is not None
    in_patches, lengths = pack.patches.in_slice, np.bincount(pack.patches.of_token)
    starts, last = np.cumsum(lengths) - lengths, np.cumsum(in_patches) - 1
    first = last - in_patches + 1
    # Ids below OFFSET are no bytes: they get any here, and their own id in the next two lines.
    ids = reader.subwords.ids((np.maximum(pack.ids, OFFSET) - OFFSET).astype(np.uint8), lengths)
    ids[is_special(pack.ids[starts])] = NO_TOKEN
    ids[first] = pack.ids[starts[first]]
    for wrong in np.flatnonzero(ids == NO_TOKEN)[:1].tolist():
        document = plan.documents[np.searchsorted(last, wrong)]
        problem = f"a patch of {lengths[wrong]} bytes that is no token of its tokenizer"
        raise reader.damaged(int(catalogue.first_row[document]), problem)
    is_target = reader.target_mask(plan, catalogue.plain[plan.documents])
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


def _check_lengths(
    lengths: np.ndarray,
    firsts: np.ndarray,
    in_slice: np.ndarray,
    plan: PackPlan,
    catalogue: Catalogue,
    reader: SliceReader,
) -> None:
    """Raise DatasetError when the patches of a slice do not add up to its tokens."""
    found = np.add.reduceat(lengths, firsts) if len(firsts) else in_slice
    wrong = np.flatnonzero(found != in_slice)
    if len(wrong):
        row = int(catalogue.first_row[plan.documents[wrong[0]]])
        raise reader.damaged(row, f"patches of {found[wrong[0]]} inputs, the index says {in_slice[wrong[0]]}")


def patch_map(lengths: np.ndarray, patches: np.ndarray, in_slice: np.ndarray, next_starts: np.ndarray) -> PackPatches:
    """Patches of the tokens of a pack.

    lengths int64 [P]: tokens of each patch; patches, in_slice int64 [S]: patches and tokens of each slice; next_starts
    bool [S]: the token after the slice's last one begins a new patch. The decoder at a token reads the patch before
    that of the next token.
    """
    of_token = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    of_decoder = np.empty_like(of_token)
    of_decoder[:-1] = of_token[1:]
    last_token = np.cumsum(in_slice) - 1
    of_decoder[last_token] = of_token[last_token] + next_starts
    of_decoder -= 1  # of the next token's patch, so far: the decoder reads the one before it
    return PackPatches(of_token, of_decoder, patches)
