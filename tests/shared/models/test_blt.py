"""Laws 1, 3 and 6 for the whole model, and the parts that transformers' model cannot check."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers.model_examples import blt, blt_logits, blt_settings, gradients, pack, random_text, summed_loss
from helpers.rounding import assert_equal_but_rounded, in_fp64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from shared.layers.batch import Patches, segments
from shared.layers.cross_attention import BytesReadPatches, CrossAttention, PatchesReadBytes
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.patching import PatchingSettings
from shared.stack_settings import StackSettings

STATIC = PatchingSettings(rule="static", stride=4)
LOCAL = {"width": 32, "heads": 4, "feed_forward": 40}
MODELS = {
    "one encoder layer": blt_settings(),
    "cross-attention in every encoder layer": blt_settings(
        encoder=LOCAL | {"layers": 2}, encoder_cross_all_layers=True
    ),
    "grouped heads": blt_settings(kv_heads=2),
    "learned pooling": blt_settings(pooling="attention"),
}


@pytest.mark.numerics
@pytest.mark.parametrize("rule", ["static", "space"])
@pytest.mark.parametrize("name", MODELS)
def test_no_logit_depends_on_a_later_byte(name: str, rule: str) -> None:
    """Every token is flipped, boundaries are found anew, and all earlier logits stay."""
    patching = STATIC if rule == "static" else PatchingSettings(rule="space", max_length=8)
    model, text = blt(MODELS[name]), random_text(25, 1)
    with torch.no_grad():
        whole = pack([text], patching)
        found, exact = blt_logits(model, whole), in_fp64(model, lambda model: blt_logits(model, whole))
        for t in range(len(text)):
            for byte in (ord(" "), ord("a")):
                changed = bytearray(text)
                changed[t] = byte
                if changed[t] != text[t]:
                    logits = blt_logits(model, pack([bytes(changed)], patching))
                    assert_equal_but_rounded(logits[: t + 1], found[: t + 1], exact[: t + 1])
                    assert (logits[t + 1] - found[t + 1]).abs().max() > 1e-4


@pytest.mark.numerics
@pytest.mark.parametrize("name", MODELS)
def test_a_document_of_a_pack_changes_neither_logits_nor_gradients_of_the_others(name: str) -> None:
    model = blt(MODELS[name])
    texts = [random_text(n, n) for n in (50, 130, 77)]

    def run(model: Blt, middle: bytes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = pack([texts[0], middle, texts[2]])
        others = batch.documents.ids != 1
        logits = blt_logits(model, batch)
        return logits[others].detach(), gradients(model, summed_loss(logits[others], batch.labels[others]))

    exact = in_fp64(model, lambda model: run(model, texts[1]))
    assert_equal_but_rounded(run(model, texts[1]), run(model, random_text(111, 9)), exact)


@pytest.mark.numerics
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 150), min_size=1, max_size=5), padding=st.sampled_from([(0, 0), (0, 9), (30, 4)]))
def test_loss_and_gradients_of_a_pack_are_the_sums_of_its_documents(sizes: list[int], padding: tuple[int, int]) -> None:
    """Also where the pack is filled up with tokens and patches that belong to nothing."""
    model, texts = blt(), [random_text(n, n) for n in sizes]

    def run(model: Blt, texts: list[bytes], pad: tuple[int, int] = (0, 0)) -> list:
        batch = pack(texts, pad=pad)
        loss = summed_loss(blt_logits(model, batch), batch.labels)
        return [loss.detach(), *gradients(model, loss).values()]

    alone = [sum(parts) for parts in zip(*(run(model, [text]) for text in texts))]
    exact = in_fp64(model, lambda model: run(model, texts, padding))
    assert_equal_but_rounded(run(model, texts, padding), alone, exact)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    model, batch = blt(MODELS[name]), pack([random_text(200, 0)])
    found = gradients(model, summed_loss(blt_logits(model, batch), batch.labels))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_memory_is_linear_in_bytes(largest_tensor) -> None:
    """Law 6: nothing of [T, T], [P, T] or [P, P] for documents of a bounded length."""
    model = blt()

    def step(documents: int) -> int:
        batch = pack([random_text(127, i) for i in range(documents)], STATIC)
        return largest_tensor(lambda: blt_logits(model, batch).sum().backward())

    small, large = step(16), step(32)
    tokens, patches = 32 * 128, 32 * 33
    assert large <= 2 * small
    assert large < tokens * patches / 4


def test_patches_without_tokens_stay_zero_and_finite_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = blt().to(dtype), pack([random_text(40, 0)], pad=(0, 7))
        assert batch.patches is not None
        logits = blt_logits(model, batch)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        found = gradients(model, summed_loss(logits, batch.labels))
        assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.numerics
def test_blocks_compile_without_a_break_in_the_graph_and_can_be_recomputed() -> None:
    plain, batch = blt(), pack([random_text(100, 0), random_text(60, 1)])

    def run(model: Blt) -> dict[str, torch.Tensor]:
        return gradients(model, summed_loss(blt_logits(model, batch), batch.labels))

    wanted, exact = run(plain), in_fp64(plain, run)
    compiled, recomputed = blt(), blt()
    for block in (*compiled.encoder.blocks, *compiled.global_.blocks, *compiled.decoder.blocks):
        block.compile(backend="eager", fullgraph=True)
    for block in (*recomputed.encoder.blocks, *recomputed.global_.blocks, *recomputed.decoder.blocks):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    for model in (compiled, recomputed):
        assert_equal_but_rounded(run(model), wanted, exact)


@pytest.mark.numerics
@pytest.mark.parametrize("native", [False, True])
def test_bf16_agrees_with_fp32(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With activations in fp32 or in bfloat16, whichever products of matrices the processor is good at."""
    monkeypatch.setattr("shared.layers.blocks._multiplies_bfloat16", lambda: native)
    model = blt().bfloat16()
    assert model.encoder.embedding(torch.tensor([5])).dtype == (torch.bfloat16 if native else torch.float32)
    batch = pack([random_text(300, 0)])
    exact, half = blt_logits(blt(), batch), blt_logits(blt().bfloat16(), batch)
    assert (exact - half).abs().max() < 0.25
    assert (exact - half).abs().mean() < 0.03


