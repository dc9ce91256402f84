"""Poolings against patches pooled one by one, and the model that has no cross-attention in its encoder."""

import pytest
import torch
from helpers.model_examples import any_model, blt_logits, blt_settings, gradients, pack, random_text, summed_loss
from helpers.rounding import assert_equal_but_rounded, in_fp64
from pydantic import ValidationError

from shared.interop.hf_config import check_representable
from shared.interop.names import InteropError
from shared.layers.pooling import POOLINGS, AttentionPooling, MaxPooling
from shared.stack_settings import StackSettings

STACK = StackSettings(width=8, layers=1, heads=2)
OF_TOKEN = torch.tensor([0, 0, 0, 1, 3, 3])
"""Patch 2 owns no token."""


def one_by_one(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    rows = []
    for patch in range(4):
        own = tokens[patch == OF_TOKEN]
        if not len(own):
            rows.append(torch.zeros(8))
        elif isinstance(module, AttentionPooling):
            weights = module.query(module.norm(own)).softmax(0)
            rows.append(torch.cat([weights[:, head] @ own[:, head * 4 : head * 4 + 4] for head in range(2)]))
        else:
            rows.append(own.amax(0) if isinstance(module, MaxPooling) else own.mean(0))
    return torch.stack(rows)


@pytest.mark.numerics
@pytest.mark.parametrize("name", POOLINGS)
def test_patches_are_pooled_as_one_by_one(name):
    torch.manual_seed(0)
    module, tokens, weight = POOLINGS[name](STACK), torch.randn(6, 8), torch.randn(4, 8)

    def run(module: torch.nn.Module, oracle: bool, tokens: torch.Tensor = tokens) -> list[torch.Tensor]:
        tokens = tokens.clone().requires_grad_()
        pooled = one_by_one(module, tokens) if oracle else module(tokens, OF_TOKEN, 4)
        return [pooled, *torch.autograd.grad((pooled * weight).sum(), [tokens, *module.parameters()])]

    exact = in_fp64(module, lambda module: run(module, True, tokens.double()))
    assert_equal_but_rounded(run(module, False), run(module, True), exact)
    assert module(tokens.bfloat16(), OF_TOKEN, 4).dtype == torch.bfloat16


@pytest.mark.numerics
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_packed_documents_are_as_alone(pooling):
    settings = blt_settings(pooling=pooling)
    model, texts = any_model(settings), [random_text(70, 0), b"", random_text(31, 1)]

    def run(model: torch.nn.Module, texts: list[bytes]) -> dict[str, torch.Tensor]:
        batch = pack(texts, pad=(9, 4))
        return gradients(model, summed_loss(blt_logits(model, batch), batch.labels))

    packed, alone = run(model, texts), [run(model, [text]) for text in texts]
    exact = in_fp64(model, lambda model: run(model, texts))
    assert_equal_but_rounded(packed, {name: sum(part[name] for part in alone) for name in packed}, exact)
    assert not any(name.startswith("encoder.cross") for name in packed)


def test_settings_of_the_default_are_what_they_were_and_others_are_refused_where_they_mean_nothing():
    assert "pooling" not in blt_settings().model_dump()
    assert blt_settings(pooling="mean").model_dump()["pooling"] == "mean"
    with pytest.raises(ValidationError, match="no cross-attention for encoder_cross_all_layers"):
        blt_settings(pooling="max", encoder_cross_all_layers=True)
    with pytest.raises(InteropError, match="pooling 'mean': transformers always"):
        check_representable(blt_settings(pooling="mean"))


def test_pooling_takes_the_largest_and_shares_the_gradient_between_ties() -> None:
    x = torch.tensor([[1.0, -5.0], [3.0, -5.0], [3.0, -9.0], [2.0, 2.0]], requires_grad=True)
    pooled = MaxPooling(STACK)(x, torch.tensor([0, 0, 0, 2]), 3)
    assert pooled.tolist() == [[3.0, -5.0], [0.0, 0.0], [2.0, 2.0]]
    pooled.backward(torch.tensor([[1.0, 4.0], [7.0, 7.0], [1.0, 2.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0], [0.5, 2.0], [0.5, 0.0], [1.0, 2.0]]
