"""Blocks that keep less for their backward pass compute the same numbers, bit for bit."""

from typing import Literal

import pytest
import torch
from helpers.block_examples import DOCUMENTS, MODELS, STACK, pack, without_patches
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise
from trainer.distributed.activation_checkpointing import recompute
from trainer.distributed.build import transformer_blocks
from trainer.optim.train_step import predict

How = Literal["selective", "full"]


class Count(TorchDispatchMode):
    """How often each operator is called while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.calls[operator.name()] = self.calls.get(operator.name(), 0) + 1
        return operator(*arguments, **(keywords or {}))


def made(name: str, how: How | None) -> nn.Module:
    kind, settings = MODELS[name]
    if name == "entropy":  # gate and up are wider than queries, keys and values, as they usually are
        settings = EntropyModelSettings.model_validate(STACK | {"feed_forward": 64})
    model: nn.Module = kind(settings)  # type: ignore[operator]
    initialise(model, 0)
    for block in transformer_blocks(model) if how else ():
        assert how
        recompute(block, how)
    return model


def trained(name: str, how: How | None) -> tuple[list[Tensor], Count]:
    """Loss and gradients, and what was called in the backward pass."""
    model = made(name, how)
    loss = predict(model, without_patches(pack(DOCUMENTS[0]), name)).square().mean()
    with Count() as back:
        loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)], back


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["selective", "full"])
def test_losses_and_gradients_are_the_same_bits(name: str, how: How) -> None:
    (plain, _), (again, _) = trained(name, None), trained(name, how)
    assert len(plain) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(plain, again))


def test_selective_computes_neither_attention_nor_narrow_products_again() -> None:
    """Of the products of each of the two blocks only that of gate and up is made a second time."""
    plain, selective, full = (trained("entropy", how)[1].calls for how in (None, "selective", "full"))
    attention, product, added = "patchwork::tiled_attention", "aten::mm", "aten::addmm"
    assert attention not in plain
    assert attention not in selective
    assert full[attention] == 2
    assert selective[product] - plain[product] == 2
    assert full[product] - plain[product] == 4  # queries, keys and values too
    assert added not in selective
    assert full[added] == 2  # the sum between the halves; nothing needs the block's output
