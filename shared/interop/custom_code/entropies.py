"""How uncertain the next byte is, in nats: by a small transformer, or by a table of what followed before.

Shapes: B rows, n new ids of each, V vocabulary, N contexts.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.interop.custom_code.layers import Kept, RMSNorm, Step, blocks, read

NEWLINE = 14


class EntropyModel(nn.Module):
    """A transformer over bytes, which may see nothing before the last newline."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        self.settings = settings
        self.embed_tokens = nn.Embedding(settings["vocabulary"], settings["width"])
        self.layers = blocks(settings)
        self.norm = RMSNorm(settings["width"], settings["norm_eps"])
        self.lm_head = nn.Linear(settings["width"], settings["vocabulary"], bias=False)

    def fresh(self, rows: int) -> "Scored":
        """Nothing of any row."""
        device = self.lm_head.weight.device
        return Scored(Kept(self.settings["layers"], rows), torch.zeros(rows, 1, dtype=torch.int64, device=device))

    @torch.no_grad()
    def forward(self, ids: Tensor, step: Step, counts: list[int], kept: "Scored") -> list[list[float]]:
        """ids int64 [B, n] -> [B][n], the entropy of what follows each."""
        if self.settings["newline_reset"]:
            opened = torch.where(ids == NEWLINE, step.positions, 0).cummax(1).values
            since = torch.maximum(opened, kept.since)
            step = replace(step, since=since)
            ends = torch.tensor(counts, device=ids.device)[:, None]
            kept.since = torch.cat([kept.since, since], 1).gather(1, ends)
        x = read(self.layers, self.settings, self.embed_tokens(ids), step, self.settings["window"], kept.kept)
        logits = F.linear(self.norm(x).float(), self.lm_head.weight.float())
        return torch.distributions.Categorical(logits=logits, validate_args=False).entropy().tolist()


class Scored:
    """What an entropy model keeps of B rows."""

    def __init__(self, kept: Kept, since: Tensor) -> None:
        self.kept, self.since = kept, since


class CountTable(nn.Module):
    """One entropy for each context of a few bytes. To look one up takes no arithmetic: the same bits everywhere."""

    BITS = 9
    """Of an id in a context, whose newest id has the highest bits."""

    def __init__(self, settings: dict, slots: int) -> None:
        super().__init__()
        self.order, self.newline_reset = settings["order"], settings["newline_reset"]
        for name, shape in {"keys": (slots,), "entropies": (slots,), "root": (1,)}.items():
            dtype = torch.int64 if name == "keys" else torch.int32
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def fresh(self, rows: int) -> "Counted":
        """Nothing of any row."""
        return Counted(np.zeros((rows, self.order - 1), np.int64))

    def forward(self, ids: Tensor, step: Step, counts: list[int], kept: "Counted") -> list[list[float]]:
        """As of `EntropyModel`."""
        tokens = np.concatenate([kept.before, ids.cpu().numpy()], 1)
        ends = np.array(counts)[:, None] + np.arange(self.order - 1)
        kept.before = np.take_along_axis(tokens, ends, 1)
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

    def _found(self, keys: np.ndarray) -> np.ndarray:
        """fp32 [N] of contexts uint64 [N]: of each the longest that is in the table."""
        table = self.keys.cpu().numpy().view(np.uint64)
        entropies, root = (x.cpu().numpy().view(np.float32) for x in (self.entropies, self.root))
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


class Counted:
    """What a table of counts keeps of B rows: the last ids, int64 [B, order - 1]."""

    def __init__(self, before: np.ndarray) -> None:
        self.before = before
