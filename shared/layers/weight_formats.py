"""Weights laid out for inference on a processor: bfloat16 or int8 matrices, for models that only go forwards.

Generating one byte reads every matrix once and computes next to nothing, so its time is that of reading. bfloat16
halves what is read, int8 takes a quarter; and where a processor has instructions for such products, many rows share a
matrix at little more than the price of one. Activations stay fp32 between products. A row's results depend on no other
row: scales of activations are its own.

Shapes: N positions, I inputs, O outputs of a projection.
"""

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.layers.blocks import Linear

WeightFormat = Literal["float32", "bfloat16", "int8"]
KEPT = ("head", "router")
"""Parts that stay as they are: logits, and the decisions where patches begin, need every bit."""
SMALLEST = 1 << 17
"""Numbers in a matrix. A smaller one stays in the cache, and reading it takes less time than calling the library."""
BFLOAT16 = ("amx_bf16", "avx512_bf16")
INT8 = ("amx_int8", "avx512_vnni", "avx_vnni")
"""What processors call their instructions for products of such matrices."""
_LARGEST = 127.0
_ZERO = 128
M = TypeVar("M", bound=nn.Module)


def convert_weights(model: M, weight_format: WeightFormat, smallest: int = SMALLEST) -> M:
    """Replace the projections of a model on the CPU, in place; it cannot be trained or saved any more.

    Matrices of fewer than ``smallest`` numbers stay as they are.

    Raises ConfigError where this processor or this build of torch has no such products.
    """
    if weight_format == "float32":
        return model
    _check(next(model.parameters()), weight_format)
    kind = _Bfloat16Linear if weight_format == "bfloat16" else _Int8Linear
    for name, module in list(model.named_modules()):
        for child, layer in list(module.named_children()):
            small = isinstance(layer, Linear) and layer.weight.numel() < smallest
            if isinstance(layer, Linear) and not small and not {child, *name.split(".")} & set(KEPT):
                setattr(module, child, kind(layer))
    return model


def cache_dtype(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model that computes in ``dtype`` keeps keys and values.

    A converted one keeps them in bfloat16, where the processor has products of it: with many rows attention is most of
    what a step reads.
    """
    converted = any(isinstance(module, _Converted) for module in model.modules())
    return torch.bfloat16 if converted and _has(BFLOAT16) else dtype


def _has(features: tuple[str, ...]) -> bool:
    """Whether the processor has one of these."""
    known = torch.cpu.get_capabilities()
    return any(known.get(feature, False) for feature in features)


def _check(weight: Tensor, weight_format: WeightFormat) -> None:
    if weight.device.type != "cpu":
        raise ConfigError(f"weights: {weight_format} is for a processor; this model is on {weight.device}")
    operators = {"bfloat16": ("mkldnn", "_linear_pointwise"), "int8": ("onednn", "qlinear_pointwise")}
    namespace, name = operators[weight_format]
    known = torch.backends.mkldnn.is_available() and hasattr(getattr(torch.ops, namespace), name)
    # Without the instructions the library still answers, far slower than fp32.
    if not known or not _has({"bfloat16": BFLOAT16, "int8": INT8}[weight_format]):
        raise ConfigError(f"weights: this processor has no products of {weight_format} matrices; use float32")


class _Converted(nn.Module):
    """What `Linear` offers, forwards only."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.outputs = layer.outputs
        self._bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """fp32 [..., I] -> fp32 [..., O]."""
        product = self._product(x.flatten(0, -2))
        if self._bias is not None:
            product += self._bias
        projected: Tensor = product.unflatten(0, x.shape[:-1])
        return projected

    def onto(self, base: Tensor, x: Tensor, times: float = 1) -> Tensor:
        """times * base [N, O] + the projection of x [N, I]."""
        product = self._product(x).add_(base, alpha=times)
        return product if self._bias is None else product.add_(self._bias)

    def _product(self, x: Tensor) -> Tensor:
        """fp32 [N, I] -> fp32 [N, O]."""
        raise NotImplementedError


class _Bfloat16Linear(_Converted):
    """A matrix rounded to bfloat16, in the order in which the library reads it."""

    def __init__(self, layer: Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().to(torch.bfloat16)
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(weight)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self._matrix, None, "none", [], "")
        return product.float()


class _Int8Linear(_Converted):
    """A matrix of integers with a scale for each output; activations get one for each position as they come."""

    def __init__(self, layer: Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        self._scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        integers = (weight / self._scales[:, None]).round().to(torch.int8)
        self._matrix = torch.ops.onednn.qlinear_prepack(integers, [8, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)

    def _product(self, x: Tensor) -> Tensor:
        scales = x.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny).div_(_LARGEST)
        # Unsigned with a zero in the middle: for signed ones of a row or two oneDNN has no fast product of some widths,
        # and takes a hundred times as long.
        integers = (x / scales).round_().add_(_ZERO).to(torch.uint8)
        # Sums of integers are exact; both scales come after them.
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, _ZERO, self._matrix, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.mul_(scales)
