"""Laws 1, 3 and 6 for the entropy model."""

import pytest
import torch
from helpers.model_examples import entropy_model, entropy_settings, gradients, pack, random_text, summed_loss
from helpers.rounding import assert_equal_but_rounded, in_fp64

from shared.model_settings import EntropyModelSettings
from shared.models.entropy_model import EntropyModel

MODELS = {"plain": entropy_settings(), "newline reset": entropy_settings(newline_reset=True)}


@pytest.mark.parametrize("name", MODELS)
def test_no_logit_depends_on_a_later_token(name: str) -> None:
    model, batch = entropy_model(MODELS[name]), pack([random_text(90, 0)])
    with torch.no_grad():
        found = model(batch.ids, batch.documents)
        for t in range(len(batch.ids)):
            flipped = batch.ids.clone()
            flipped[t] = (flipped[t] + 17) % 260
            changed = model(flipped, batch.documents)
            assert torch.equal(changed[:t], found[:t]), t
            assert not torch.equal(changed[t], found[t]), t


@pytest.mark.parametrize("name", MODELS)
def test_a_document_of_a_pack_changes_nothing_in_the_others(name: str) -> None:
    model = entropy_model(MODELS[name])
    texts = [random_text(n, n) for n in (50, 130, 77)]
    one, other = pack(texts), pack([texts[0], random_text(130, 9), texts[2]])
    with torch.no_grad():
        a, b = (model(x.ids, x.documents) for x in (one, other))
    keep = one.documents.ids != 1
    assert torch.equal(a[keep], b[keep])
    assert not torch.equal(a[~keep], b[~keep])


@pytest.mark.numerics
def test_loss_and_gradients_of_a_pack_are_the_sums_of_its_documents() -> None:
    model = entropy_model()
    texts = [random_text(n, n) for n in (5, 130, 0, 77)]

    def run(model: EntropyModel, texts: list[bytes]) -> dict[str, torch.Tensor]:
        batch = pack(texts)
        loss = summed_loss(model(batch.ids, batch.documents), batch.labels)
        return {"loss": loss.detach()} | gradients(model, loss)

    packed, alone = run(model, texts), [run(model, [text]) for text in texts]
    exact = in_fp64(model, lambda model: run(model, texts))
    assert_equal_but_rounded(packed, {name: sum(single[name] for single in alone) for name in packed}, exact)
    assert packed.keys() - {"loss"} == {name for name, _ in model.named_parameters()}


def test_logits_are_fp32_also_in_bf16_so_that_they_do_not_tie() -> None:
    model, batch = entropy_model().bfloat16(), pack([random_text(300, 0)])
    logits = model(batch.ids, batch.documents)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_memory_is_linear_in_tokens(largest_tensor) -> None:
    """Law 6: the largest tensor of a step grows with T and stays far below T * T."""
    model = entropy_model()

    def step(tokens: int) -> int:
        batch = pack([random_text(tokens - 1, 0)])
        return largest_tensor(lambda: model(batch.ids, batch.documents).sum().backward())

    small, large = step(2048), step(4096)
    assert large <= 2 * small
    assert large < 4096 * 4096 / 8


def test_parameters_are_named_as_they_will_be_stored() -> None:
    with torch.device("meta"):
        names = dict(EntropyModel(EntropyModelSettings(width=8, layers=1, heads=1)).named_parameters())
    assert {name: tuple(p.shape) for name, p in names.items()} == {
        "embedding.weight": (260, 8),
        "blocks.0.attention_norm.weight": (8,),
        "blocks.0.qkv.weight": (24, 8),
        "blocks.0.attention_output.weight": (8, 8),
        "blocks.0.feed_forward_norm.weight": (8,),
        "blocks.0.gate_up.weight": (512, 8),
        "blocks.0.down.weight": (8, 256),
        "norm.weight": (8,),
        "head.weight": (260, 8),
    }
