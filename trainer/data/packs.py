"""From a plan to a pack: flat arrays of tokens, labels and patches, and the batch that a model reads.

T tokens, P patches, S slices. Arrays hold what is real; padding to the static sizes is added in ``Pack.batch``.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from shared.batch import Batch, Patches, segments
from shared.vocabulary import BOE, IGNORED_LABEL
from trainer.data.catalogue import Catalogue
from trainer.data.cursor import Cursor
from trainer.data.limits import PackLimits
from trainer.data.plan import PackPlan
from trainer.data.slices import SliceReader


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
    """int16 [T]: the next token, or IGNORED_LABEL (after BOE)."""
    in_slice: np.ndarray
    """int64 [S], tokens of each slice, BOE included."""
    patches: PackPatches | None
    subset: np.ndarray
    """int32 [S], code into the dataset's subset names."""
    slice_bytes: np.ndarray
    """int64 [S], bytes of text among the targets of each slice; those of a document sum to its length."""
    slice_patches: np.ndarray
    """int64 [S], patches other than BOS and BOE, one of EOS alone included (as the manifest counts); 0 if unpatched."""
    ended: np.ndarray
    """bool [S], whether the document ends in the slice."""

    @property
    def targets(self) -> int:
        """Labels that count."""
        return int(self.slice_bytes.sum() + self.ended.sum())

    @property
    def token_fill(self) -> float:
        """Share of the token axis that is real."""
        return len(self.ids) / self.limits.tokens

    @property
    def patch_fill(self) -> float:
        """Share of the patch axis that is real; 0 when unpatched."""
        return int(self.patches.in_slice.sum()) / self.limits.patches if self.patches and self.limits.patches else 0.0

    @cached_property
    def batch(self) -> Batch:
        """The pack with its axes padded to T_max and P_max.

        Padding tokens are a segment of their own at the end, their labels are ignored, and they lie in a patch of their
        own (the first past the real ones); further padding patches own no tokens. None of it changes a loss.
        """
        tokens = self.limits.tokens
        padding = tokens - len(self.ids)
        return Batch(
            ids=_padded(self.ids, tokens, BOE),
            labels=_padded(self.labels, tokens, IGNORED_LABEL),
            documents=segments([*self.in_slice.tolist(), padding] if padding else self.in_slice.tolist()),
            patches=self._padded_patches(),
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
    padded = np.full(length, fill, np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)


def build_pack(plan: PackPlan, step: Step, limits: PackLimits, catalogue: Catalogue, reader: SliceReader) -> Pack:
    """Read the slices of a plan. Raises DatasetError naming shard and document where the data is damaged."""
    boe = (plan.starts > 0).astype(np.int64)
    in_slice = plan.stops - plan.starts + boe
    total = int(in_slice.sum())
    ids = np.empty(total, np.int16)
    labels = np.empty(total, np.int16)
    end = 0
    slices = list(zip(plan.documents.tolist(), plan.starts.tolist(), plan.stops.tolist()))
    for document, start, stop in slices:
        tokens = reader.tokens(document, start, stop)
        if start:
            ids[end], labels[end] = BOE, IGNORED_LABEL
            end += 1
        ids[end : end + len(tokens) - 1] = tokens[:-1]
        labels[end : end + len(tokens) - 1] = tokens[1:]
        end += len(tokens) - 1
    ended = plan.stops == catalogue.inputs[plan.documents]
    eos_alone = ended & catalogue.eos_alone[plan.documents]
    patches, slice_patches = None, np.zeros(len(slices), np.int64)
    if limits.patches is not None:
        lengths = [reader.patch_lengths(*piece) for piece in slices]
        patches = patch_map(lengths, boe > 0, ~ended | eos_alone)
        slice_patches = patches.in_slice - 1 + eos_alone
    return Pack(
        number=plan.number,
        step=step,
        limits=limits,
        ids=ids,
        labels=labels,
        in_slice=in_slice,
        patches=patches,
        subset=catalogue.subset[plan.documents],
        slice_bytes=plan.stops - plan.starts - ended,
        slice_patches=slice_patches,
        ended=ended,
    )


def patch_map(lengths: list[np.ndarray], boe: np.ndarray, next_starts: np.ndarray) -> PackPatches:
    """Patches of the tokens of a pack.

    lengths: of each slice's patches of inputs; boe bool [S]: BOE comes before them as a patch of its own; next_starts
    bool [S]: the token after the slice's last one begins a new patch. The decoder at a token reads the patch before
    that of the next token.
    """
    pieces = [piece for own, continued in zip(lengths, boe) for piece in (([1] if continued else []), own)]
    flat = np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)
    of_token = np.repeat(np.arange(len(flat), dtype=np.int32), flat)
    in_slice = np.array([len(own) for own in lengths], np.int64) + boe
    of_next = np.append(of_token[1:], np.int32(0))
    last_token = np.cumsum([own.sum() + continued for own, continued in zip(lengths, boe)], dtype=np.int64) - 1
    of_next[last_token] = of_token[last_token] + next_starts
    return PackPatches(of_token, of_next[: len(of_token)] - 1, in_slice)


def pack_digest(pack: Pack) -> str:
    """sha256 of everything a model or a metric reads of a pack; the same for every rank, worker and shard format."""
    step = pack.step
    content = hashlib.sha256(f"{pack.number} {step.number} {step.targets} {step.bytes} {pack.limits}".encode())
    arrays = [pack.ids, pack.labels, pack.in_slice, pack.subset, pack.slice_bytes, pack.slice_patches, pack.ended]
    if pack.patches is not None:
        arrays += [pack.patches.of_token, pack.patches.of_decoder, pack.patches.in_slice]
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
