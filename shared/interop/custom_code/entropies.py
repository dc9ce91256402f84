"""How uncertain the next byte is, in nats: by a small transformer, or by a table of what followed before.

Shapes: B rows, n new ids of each, V vocabulary, N contexts.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.interop.custom_code.layers import (
    NEWLINE,
    KeyValues,
    RMSNorm,
    Step,
    blocks,
    through_stack,
    within_lines,
)


class EntropyModel(nn.Module):
    """A transformer over bytes. With ``newline_reset`` it sees nothing before the last newline."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        self.settings = settings
        self.embed_tokens = nn.Embedding(settings["vocabulary"], settings["width"])
        self.layers = blocks(settings)
        self.norm = RMSNorm(settings["width"], settings["norm_eps"])
        self.lm_head = nn.Linear(settings["width"], settings["vocabulary"], bias=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """It moves with the model, and stays fp32: in another dtype patches would begin elsewhere."""
        return super()._apply(lambda x: fn(x) if x.is_meta else x.to(fn(x).device), recurse)

    def train(self, mode: bool = True) -> "EntropyModel":
        """It does not learn: the model was trained on the patches that it finds as it is."""
        return super().train(False).requires_grad_(False)

    def new_cache(self, rows: int) -> "EntropyCache":
        """Nothing of any row."""
        since = torch.zeros(rows, 1, dtype=torch.int64, device=self.lm_head.weight.device)
        return EntropyCache(KeyValues(self.settings["layers"], rows), since)

    @torch.no_grad()
    def forward(self, ids: Tensor, step: Step, cache: "EntropyCache") -> list[list[float]]:
        """ids int64 [B, n] -> [B][n] nats, the entropy of what follows each."""
        if self.settings["newline_reset"]:
            step, cache.since = within_lines(ids, step, cache.since)
        with torch.autocast(ids.device.type, enabled=False):
            x, window = self.embed_tokens(ids), self.settings["window"]
            x = through_stack(self.layers, self.settings, x, step, window, cache.key_values)
            logits = F.linear(self.norm(x), self.lm_head.weight)
        return torch.distributions.Categorical(logits=logits, validate_args=False).entropy().tolist()


class EntropyCache:
    """What an entropy model keeps of B rows."""

    def __init__(self, key_values: KeyValues, since: Tensor) -> None:
        self.key_values = key_values
        self.since = since
        """int64 [B, 1], the position of the newline before which nothing is seen."""


class CountTable(nn.Module):
    """One entropy for each context of a few bytes. To look one up takes no arithmetic: the same bits everywhere."""

    BITS = 9
    """A context is a number with so many bits for each of its ids, the highest for the newest."""

    def __init__(self, settings: dict, slots: int) -> None:
        super().__init__()
        self.order, self.newline_reset = settings["order"], settings["newline_reset"]
        for name, shape in {"keys": (slots,), "entropies": (slots,), "root": (1,)}.items():
            dtype = torch.int64 if name == "keys" else torch.int32
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self._read: tuple | None = None

    def new_cache(self, rows: int) -> "CountCache":
        """Nothing of any row."""
        return CountCache(np.zeros((rows, self.order - 1), np.int64))

    def forward(self, ids: Tensor, step: Step, cache: "CountCache") -> list[list[float]]:
        """ids int64 [B, n] -> [B][n] nats, the entropy of what follows each."""
        tokens = np.concatenate([cache.before, ids.cpu().numpy()], 1)
        ends = np.array(step.sizes)[:, None] + np.arange(self.order - 1)
        cache.before = np.take_along_axis(tokens, ends, 1)
        keys = self._contexts(tokens)[:, self.order - 1 :]
        return self._found(np.ascontiguousarray(keys).ravel()).reshape(keys.shape).tolist()

    def _shortened(self, elements: int) -> np.uint64:
        """The bits of the newest ids of a context."""
        return np.uint64((1 << self.BITS * self.order) - (1 << self.BITS * (self.order - elements)))

    def _contexts(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B, N] -> uint64 [B, N], the longest context at each: it begins with a special id at the latest."""
        elements = tokens.astype(np.uint64)
        keys = elements << np.uint64(self.BITS * (self.order - 1))
        for back in range(1, self.order):
            keys[:, back:] |= elements[:, :-back] << np.uint64(self.BITS * (self.order - 1 - back))
        opening = (tokens > 0) & (tokens < 4) | (self.newline_reset & (tokens == NEWLINE))
        rows, columns = opening.nonzero()
        for after in range(self.order - 1):
            inside = columns + after < keys.shape[1]
            keys[rows[inside], columns[inside] + after] &= self._shortened(after + 1)
        return keys

    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Contexts uint64, entropies and the root's fp32, where the processor reads them: copied once from a device."""
        state = tuple((x.data_ptr(), x._version) for x in (self.keys, self.entropies, self.root))
        if self._read is None or self._read[0] != state:
            keys, *values = (x.cpu().numpy() for x in (self.keys, self.entropies, self.root))
            self._read = state, (keys.view(np.uint64), *(x.view(np.float32) for x in values))
        return self._read[1]

    def _found(self, keys: np.ndarray) -> np.ndarray:
        """fp32 [N] of contexts uint64 [N]: of each the longest that is in the table."""
        table, entropies, root = self._table()
        found, unknown = np.full(len(keys), root[0]), np.arange(len(keys))
        shift = np.uint64(64 - ((len(table) - 1).bit_length() - 1))
        for length in range(self.order, 0, -1):
            wanted = keys[unknown] & self._shortened(length)
            slots = (wanted * np.uint64(0x9E3779B97F4A7C15) >> shift).astype(np.int64)
            looking = np.arange(len(wanted))
            while len(looking):  # in the next slots, up to an empty one
                there = table[slots[looking]]
                looking = looking[(there != wanted[looking]) & (there != 0)]
                slots[looking] += 1
            known = table[slots] == wanted
            found[unknown[known]] = entropies[slots[known]]
            unknown = unknown[~known]
        return found


class CountCache:
    """What a table of counts keeps of B rows: the last ids, int64 [B, order - 1], 0 before a text."""

    def __init__(self, before: np.ndarray) -> None:
        self.before = before
