"""Initial parameters from (seed, parameter name) alone: equal for every world size, device and construction order."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def initial_value(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The initial value of one parameter, fp32 on the CPU.

    Vectors (norms) are ones. Matrices and embeddings [outputs, width] are normal with sigma = width^-0.5, truncated at
    3 sigma, as in the reference. N-gram tables get a quarter of that: their sum must not drown the byte's own
    embedding, all the more as most rows are rarely trained.
    """
    if len(shape) == 1:
        return torch.ones(*shape)
    sigma = shape[-1] ** -0.5
    if name.split(".")[-2:] == ["ngrams", "weight"]:
        sigma /= 4
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return nn.init.trunc_normal_(torch.empty(*shape), std=sigma, a=-3 * sigma, b=3 * sigma, generator=generator)


def initialise(model: nn.Module, seed: int) -> None:
    """Set every parameter of ``model`` to its initial value, in place, on whatever device it is."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, seed))
