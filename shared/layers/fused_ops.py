"""What the blocks do between products of matrices, with backward passes that touch memory as little as they can.

The stock backward of these chains takes two to three times as long on a CPU. Accelerators have kernels of their own and
the compiler fuses the plain formulas, so both get those.

Shapes: N positions, D width, H heads, C head width, F hidden width of the feed-forward part.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def use_custom_backward(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def _with_backward(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """A function with its own backward pass, or its forward pass alone where nothing is differentiated: a tenth of a
    small call is the bookkeeping.
    """
    return function.apply(*inputs) if torch.is_grad_enabled() else function.forward(_Nothing(), *inputs)


class _Nothing:
    """Stands for the context of a forward pass that no backward pass follows."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep nothing."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x^2) + eps) * weight [D], computed in fp32; dtype of x."""
    if use_custom_backward(x):
        normed: Tensor = _with_backward(_RmsNorm, x, weight.float(), eps)
        return normed
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (x * scale).mul_(weight)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        even = x * scale
        product = grad * even
        of_weight = product.flatten(0, -2).sum(0)
        along = (product @ weight).div_(-x.shape[-1])[..., None]
        return torch.mul(grad, weight, out=product).addcmul_(even, along).mul_(scale), of_weight, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [..., 2 F], gate first, -> [..., F] (Shazeer 2020)."""
    if use_custom_backward(gate_up):
        product: Tensor = _with_backward(_SwiGlu, gate_up)
        return product
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        total = torch.empty_like(gate_up)
        (gate, up), (of_gate, of_up) = gate_up.chunk(2, dim=-1), total.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return total


def apply_rotary(heads: Tensor, rotation: Tensor, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values from heads [N, H, C] in that order, the first two turned by ``rotation`` [N, C/2]."""
    if use_custom_backward(heads):
        q, k, v = _with_backward(_Turn, heads, rotation, queries, keys)
        return q, k, v
    turned = rotate(heads[:, : queries + keys], rotation)
    return turned[:, :queries], turned[:, queries:], heads[:, queries + keys :]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of x [N, H, C] by ``rotation`` [N, C/2], in fp32; dtype is kept."""
    return torch.view_as_real(_pairs(x.float()) * rotation[:, None]).flatten(-2).to(x.dtype)


def _pairs(x: Tensor) -> Tensor:
    """fp32 [N, H, C] -> complex64 [N, H, C/2], a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, rotation: Tensor, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(rotation)
        turned = rotate(heads[:, : queries + keys], rotation)
        return turned[:, :queries], turned[:, queries:], heads[:, queries + keys :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, None, None, None]:
        (rotation,) = ctx.saved_tensors
        counts = of_q.shape[1], of_k.shape[1], of_v.shape[1]
        total = of_q.new_empty(of_q.shape[0], sum(counts), of_q.shape[2])
        q, k, v = total.split(counts, dim=1)
        back = rotation[:, None].conj()
        torch.mul(_pairs(of_q), back, out=_pairs(q))
        torch.mul(_pairs(of_k), back, out=_pairs(k))
        v.copy_(of_v)
        return total, None, None, None
