"""Blocks that keep less for their backward pass compute the same numbers, bit for bit."""

from collections import Counter
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


ATTENTION, PRODUCT, SUM = "patchwork::tiled_attention", "aten::mm", "aten::addmm"


@pytest.fixture(scope="module")
def calls() -> dict[How | None, Counter[str]]:
    """What is called in the backward pass of two blocks."""
    return {how: Counter(trained("entropy", how)[1].calls) for how in (None, "selective", "full")}


def test_attention_is_computed_again_in_full_alone(calls: dict[How | None, Counter[str]]) -> None:
    assert {how: called[ATTENTION] for how, called in calls.items()} == {None: 0, "selective": 0, "full": 2}


def test_of_the_products_selective_computes_only_that_of_gate_and_up_again(
    calls: dict[How | None, Counter[str]],
) -> None:
    again = {how: called[PRODUCT] - calls[None][PRODUCT] for how, called in calls.items()}
    assert again == {None: 0, "selective": 2, "full": 4}  # full: queries, keys and values too


def test_the_sum_between_the_halves_is_computed_again_in_full_alone(calls: dict[How | None, Counter[str]]) -> None:
    """Nothing needs the block's output."""
    assert (calls["selective"][SUM], calls["full"][SUM]) == (0, 2)
