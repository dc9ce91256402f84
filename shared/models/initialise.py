"""Initial parameters from (seed, parameter name) alone: equal for every world size, device and construction order."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CHUNK = 1 << 22
"""Elements that one generator draws. A rank that holds some rows of a large table draws little more than these. Part of
what a seed means: another number gives other initial values."""


def initial_value(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The initial value of one parameter, fp32 on the CPU.

    Vectors are ones (norms) or zeros (biases). Matrices and embeddings [outputs, width] are normal with sigma =
    width^-0.5, truncated at 3 sigma, as in the reference. N-gram tables get a quarter of that: their sum must not drown
    the byte's local embedding, all the more as most rows are rarely trained.
    """
    value = torch.empty(*shape)
    set_initial_rows(value, name, shape, seed)
    return value


def set_initial_rows(local: Tensor, name: str, shape: Sequence[int], seed: int, first: int = 0) -> None:
    """Set a run of rows of a parameter of ``shape``, from row ``first`` on, to their initial values.

    Beside ``local`` (contiguous, on any device) there is never more than a chunk, and chunks without a row of it are
    not drawn.
    """
    if len(shape) == 1:
        local.fill_(0.0 if name.endswith(".bias") else 1.0)
        return
    sigma = shape[-1] ** -0.5
    if name.split(".")[-2:] == ["ngrams", "weight"]:
        sigma /= 4
    flat, begin = local.view(-1), first * math.prod(shape[1:])
    stop = begin + len(flat)
    for number in range(begin // CHUNK, -(-stop // CHUNK)):
        start = number * CHUNK
        chunk = torch.empty(min(CHUNK, math.prod(shape) - start))
        nn.init.trunc_normal_(chunk, std=sigma, a=-3 * sigma, b=3 * sigma, generator=_generator(name, seed, number))
        low, high = max(begin, start), min(stop, start + len(chunk))
        flat[low - begin : high - begin] = chunk[low - start : high - start]


def _generator(name: str, seed: int, chunk: int) -> torch.Generator:
    key = f"{seed}/{name}" if chunk == 0 else f"{seed}/{name}/{chunk}"
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # torch takes signed 64 bits


def initialise(model: nn.Module, seed: int) -> None:
    """Set every parameter of ``model`` to its initial value, in place, on whatever device it is."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            set_initial_rows(parameter, name, parameter.shape, seed)


@contextmanager
def without_values() -> Iterator[None]:
    """Parameters of the modules that are made within have shapes and no values (device "meta").

    Layers of torch draw values even there, for which it imports its compiler: over a second of a program's start.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Functions of torch.nn.init leave the tensor as it is."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = named or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return arguments[0] if arguments else named["tensor"]
        return function(*arguments, **named)
