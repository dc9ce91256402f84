"""Special ids that the model to begin with does not know: new rows of the byte embedding and of the head.

V ids that both know, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ModelFileError
from shared.model_settings import AnyModelSettings, specials_of
from shared.models.initialise import initial_value

GROWING = ("encoder.embedding.weight", "decoder.head.weight")
"""Parameters with a row for each id."""


@dataclass(frozen=True)
class NewIds:
    """Names that come after those of the model to begin with."""

    names: tuple[str, ...]
    seed: int

    def grow(self, name: str) -> bool:
        """Whether a parameter gets new rows."""
        return bool(self.names) and name in GROWING

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The shapes of the model to begin with as they will be."""
        return {
            name: (shape[0] + len(self.names), *shape[1:]) if self.grow(name) else tuple(shape)
            for name, shape in shapes.items()
        }

    def rows(self, name: str, known: Tensor) -> Tensor:
        """The rows that are known [V, D], then one for each new id, drawn from the seed and its name alone."""
        fresh = [initial_value(f"{name}/{special}", (1, known.shape[1]), self.seed) for special in self.names]
        return torch.cat([known, *(row.to(known) for row in fresh)])


def new_ids(theirs: AnyModelSettings, ours: AnyModelSettings, seed: int, where: Path) -> NewIds:
    """What has to be added to begin with a model. Raises ModelFileError where its ids mean something else here."""
    known, wanted = specials_of(theirs), specials_of(ours)
    if wanted[: len(known)] != known:
        raise ModelFileError(
            f"start.model {where} has the special ids {', '.join(known)}; model.specials must begin with them, "
            f"and has {', '.join(wanted) or 'none'}"
        )
    return NewIds(wanted[len(known) :], seed)
