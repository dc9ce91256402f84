"""The products of the global transformer in float8, by torchao, on GPUs that have it.

Masters, gradients, moments and what travels stay as they are: weights and activations are scaled, tensor by tensor, and
rounded right before each product. Written from torchao's documentation; conversion has been tried with the products
emulated on a CPU, nothing has run on a GPU.
"""

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.layers.blocks import Linear
from shared.models.blt import Blt
from trainer.settings import TrainSettings

DIVISOR = 16
"""Float8 products take sizes that this divides."""
OLDEST = (8, 9)
"""Compute capability of the first GPUs with float8 products (Ada; Hopper is 9.0)."""


def check_float8(settings: TrainSettings, device: torch.device) -> None:
    """Raise ConfigError, saying what is missing, when float8 is asked for and cannot be had."""
    if not settings.parallel.float8:
        return
    if settings.model.kind != "blt":
        raise ConfigError(
            f"parallel.float8 is for the global transformer of a BLT, not for model.kind {settings.model.kind!r}"
        )
    if settings.run.dtype != "bfloat16":
        raise ConfigError(f"parallel.float8 needs run.dtype 'bfloat16', not {settings.run.dtype!r}")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < OLDEST:
        found = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(f"parallel.float8 needs a Hopper GPU or one as new; this rank computes on {found}")
    if find_spec("torchao") is None:
        raise ConfigError("parallel.float8 needs torchao: pip install torchao")


def use_float8(model: nn.Module, emulate: bool = False) -> None:
    """Replace the projections of the global blocks whose sizes fit, on the meta device; names stay as they are."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # optional, and slow to import

    assert isinstance(model, Blt)
    # The gradient of a weight sums over patches, and a pack may have any number of them.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model.global_.blocks, config=config, module_filter_fn=fits)
    for module in model.global_.blocks.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, Linear):
            vars(module)["onto"] = partial(onto, module)


def fits(module: nn.Module, name: str) -> bool:
    """Whether a projection's sizes are such that float8 products take them."""
    return isinstance(module, Linear) and module.in_features % DIVISOR == 0 and module.out_features % DIVISOR == 0


def onto(projection: nn.Module, base: Tensor, x: Tensor, times: float = 1) -> Tensor:
    """times * base [N, outputs] + the projection of x [N, inputs], as `shared.layers.blocks.Linear.onto`."""
    return torch.add(projection(x), base, alpha=times)
