"""The validation split, scored by all ranks of a run together."""

import numpy as np
from torch import nn

from shared.shards.dataset import Dataset
from trainer.data.mixture import Mixture
from trainer.data.packing.limits import PackLimits
from trainer.data.patch_schedule import PatchSchedule
from trainer.data.recut_lengths import RecutLengths
from trainer.data.validation import ValidationPacks
from trainer.distributed.build import scatter
from trainer.distributed.world import World
from trainer.evaluation.scores import evaluate_sums, scores
from trainer.metrics.subset_score import SubsetScore


class Validation:
    """One pass over a dataset, each rank its packs."""

    def __init__(
        self, dataset: Dataset | Mixture, limits: PackLimits, world: World, schedule: PatchSchedule | None = None
    ) -> None:
        """``schedule``: of a run whose patch size changes. What counts is its last phase, which the model will have."""
        self._dataset, self._world, self._phases = dataset, world, schedule.phases if schedule else ()
        recut = RecutLengths(dataset, [self._phases[-1].patching]) if self._phases else None
        self._packs = ValidationPacks(dataset, limits, world.rank, world.size, recut)

    def run(self, model: nn.Module) -> dict[str, SubsetScore]:
        """Scores by subset over all ranks; every rank takes part, with as many forwards as the others."""
        return self._scores(model, self._packs)

    def run_phase(self, model: nn.Module, number: int) -> dict[str, SubsetScore] | None:
        """The same with the patches of a phase that is not the last; None in that one, and without phases."""
        if number >= len(self._phases) - 1:
            return None
        phase = self._phases[number]
        recut = RecutLengths(self._dataset, [phase.patching])
        world = self._world
        return self._scores(model, ValidationPacks(self._dataset, phase.limits, world.rank, world.size, recut))

    def _scores(self, model: nn.Module, packs: ValidationPacks) -> dict[str, SubsetScore]:
        names = packs.subset_names
        own = evaluate_sums(model, packs, len(names), self._world.device)
        scatter(model)
        return scores(np.array(self._world.total(own.ravel().tolist())).reshape(own.shape), names)
