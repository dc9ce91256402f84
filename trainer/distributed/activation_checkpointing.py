"""What a block keeps for its backward pass, and what it computes again.

N positions, D width, F hidden width. Kept for each block, in units of [N, D] where F = 8/3 D and all heads have keys:
everything is about 17, selective 6 (input, queries, keys and values, attention, the sum between the halves), full 1.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shared.layers.attention import AttentionMask
from shared.layers.blocks import Block
from shared.models.flops import too_wide

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
    kept = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if how == "selective":
        kept = partial(kept, context_fn=partial(create_selective_checkpoint_contexts, policy))
    forward = block.forward

    def again(x: Tensor, rotation: Tensor, mask: AttentionMask) -> Tensor:
        # Torch 2.11 compiles for all that is handed to checkpoint, the number of documents too; not for what is around.
        states: Tensor = kept(lambda x: forward(x, rotation, mask), x)
        return states

    block.forward = again  # type: ignore[method-assign]  # on purpose: see the docstring


def policy(context: Any, operator: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    """Keep attention, and the products of matrices that are not too wide; compute all else again.

    Too wide is that of gate and up in the feed-forward part: a seventh of a training step's products, and a third of
    what there is to keep; with wide heads that of queries, keys and values, too. What is pointwise takes little time
    and most of the rest.
    """
    name = operator.name()
    if name in ATTENTION or (name in PRODUCTS and not too_wide(*_right_factor(inputs))):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _right_factor(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Inputs and outputs of a product: the sizes of its right factor, the last tensor that is a matrix."""
    right = [part for part in inputs if isinstance(part, torch.Tensor) and part.ndim == 2][-1]
    return right.shape[0], right.shape[1]
