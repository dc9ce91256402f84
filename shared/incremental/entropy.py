"""The entropy model over growing documents.

Shapes: R rows, n tokens that each row takes, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.entropy_model import EntropyModel
from shared.incremental.slots import Slots
from shared.incremental.stack import Rotations, StackCache
from shared.layers import Block, computing_dtype
from shared.vocabulary import NEWLINE


class EntropyRows:
    """R documents before an entropy model. Tokens are taken in two steps: `advance` reads them, `commit` keeps some."""

    def __init__(self, model: EntropyModel, rows: int = 1) -> None:
        weight = model.embedding.weight
        self.model = model
        self._slots = Slots(rows, model.settings.window, weight.device)
        self._cache = StackCache(model.settings, self._slots, computing_dtype(weight), weight.device)
        self._rotations = Rotations(model.settings, weight.device)
        self._since = torch.zeros(rows, 1, dtype=torch.int64, device=weight.device)
        """[R, 1], where the open context began; stays 0 without newline_reset."""
        self._contexts = self._since
        """[R, n], the same after each token of the last advance."""

    def advance(self, ids: Tensor) -> Tensor:
        """The next tokens of each row, int64 [R, n] -> logits fp32 [R, n, V]. Nothing is kept before `commit`."""
        since = None
        if self.model.settings.newline_reset:
            lengths = torch.tensor(self._slots.lengths, device=ids.device)[:, None]
            here = lengths + torch.arange(ids.shape[1], device=ids.device)
            since = torch.maximum(torch.where(ids == NEWLINE, here, 0).cummax(1).values, self._since)
            self._contexts = since
        place = self._slots.place(ids.shape[1], since=since)
        rotation = self._rotations.at(place, max(self._slots.lengths) + ids.shape[1])
        x = self.model.embed(ids.flatten())
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            x = self._cache.step(layer, block, x, rotation, place)
        return self.model.logits(x).unflatten(0, ids.shape)

    def commit(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens of each row's last advance."""
        self._slots.lengths = [length + count for length, count in zip(self._slots.lengths, kept)]
        if self.model.settings.newline_reset:
            last = torch.tensor(kept, device=self._since.device)[:, None] - 1
            self._since = self._contexts.gather(1, last)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self._slots.select(rows)
        self._cache.select(rows)
        self._since = self._since[list(rows)]

    @classmethod
    def joined(cls, parts: Sequence["EntropyRows"]) -> "EntropyRows":
        """The rows of all parts, one after another."""
        whole = cls(parts[0].model, 0)
        whole._slots = Slots.joined([part._slots for part in parts])
        whole._cache = StackCache.joined([part._cache for part in parts], whole._slots)
        whole._since = torch.cat([part._since for part in parts])
        return whole
