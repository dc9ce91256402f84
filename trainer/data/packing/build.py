"""From plans to packs: tokens, labels and patches are read, several packs at a time. S slices of all of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shared.bpe.vocabulary import NO_TOKEN
from shared.vocabulary import BOE, BOS, EOS, IGNORED_LABEL, OFFSET, is_special
from trainer.data.packing.packs import Pack, PackArrays, Packs, Step, next_labels
from trainer.data.packing.planner import PackPlan
from trainer.data.packing.slices import Place, SliceReader, Slices
from trainer.data.packing.teacher import TeacherReader


def build_pack(plan: PackPlan, step: Step, reader: SliceReader) -> Pack:
    """Read the slices of one plan. Raises DatasetError naming shard and document where the data is damaged."""
    (pack,) = build_packs([(plan, step)], reader)
    return pack


def build_packs(
    planned: Sequence[tuple[PackPlan, Step]], reader: SliceReader, teacher: TeacherReader | None = None
) -> Packs:
    """The same of plans that follow one another, each with its step: much of the cost does not grow with the slices.

    ``teacher``: what it says of them is read, too.
    """
    plans = [plan for plan, _ in planned]
    slices = Slices(np.concatenate([plan.values for plan in plans], axis=1))
    kind = plans[0].limits  # of all of them, but for how many patches there may be
    arrays = _in_subwords(slices, reader) if kind.subwords else _in_bytes(slices, kind.patched, reader)
    if teacher is not None:
        assert arrays.patch_lengths is not None, "a student reads patches"
        symbols, logs = teacher.targets(slices, arrays.in_slice, reader)
        tokens = teacher.tokens(arrays.ids, arrays.patch_lengths)
        arrays = replace(arrays, teacher_symbols=symbols, teacher_logs=logs, teacher_tokens=tokens)
    numbers, counts = [plan.number for plan in plans], [len(plan.starts) for plan in plans]
    return Packs(arrays, [plan.limits for plan in plans], numbers, [step for _, step in planned], counts)


def _in_bytes(slices: Slices, patched: bool, reader: SliceReader) -> PackArrays:
    documents, starts, stops = slices.documents, slices.starts, slices.stops
    ended = stops == documents.inputs
    boe = starts > 0
    in_slice = stops - starts + boe
    plain = documents.plain
    pieces = reader.pieces(slices, patched)
    # Where a slice begins with BOS or BOE the pieces have a byte of any value, which is replaced here.
    ids = np.add(pieces.text, OFFSET, dtype=np.int16)
    last = np.cumsum(in_slice) - 1
    first = last - in_slice + 1
    ids[first] = np.where(boe, BOE, BOS)
    last_labels = np.full(len(in_slice), EOS, np.int16)
    # The label of the last input of a slice that is cut is the document's next byte, which is not in the pack.
    cut = (~ended & plain).nonzero()[0]
    last_labels[cut] = reader.next_bytes(slices, cut) + OFFSET
    slice_targets, slice_text = stops - starts, stops - starts - ended
    slice_bytes = slice_text.copy()
    span_labels = None if plain.all() else next_labels(ids, in_slice, last_labels)
    for number in [] if span_labels is None else np.flatnonzero(~plain).tolist():
        marked = reader.marked(documents[number], int(starts[number]), int(stops[number]))
        place = slice(first[number] + boe[number], last[number] + 1)
        ids[place] = marked.tokens[:-1]
        assert span_labels is not None
        span_labels[place] = np.where(marked.is_target[1:], marked.tokens[1:], IGNORED_LABEL)
        slice_targets[number], slice_bytes[number] = marked.targets, marked.target_bytes
        slice_text[number] = marked.text
    lengths, in_patches, eos_alone = None, np.zeros(len(in_slice), np.int64), ended & documents.eos_alone
    slice_patches = in_patches
    if patched:
        lengths, in_patches = pieces.lengths, slices.patches + boe
        ends = np.cumsum(in_patches)
        lengths[(ends - 1)[ended & ~eos_alone]] -= 1  # EOS is no input
        _check_lengths(lengths, ends - in_patches, in_slice, slices, reader)
        slice_patches = in_patches - 1 + eos_alone
    return PackArrays(
        ids=ids,
        last_labels=last_labels,
        span_labels=span_labels,
        in_slice=in_slice,
        patch_lengths=lengths,
        in_patches=in_patches,
        next_starts=~ended | eos_alone,
        subset=documents.subset.astype(np.int32),
        document=documents.reference,
        slice_targets=slice_targets,
        slice_bytes=slice_bytes,
        slice_text=slice_text,
        slice_patches=slice_patches,
        ended=ended,
    )


def _in_subwords(slices: Slices, reader: SliceReader) -> PackArrays:
    """As a model of subwords reads it, each patch a token.

    Targets are then those inside slices (see `PackArrays.subword_labels`), counted in the bytes that they stand for.
    Raises DatasetError naming shard and document where a patch is no token.
    """
    arrays = _in_bytes(slices, True, reader)
    assert arrays.patch_lengths is not None
    in_patches, lengths = arrays.in_patches, arrays.patch_lengths.astype(np.int64)
    starts, last = np.cumsum(lengths) - lengths, np.cumsum(in_patches) - 1
    first = last - in_patches + 1
    # Ids below OFFSET are no bytes: they get any here, and their own id in the next two lines.
    ids = reader.subwords.ids((np.maximum(arrays.ids, OFFSET) - OFFSET).astype(np.uint8), lengths)
    ids[is_special(arrays.ids[starts])] = NO_TOKEN
    ids[first] = arrays.ids[starts[first]]
    for wrong in np.flatnonzero(ids == NO_TOKEN)[:1].tolist():
        problem = f"a patch of {lengths[wrong]} bytes that is not a token of the tokenizer"
        raise reader.damaged(_first_place(slices, int(np.searchsorted(last, wrong))), problem)
    is_target = reader.target_mask(slices)
    ends = np.cumsum(arrays.in_slice) - 1
    last_labels = arrays.last_labels if arrays.span_labels is None else arrays.span_labels[ends]
    eos = arrays.ended & (last_labels == EOS)
    labels = np.full_like(ids, IGNORED_LABEL)
    labels[:-1][is_target[starts[1:]]] = ids[1:][is_target[starts[1:]]]
    labels[last] = np.where(eos, EOS, IGNORED_LABEL)
    slice_bytes = np.add.reduceat(is_target, starts[first], dtype=np.int64) if len(first) else arrays.slice_bytes
    return replace(
        arrays,
        subword_ids=ids,
        subword_labels=labels,
        slice_targets=slice_bytes + eos,
        slice_bytes=slice_bytes,
        slice_text=arrays.in_slice - 1,
    )


def _first_place(slices: Slices, number: int) -> Place:
    """Where the document of a slice begins."""
    document = slices.documents[number]
    return Place(document.shard, document.batch, document.row)


def _check_lengths(
    lengths: np.ndarray, firsts: np.ndarray, in_slice: np.ndarray, slices: Slices, reader: SliceReader
) -> None:
    """Raise DatasetError when the patches of a slice do not add up to its tokens, or one has none."""
    if not len(firsts):
        return
    found = np.add.reduceat(lengths, firsts, dtype=np.int64)
    for wrong in ((found != in_slice) | (np.minimum.reduceat(lengths, firsts) == 0)).nonzero()[0][:1].tolist():
        problem = f"patches of {found[wrong]} inputs, the index says {in_slice[wrong]}"
        if found[wrong] == in_slice[wrong]:
            problem = "a patch without any input"
        raise reader.damaged(_first_place(slices, wrong), problem)