def test_a_byte_reads_the_last_patch_that_is_complete_when_it_predicts() -> None:
    """The worked example: lengths [1, 1, 3, 2, 2] over 8 inputs."""
    model = blt()
    ids = torch.tensor([1, 70, 80, 90, 100, 110, 120, 130])
    patches = Patches(torch.tensor([0, 1, 2, 2, 2, 3, 3, 4]), torch.tensor([0, 1, 1, 1, 2, 2, 3, 3]), segments([5]))
    states, seen = model.global_, []
    hook = states.register_forward_hook(lambda _m, _i, out: seen.append(out) or out.retain_grad())
    logits = model(ids, segments([8]), patches)
    hook.remove()
    for t in range(8):
        (gradient,) = torch.autograd.grad(logits[t].sum(), seen[0], retain_graph=True)
        reached = gradient.abs().sum(-1).nonzero().flatten().tolist()
        assert max(reached) == patches.of_decoder[t]


def oracle_cross(module: PatchesReadBytes | BytesReadPatches, x, y, seen):
    """Dense cross-attention of flat queries x [Q, D] over keys y [N, D], with the doubled residual."""
    groups = module.heads // module.kv_heads
    q = module.query(module.query_norm(x)).unflatten(-1, (module.heads, -1))
    k, v = (
        part.unflatten(-1, (module.kv_heads, -1)).repeat_interleave(groups, 1)
        for part in module.key_value(module.key_value_norm(y)).chunk(2, -1)
    )
    scores = torch.einsum("qhc,khc->hqk", q, k) * module.head_width**-0.5
    out = torch.einsum("hqk,khc->qhc", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)
    return 2 * x + module.output(out.flatten(1))


