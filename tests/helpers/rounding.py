"""Two ways of computing the same in fp32, compared by their errors against fp64.

How far two right results are apart depends on the processor (instructions, order of sums), on the size of what is
added, and on how much of it cancels. The error of one of them against fp64 measures all three where the test runs; so
the other one is allowed a multiple of that, and no number is fitted to a machine.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from shared.vocabulary import VOCABULARY_SIZE

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
Results = Any
"""A tensor, an array or a number, or a sequence or a mapping of them."""

ROUNDING = torch.finfo(torch.float32).eps / 2
"""The largest relative error of one rounding to fp32."""
TIMES = 16
"""An error may be so many times the other one: both are largest errors of few numbers, which vary."""
ROUNDINGS = 32
"""Beside that, so many roundings of the largest result: where one way happens to be exact, or has one number only."""
WRONG = 2**-8
"""No error is larger, relative to the largest result of a tensor: both ways would share it."""
NATS = 128 * ROUNDING
"""Relative: what two ways of adding up the nats of a text may differ by. Logits of our small models are off by 5 to 25
roundings of the largest logit; the nats of a byte take two of them, and are about as large."""
ENTROPY = NATS * math.log(VOCABULARY_SIZE)
"""The same of an entropy, which is at most the logarithm of all ids; law 2 allows 1e-4."""
TRAINED = 2**-10
"""Relative: what losses of a few steps may differ by where gradients were added up in another order. Adam divides by
the size of a gradient, so that rounding shows in full where a gradient is nearly nothing; a loss moves by less."""


def in_fp64(model: M, compute: Callable[[M], T]) -> T:
    """What ``compute`` gives for a copy of a model or a layer when all is computed in fp64."""
    with fp64():
        return compute(copy.deepcopy(model).double())


@contextmanager
def fp64() -> Iterator[None]:
    """Let our code compute in fp64 where it widens to fp32 or makes new tensors; what goes in has to be fp64 too.

    Attention and the chains with backward passes by hand go their plain ways, which have nothing of the fast ones.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            patch.setattr("shared.layers.attention.takes_tiles", lambda device: False)
            patch.setattr("shared.layers.cross_attention.takes_tiles", lambda device: False)
            yield
    finally:
        torch.set_default_dtype(default)


def assert_equal_but_rounded(
    one: Results, other: Results, exact: Results, terms: float = 0.0, name: str = "result"
) -> None:
    """Both are as near to ``exact`` as rounding to fp32 lets them be. Mappings and sequences are compared by entry.

    ``terms`` is the size of what is summed, where it may cancel to nothing; else the largest result stands for it.
    """
    if isinstance(exact, Mapping):
        assert one.keys() == other.keys() == exact.keys()
        for key in exact:
            assert_equal_but_rounded(one[key], other[key], exact[key], terms, f"{name} {key}")
    elif isinstance(exact, Sequence):
        assert len(one) == len(other) == len(exact)
        for number, entries in enumerate(zip(one, other, exact)):
            assert_equal_but_rounded(*entries, terms, f"{name} {number}")
    else:
        tensors = [torch.as_tensor(value).detach() for value in (one, other, exact)]
        _compare(tensors[0], tensors[1], tensors[2], terms, name)


def _compare(one: Tensor, other: Tensor, exact: Tensor, terms: float, name: str) -> None:
    assert exact.dtype == torch.float64, f"{name}: the exact one is {exact.dtype}"
    assert one.shape == other.shape == exact.shape, f"{name}: {one.shape}, {other.shape}, {exact.shape}"
    if not exact.numel():
        return
    errors = [float((value.double() - exact).abs().max()) for value in (one, other)]
    scale = max(terms, float(exact.abs().max()))
    allowed = min(TIMES * min(errors) + ROUNDINGS * ROUNDING * scale, WRONG * scale)
    assert max(errors) <= allowed, (
        f"{name}: errors {errors[0]:.2e} and {errors[1]:.2e} against fp64, {allowed:.2e} allowed; up to {scale:.2e}"
    )
