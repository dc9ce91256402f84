"""Patches by a rule, for a model that does not find them itself: the rule, and the entropy model that it needs.

Shapes: B rows, n new ids of each.
"""

import numpy as np
from torch import Tensor, nn

from shared.interop.custom_code.causal_lm import PatchworkConfig
from shared.interop.custom_code.entropies import CountCache, CountTable, EntropyCache, EntropyModel
from shared.interop.custom_code.layers import Step
from shared.interop.custom_code.rules import Rule

NAMED = 260
"""The first id behind those of bytes: named special ids begin here."""
RESERVED = 3


class RuleConfig(PatchworkConfig):
    """Also the threshold of a rule on entropies, and how many entries the table of an entropy model that counts has."""

    patching_threshold: float | None = None
    count_table_slots: int = 0


class RuleModel(nn.Module):
    """A model with the entropy model of its rule inside, where the rule needs one."""

    def __init__(self, config: RuleConfig) -> None:
        super().__init__()
        entropies = config.patchwork["entropy_model"]
        if entropies is not None:
            if entropies["kind"] == "counts":
                self.count_table = CountTable(entropies, config.count_table_slots)
            else:
                self.patcher = EntropyModel(entropies)

    @property
    def entropies(self) -> EntropyModel | CountTable | None:
        """Whatever finds how uncertain the next byte is."""
        return getattr(self, "count_table", getattr(self, "patcher", None))


class Boundaries:
    """Where the patches of B rows end."""

    def __init__(self, model: RuleModel, config: RuleConfig, rows: int) -> None:
        patching = config.patchwork["patching"] | {"theta": config.patching_threshold}
        self.rules = [Rule(patching) for _ in range(rows)]
        entropies = model.entropies
        self.cache: EntropyCache | CountCache | None = None if entropies is None else entropies.new_cache(rows)
        """The entropy model's."""

    def ends(self, model: RuleModel, ids: Tensor, step: Step) -> np.ndarray:
        """bool [B, n], whether a patch ends with each of the next ids int64 [B, n]."""
        if self.cache is None:
            entropies = [[None] * ids.shape[1]] * len(ids)
        else:
            # It was trained on bytes alone, and meets every named special id as the reserved one.
            known = ids.masked_fill(ids >= NAMED, RESERVED)
            entropies = model.entropies(known, step, self.cache)
        found = np.zeros(ids.shape, bool)
        for row, tokens in enumerate(ids.tolist()):
            for column in range(step.sizes[row]):
                found[row, column] = self.rules[row].ends(tokens[column], entropies[row][column])
        return found
