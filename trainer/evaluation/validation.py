"""The validation split, scored by all ranks of a run together."""

import numpy as np
from torch import nn

from shared.shards.dataset import Dataset
from trainer.data.mixture import Mixture
from trainer.data.packing.limits import PackLimits
from trainer.data.validation import ValidationPacks
from trainer.distributed.build import scatter
from trainer.distributed.world import World
from trainer.evaluation.scores import evaluate_sums, scores
from trainer.metrics.subset_score import SubsetScore


class Validation:
    """One pass over a dataset, each rank its packs."""

    def __init__(self, dataset: Dataset | Mixture, limits: PackLimits, world: World) -> None:
        self._packs = ValidationPacks(dataset, limits, world.rank, world.size)
        self._world = world

    def run(self, model: nn.Module) -> dict[str, SubsetScore]:
        """Scores by subset over all ranks; every rank takes part, with as many forwards as the others."""
        names = self._packs.subset_names
        own = evaluate_sums(model, self._packs, len(names), self._world.device)
        scatter(model)
        return scores(np.array(self._world.total(own.ravel().tolist())).reshape(own.shape), names)
