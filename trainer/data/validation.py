"""Validation packs: one pass in the order of the dataset, no document cut that fits into a pack."""

from collections.abc import Iterator

import numpy as np

from trainer.data.catalogue import Catalogue, catalogue_of
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack, Step, build_pack
from trainer.data.packing.planner import PackPlan, Room, Upcoming, continue_document
from trainer.data.packing.slices import SliceReader
from trainer.data.source import Source


class ValidationPacks:
    """The packs of one rank, as many as every other rank has: the last may be empty, so that all run equal forwards.

    Can be iterated again and again.
    """

    def __init__(self, dataset: Source, limits: PackLimits, rank: int = 0, ranks: int = 1) -> None:
        """Raises DatasetError when the dataset is damaged or empty."""
        self.subset_names = dataset.subset_names
        self.ranks = ranks
        self._limits = limits
        self.catalogue = catalogue_of(dataset)
        self._reader = SliceReader(dataset, self.catalogue)
        plans = plan_validation(self.catalogue, self._reader, limits)
        empty = [Room(limits).plan(number) for number in range(len(plans), len(plans) + -len(plans) % ranks)]
        self._step = Step(0, sum(plan.targets for plan in plans), sum(plan.bytes for plan in plans))
        self._plans = [*plans, *empty][rank::ranks]

    def __len__(self) -> int:
        return len(self._plans)

    def slices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [S] each: tokens, patches and document of every slice, BOE included, as planned; padding is none."""
        starts, stops, patches, documents = (
            np.concatenate([getattr(plan, name) for plan in self._plans])
            for name in ("starts", "stops", "patches", "documents")
        )
        boe = starts > 0
        return stops - starts + boe, patches + boe, documents

    def __iter__(self) -> Iterator[Pack]:
        for plan in self._plans:
            yield build_pack(plan, self._step, self._limits, self.catalogue, self._reader)


def plan_validation(catalogue: Catalogue, reader: SliceReader, limits: PackLimits) -> list[PackPlan]:
    """All documents in order. One that does not fit into what is left of a pack begins the next; if it is longer than a
    whole pack, it is cut.
    """
    upcoming = Upcoming(catalogue, np.arange(len(catalogue)))
    plans: list[PackPlan] = []
    position = offset = 0
    while position < len(catalogue):
        room = Room(limits)
        following = position if offset else upcoming.fill(position, room)
        if following == position:  # longer than a whole pack
            inputs = int(catalogue.inputs[position])
            offset = continue_document(reader, inputs, position, offset, room)
            if offset == inputs:
                following, offset = upcoming.fill(position + 1, room), 0
        position = following
        plans.append(room.plan(len(plans)))
    return plans
