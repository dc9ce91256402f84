"""Chains with backward passes by hand: their gradients, and that they compute what the plain formulas do."""

from collections.abc import Callable

import pytest
import torch
from helpers.rounding import assert_equal_but_rounded, fp64
from torch import Tensor
from torch.autograd import gradcheck

from shared.layers import fused_ops as pointwise
from shared.layers.fused_ops import apply_rotary, rms_norm, swiglu
from shared.layers.rotary import rotary
from shared.stack_settings import StackSettings

STACK = StackSettings(width=32, layers=1, heads=4, kv_heads=2)
Chain = Callable[..., Tensor | tuple[Tensor, ...]]


def exact(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_by_hand_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    assert gradcheck(lambda x, w: pointwise._RmsNorm.apply(x, w, 1e-5), (exact(3, 2, 6), exact(6)))
    assert gradcheck(pointwise._SwiGlu.apply, (exact(4, 10),))


CHAINS: dict[str, tuple[Chain, list[tuple[int, ...]]]] = {
    "norm": (lambda x, w: rms_norm(x, w, 1e-5), [(50, 3, 16), (16,)]),
    "gate": (swiglu, [(50, 24)]),
    "apply_rotary": (lambda x: apply_rotary(x, rotary(torch.arange(7, 57), STACK), 4, 2), [(50, 8, 8)]),
}


@pytest.mark.numerics
@pytest.mark.parametrize("name", CHAINS)
def test_by_hand_equals_the_plain_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    chain, shapes = CHAINS[name]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        out = chain(*inputs)
        outs = list(out) if isinstance(out, tuple) else [out]
        weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32) for x in outs]
        return [*outs, *torch.autograd.grad(outs, inputs, [x.to(inputs[0].dtype) for x in weights])]

    found = run(inputs)
    monkeypatch.setattr(pointwise, "use_custom_backward", lambda x: False)
    with fp64():
        exact = run([x.detach().double().requires_grad_() for x in inputs])
    assert_equal_but_rounded(found, run(inputs), exact)


@pytest.mark.numerics
@pytest.mark.parametrize("name", CHAINS)
def test_bfloat16_stays_and_agrees_with_fp32(name: str) -> None:
    torch.manual_seed(1)
    chain, shapes = CHAINS[name]
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    half, whole = chain(*inputs), chain(*(x.float() for x in inputs))
    for mine, exact in zip(*((x if isinstance(x, tuple) else (x,)) for x in (half, whole)), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), exact, atol=0.02, rtol=2**-6)


def test_a_frozen_norm_passes_gradients_on() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8)
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).sum(), x)
    assert gradient.isfinite().all()
