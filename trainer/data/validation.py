"""Validation packs: one pass in the order of the dataset, no document cut that fits into a pack."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice

import numpy as np

from trainer.data.documents import NO_DOCUMENTS, Documents, documents_in_order
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack, Step
from trainer.data.packing.planner import PackPlan, Room, Upcoming, continue_document, require_documents
from trainer.data.packing.slices import SliceReader
from trainer.data.recut_lengths import RecutLengths
from trainer.data.source import Source

BLOCK = 4096
"""Documents at hand at a time."""


class ValidationPacks:
    """The packs of one rank, as many as every other rank has: the last may be empty, so that all run equal forwards.

    Can be iterated again and again. Packs are planned as they are read: nothing is held of the whole dataset.
    """

    def __init__(
        self, dataset: Source, limits: PackLimits, rank: int = 0, ranks: int = 1, recut: RecutLengths | None = None
    ) -> None:
        """``recut``: patch lengths to use in place of the stored ones.

        Raises DatasetError when the dataset is damaged or empty.
        """
        require_documents(dataset)
        self.subset_names = dataset.subset_names
        self.documents = sum(totals.documents for totals in dataset.subsets.values())
        """Of all ranks together."""
        self.ranks = ranks
        self._source, self._limits, self._rank = dataset, limits, rank
        self._reader = SliceReader(dataset, recut)

    def __len__(self) -> int:
        return -(-self._planned[0] // self.ranks)

    def subset_of_documents(self) -> np.ndarray:
        """int64 [documents]: code of each into subset_names, in the order of the dataset."""
        return np.concatenate([documents.subset for documents in documents_in_order(self._source, BLOCK)])

    def slices(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """int64 [S] each, pack by pack: tokens, patches and subset of every slice, BOE included, padding left out."""
        for plan, _ in self._numbered():
            boe = plan.starts > 0
            yield plan.stops - plan.starts + boe, plan.patches + boe, plan.documents.subset

    def __iter__(self) -> Iterator[Pack]:
        step = Step(0, *self._targets)
        for plan, first in self._numbered():
            # Numbers in the dataset, which sums over documents are kept by.
            number = first + np.cumsum(plan.starts == 0) - 1
            yield replace(build_pack(plan, step, self._reader), document=number)

    @cached_property
    def _planned(self) -> tuple[int, int, int]:
        """Packs, targets and bytes of text among them, of all ranks together."""
        packs = targets = text = 0
        for plan in plan_validation(self._source, self._reader, self._limits):
            packs, targets, text = packs + 1, targets + plan.targets, text + plan.bytes
        return packs, targets, text

    @property
    def _targets(self) -> tuple[int, int]:
        """Targets and bytes of text among them, of all ranks together."""
        if self._limits.subwords:
            return self._planned[1:]  # which depend on the cuts
        totals = self._source.subsets.values()
        return sum(one.targets for one in totals), sum(one.target_bytes for one in totals)

    def _numbered(self) -> Iterator[tuple[PackPlan, int]]:
        """The plans of this rank, each with how many documents begin in the packs before it."""
        begun = 0
        plans = plan_validation(self._source, self._reader, self._limits)
        while turn := list(islice(plans, self.ranks)):
            empty = (Room(self._limits).plan(turn[-1].number + 1 + number) for number in range(self.ranks))
            for rank, plan in enumerate(islice(chain(turn, empty), self.ranks)):
                if rank == self._rank:
                    yield plan, begun
                begun += int((plan.starts == 0).sum())


def plan_validation(source: Source, reader: SliceReader, limits: PackLimits) -> Iterator[PackPlan]:
    """All documents in order. One that does not fit into what is left of a pack begins the next; if it is longer than a
    whole pack, it is cut.
    """
    blocks = documents_in_order(source, BLOCK, reader.recut)
    upcoming = Upcoming(NO_DOCUMENTS, limits.credit)
    position = offset = number = 0
    while True:
        while (
            upcoming.tokens_from(position) - offset <= limits.tokens
        ):  # so that what is at hand never ends before the pack
            if (block := next(blocks, None)) is None:
                break
            waiting = upcoming.documents.values[:, position:]
            documents = Documents(np.concatenate([waiting, block.values], axis=1))
            upcoming, position = Upcoming(documents, limits.credit), 0
        if position == len(upcoming.documents):
            return
        room = Room(limits)
        following = position if offset else upcoming.fill(position, room)
        if following == position:  # longer than a whole pack
            document = upcoming.documents[position]
            offset = continue_document(reader, document, offset, room)
            if offset == document.inputs:
                following, offset = upcoming.fill(position + 1, room), 0
        position = following
        yield room.plan(number)
        number += 1