@pytest.mark.numerics
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_patches_read_by_strips_of_tokens_equal_patches_gathered_for_each(
    kv_heads: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = BytesReadPatches(StackSettings(width=32, layers=1, heads=4, kv_heads=kv_heads))
    initialise(module, 0)
    for lengths in ([1] * 40, [3, 1, 50, 2, 2, 7, 33, 1], [0, 2, 0, 0, 5, 0], [0] * 90 + [4] + [0] * 90 + [4]):
        of_decoder = torch.tensor(np.repeat(np.arange(len(lengths)), lengths))
        inputs = [torch.randn(len(of_decoder), 32), torch.randn(len(lengths), queries, 32)]

        def run(module: torch.nn.Module, *inputs: torch.Tensor, index: torch.Tensor = of_decoder) -> list[torch.Tensor]:
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = module(*leaves, index)
            return [out, *torch.autograd.grad(out.square().sum(), [*leaves, *module.parameters()])]

        found = []
        for way in (True, False):
            monkeypatch.setattr("shared.layers.cross_attention.takes_tiles", lambda device, way=way: way)
            found.append(run(module, *inputs))
        exact = in_fp64(module, lambda module, run=run, inputs=inputs: run(module, *(x.double() for x in inputs)))
        assert_equal_but_rounded(*found, exact)


@pytest.mark.numerics
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("kind", [PatchesReadBytes, BytesReadPatches])
def test_cross_attention_of_both_directions_equals_a_dense_mask(kv_heads: int, kind: type[CrossAttention]) -> None:
    torch.manual_seed(0)
    module = kind(StackSettings(width=32, layers=1, heads=4, kv_heads=kv_heads))
    initialise(module, 0)
    of_token = torch.tensor(np.repeat(np.arange(6), [1, 3, 9, 1, 2, 4]))
    inputs = torch.randn(20, 32), torch.randn(6, 3, 32), torch.randn(18 if kind is PatchesReadBytes else 20, 32)
    belongs = torch.arange(6).repeat_interleave(3)[:, None] == of_token

    def run(module: CrossAttention, oracle: bool, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tokens, vectors, weight = (x.clone().requires_grad_() for x in inputs)
        flat = vectors.reshape(18, 32)
        if oracle and kind is PatchesReadBytes:
            out = oracle_cross(module, flat, tokens, belongs)
        elif oracle:
            out = oracle_cross(module, tokens, flat, belongs.T)
        elif kind is PatchesReadBytes:
            out = module(vectors, tokens, of_token).reshape(18, 32)
        else:
            out = module(tokens, vectors, of_token)
        return [out, *torch.autograd.grad((out * weight).sum(), [tokens, vectors, *module.parameters()])]

    exact = in_fp64(module, lambda module: run(module, True, [x.double() for x in inputs]))
    assert_equal_but_rounded(run(module, False, inputs), run(module, True, inputs), exact)


def test_encoder_cross_attention_in_every_layer_accumulates() -> None:
    """As the reference does, and unlike transformers: the first layer's cross-attention has an effect."""
    choice = MODELS["cross-attention in every encoder layer"]
    model, batch = blt(choice), pack([random_text(80, 0)])
    before = blt_logits(model, batch)
    with torch.no_grad():
        model.encoder.cross[0].output.weight.mul_(-1)  # type: ignore[union-attr, operator]
    assert (blt_logits(model, batch) - before).abs().max() > 1e-3


@pytest.mark.numerics
def test_positions_go_on_in_a_continued_document() -> None:
    model, batch = blt(), pack([random_text(80, 0)])
    n = len(batch.ids)
    later = replace(batch, documents=segments([n], np.arange(1000, 1000 + n)))
    # Rotary attention is relative: the same text further on gives the same logits, up to rounding.
    exact = in_fp64(model, lambda model: blt_logits(model, batch))
    assert_equal_but_rounded(blt_logits(model, batch), blt_logits(model, later), exact)
