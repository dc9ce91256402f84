"""Patches of rows of ids: large blocks run over them as they end, and ids read the last one that has ended.

Shapes: B rows, n new ids of each, P patches that end among them, row by row, R rows that have any, C the most of one
row, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from shared.interop.custom_code.layers import KeyValues, Step, through_stack


class PatchCache:
    """What large blocks keep of B rows."""

    def __init__(self, stack: dict, rows: int) -> None:
        self.key_values = KeyValues(stack["layers"], rows)
        self.patches = [0] * rows
        """Whole ones, by row."""


def by_row(x: Tensor, total: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of patches [P, ...], ``total`` int64 [B] of each row: the same as [R, C, ...], and bool [R, C] which are real."""
    counts = total[total > 0]
    real = torch.from_numpy(np.arange(counts.max()) < counts[:, None]).to(x.device)
    return x.new_zeros(*real.shape, *x.shape[1:]).index_put(real.nonzero(as_tuple=True), x), real


def through_patches(layers: nn.ModuleList, stack: dict, x: Tensor, total: np.ndarray, cache: PatchCache) -> Tensor:
    """New patches [P, D], ``total`` int64 [B] of each row, through large blocks, which also see those before."""
    rows = np.flatnonzero(total)
    padded, real = by_row(x, total)
    chosen = None if len(rows) == len(total) else torch.from_numpy(rows).to(x.device)
    starts, sizes = [cache.patches[row] for row in rows], total[rows].tolist()
    step = Step.of(starts, sizes, padded.shape[1], x.device, chosen)
    cache.patches = [patches + int(new) for patches, new in zip(cache.patches, total)]
    return through_stack(layers, stack, padded, step, None, cache.key_values)[real]


def last_ended(ends: np.ndarray) -> np.ndarray:
    """From bool [B, n], whether a patch ends with each id, what each id reads: int64 [B, n] of B + P entries.

    The first B are what rows read before; from the id that ends a patch on, it is that patch.
    """
    done, total = ends.cumsum(1), ends.sum(1)
    first = len(ends) + np.cumsum(total) - total
    return np.where(done > 0, first[:, None] + done - 1, np.arange(len(ends))[:, None])


def last_real(x: Tensor, before: Tensor, sizes: list[int]) -> Tensor:
    """[B, n, ...], of which the first ``sizes`` of a row are real -> [B, ...] of its last real id, or ``before``."""
    rows = torch.arange(len(x), device=x.device)
    return torch.cat([before[:, None], x], 1)[rows, torch.tensor(sizes, device=x.device)]
