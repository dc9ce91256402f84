"""Muon (Jordan et al. 2024): the update of a matrix is its momentum with all singular values brought near 1.

The scale is that of Liu et al. 2025 (Muon is scalable for LLM training, section 2.2): 0.2 sqrt(max(A, B)) gives an
update the root mean square that AdamW's usually have, so that one learning rate and one decay serve both.

Shapes: A rows, B columns of a projection.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from trainer.distributed.dtensor import to_local
from trainer.distributed.matrix_exchange import Piece, on_owners, share_out
from trainer.settings import MuonSettings

MOMENTUM = "momentum"
"""Key of a matrix's state: fp32 of its shape, sharded like it, the running mean of its gradients."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steep at 0, so that five steps lift small singular values, near 1 without reaching it."""


class Muon(torch.optim.Optimizer):
    """W -= lr (0.2 sqrt(max(A, B)) orthogonalised(momentum) + decay W), projection by projection.

    Projections that lie in one matrix (queries, keys and values; gate and up) are matrices of their own.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        settings: MuonSettings,
        outputs: Mapping[nn.Parameter, tuple[int, ...]],
    ) -> None:
        """``outputs``: rows of each projection in a matrix. All matrices are sharded alike, by rows, or not at all.

        State is made here: asked for the state of an optimizer that has none yet, torch takes a step without gradients.
        """
        super().__init__([dict(group) for group in groups], {"lr": lr, "weight_decay": 0.0})
        self.settings = settings
        self._matrices = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter in self._matrices:
            self.state[parameter][MOMENTUM] = torch.zeros_like(parameter, requires_grad=False)
        self._rank, ranks, self._group, self._device = layout(self._matrices[0])
        # Products in bf16 on a GPU: the iteration forgives it (Jordan et al.), and half as many bytes travel.
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._rounds = share_out(
            [
                Piece(number, range(first, last), *parameter.shape)
                for number, parameter in enumerate(self._matrices)
                for first, last in pairwise(accumulate(outputs[parameter], initial=0))
            ],
            ranks,
        )

    @torch.no_grad()
    # As in `RowwiseAdagrad.step`, no closure.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Learn from the gradients. All ranks take part."""
        rule, gradients = self.settings, []
        for parameter in self._matrices:
            assert parameter.grad is not None
            gradients.append(to_local(parameter.grad))
        momenta = [to_local(self.state[parameter][MOMENTUM]) for parameter in self._matrices]
        weights = [to_local(parameter) for parameter in self._matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - rule.momentum)

        def direction(piece: Piece, rows: slice) -> Tensor:
            momentum, gradient = momenta[piece.source][rows], gradients[piece.source][rows]
            looking = gradient.lerp(momentum, rule.momentum) if rule.nesterov else momentum
            return looking.to(self._device, self._dtype)

        rates: list[float] = []
        for group in self.param_groups:
            members = weights[len(rates) : len(rates) + len(group["params"])]
            rates += [group["lr"]] * len(members)
            torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
        for owned in self._rounds:
            found = on_owners(owned, self._rank, self._group, direction, lambda x: orthogonalise(x, rule.steps))
            for piece, rows, update in found:
                weight = weights[piece.source]
                scale = 0.2 * math.sqrt(max(len(piece.rows), piece.width))
                weight[rows].add_(update.to(weight.device), alpha=-rates[piece.source] * scale)


def layout(matrix: nn.Parameter) -> tuple[int, int, torch.distributed.ProcessGroup | None, torch.device]:
    """This rank among those that share a matrix, their number, their group, and the device that they compute on."""
    if not isinstance(matrix, DTensor):
        return 0, 1, None, matrix.device
    mesh = matrix.device_mesh
    (axis,) = (axis for axis, placement in enumerate(matrix.placements) if placement == Shard(0))
    device = torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")
    return mesh.get_local_rank(axis), mesh.size(axis), mesh.get_group(axis), device


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """[A, B] -> [A, B] with the same singular vectors and singular values near 1 (Newton-Schulz, quintic).

    Large and small matrices of one direction give the same; one of zeros stays so.
    """
    first, second, third = COEFFICIENTS
    # By the Frobenius norm, which is at least the largest singular value: the iteration needs them below about 1.
    x: Tensor = matrix / matrix.norm().clamp_min(1e-7)
    x = x.T if len(matrix) > matrix.shape[1] else x  # the smaller of the two products with the transpose
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.T if len(matrix) > matrix.shape[1] else x
