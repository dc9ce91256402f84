"""What a block keeps for its backward pass, and what it computes again.

N positions, D width, F hidden width. Kept for each block, in units of [N, D] where F = 8/3 D and all heads have keys:
everything is about 17, selective 6 (input, queries, keys and values, attention, the sum between the halves), full 1.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shared.layers import Block

ATTENTION = frozenset(
    {
        "patchwork::tiled_attention",
        "torch_attn::_varlen_attn",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
    }
)
"""Operators of self-attention: tiles on CPUs, the kernel for documents of many lengths, and what fp32 takes on CUDA."""

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::_scaled_mm"})


def recompute(block: Block, how: Literal["selective", "full"]) -> None:
    """Let a block keep less. Replaces its forward, not the module, so that parameter names stay as they are.

    The numbers do not change: the same operators see the same inputs a second time.
    """
    # No block draws random numbers, so there is no generator to rewind.
    again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if how == "selective":
        wide = block.gate_up.out_features
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, partial(policy, wide)))
    block.forward = again  # type: ignore[method-assign]


def policy(wide: int, context: Any, operator: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    """Keep attention and the products of matrices but the one with ``wide`` outputs; compute all else again.

    The wide one, gate and up of the feed-forward part, is a seventh of a training step's products and a third of what
    there is to keep. What is pointwise takes little time and most of the rest.
    """
    name = operator.name()
    if name in ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if name in PRODUCTS and matrix(inputs).shape[-1] != wide:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def matrix(inputs: tuple[Any, ...]) -> torch.Tensor:
    """The right factor of a product: the last of its tensors that is a matrix."""
    return [part for part in inputs if isinstance(part, torch.Tensor) and part.ndim == 2][-1]
