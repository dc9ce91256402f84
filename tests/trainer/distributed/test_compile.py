"""Compiled blocks are compiled once: packs of other documents find what they need."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal

import pytest
import torch
from helpers.block_examples import DOCUMENTS, MODELS, pack, without_patches
from helpers.rounding import assert_equal_but_rounded, in_fp64
from torch import Tensor, nn

from shared.layers.attention import KERNEL_OPTIONS, AttentionMask
from shared.layers.batch import Batch, segments
from shared.layers.tiled_attention import tiled_attention
from shared.models.blt import Blt
from shared.models.initialise import initialise
from trainer.distributed.activation_checkpointing import recompute
from trainer.distributed.build import compile_blocks, transformer_blocks
from trainer.optim.train_step import predict


@pytest.fixture
def compiled_once() -> Iterator[None]:
    """Forgets what was compiled before and after; `torch.compile` is left as it was."""
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def gradient_of(model: nn.Module, batch: Batch) -> Tensor:
    model.zero_grad()
    predict(model, batch).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# The blocks of a BLT without recomputing are compiled with several P_max below, too.
OFTEN: dict[tuple[str, str, str], Any] = {
    ("none", "aot_eager", "entropy"): (),
    ("selective", "aot_eager", "entropy"): (),
    ("selective", "aot_eager", "blt"): pytest.mark.drill,
}
CASES = [
    pytest.param(
        name, backend, how, id=f"{how}-{backend}-{name}", marks=OFTEN.get((how, backend, name), pytest.mark.slow)
    )
    for how, backend, name in product(("none", "selective", "full"), ("aot_eager", "inductor"), MODELS)
]


@pytest.mark.numerics
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(("name", "backend", "how"), CASES)
def test_blocks_are_not_compiled_again_for_other_documents(
    name: str, backend: str, how: Literal["none", "selective", "full"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    kind, settings = MODELS[name]
    plain, model = kind(settings), kind(settings)  # type: ignore[arg-type]
    for each in (plain, model):
        initialise(each, 0)
    for block in transformer_blocks(model) if how != "none" else ():
        recompute(block, how)
    compile_blocks(model)
    gradient_of(model, without_patches(pack(DOCUMENTS[0]), name))
    torch.compiler.set_stance("fail_on_recompile")
    for lengths in DOCUMENTS:
        batch = without_patches(pack(lengths), name)
        exact = in_fp64(plain, lambda model, batch=batch: gradient_of(model, batch))
        assert_equal_but_rounded(gradient_of(model, batch), gradient_of(plain, batch), exact)


@torch.library.custom_op("patchwork_tests::variable_length", mutates_args=())
def variable_length(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, before: int) -> Tensor:
    lengths = offsets.diff()
    assert lengths.max() <= longest
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    return tiled_attention(q.detach(), k.detach(), v.detach(), ids, ids, before + 1 if before >= 0 else None)


@variable_length.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty(q.shape)


variable_length.register_autograd(lambda ctx, grad: (grad, grad, grad, None, None, None))


@pytest.mark.drill
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(
    ("options", "backend"),
    [
        pytest.param(frozenset(KERNEL_OPTIONS), "aot_eager", id="torch 2.13"),
        pytest.param(frozenset(), "eager", id="torch 2.11"),
    ],
)
def test_nor_are_they_with_the_kernel_of_accelerators(
    options: frozenset[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself is played by our own operator: what counts is what its arguments make the compiler guard.

    Calls with other options differ for the tracer alone: what it hands on to a backend is the same operator.

    The first packs with other numbers of documents, and with another longest one, may still widen what is compiled.
    """

    def stand_in(q, k, v, offsets, _, longest, __, window_size, **___):  # type: ignore[no-untyped-def]
        return variable_length(q, k, v, offsets, longest, window_size[0])

    monkeypatch.setattr("shared.layers.attention._kernel", stand_in)
    monkeypatch.setattr("shared.layers.attention._options", options)
    monkeypatch.setattr("shared.layers.attention.has_kernel", lambda device, dtype: True)
    monkeypatch.setattr("shared.layers.cross_attention.takes_tiles", lambda device: False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = Blt(MODELS["blt"][1])  # type: ignore[arg-type]
    initialise(model, 0)
    assert AttentionMask.of(pack(DOCUMENTS[1]).documents, torch.float32, 24).segment_ids is None
    plain = Blt(MODELS["blt"][1])  # type: ignore[arg-type]
    initialise(plain, 0)
    compile_blocks(model, crosses=True)
    for lengths in DOCUMENTS[:3]:
        gradient_of(model, pack(lengths))
    torch.compiler.set_stance("fail_on_recompile")
    for lengths in DOCUMENTS:
        torch.testing.assert_close(gradient_of(model, pack(lengths)), gradient_of(plain, pack(lengths)))


def with_p_max(batch: Batch, patches: int) -> Batch:
    """The same pack with another number of patches for padding."""
    assert batch.patches is not None
    *real, _ = batch.patches.documents.lengths
    documents = segments([*real, patches - sum(real)])
    return Batch(batch.ids, batch.labels, batch.documents, replace(batch.patches, documents=documents))


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.drill
def test_another_p_max_compiles_blocks_of_patches_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a phase of a run ends; packs of the phase find what they need."""
    compiled = []

    def counting(graph: Any, examples: Any) -> Any:
        compiled.append(graph)
        return aot_eager(graph, examples)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    kind, settings = MODELS["blt"]
    model = kind(settings)  # type: ignore[arg-type]
    initialise(model, 0)
    compile_blocks(model)
    found = []
    for p_max in (400, 300, 290, 280):
        before = len(compiled)
        gradient_of(model, with_p_max(pack(DOCUMENTS[0]), p_max))
        found.append(len(compiled) - before)
        torch.compiler.set_stance("fail_on_recompile")
        for lengths in DOCUMENTS:
            gradient_of(model, with_p_max(pack(lengths), p_max))
        torch.compiler.set_stance("default")
    assert found[0] == 2, "one for blocks of bytes, one for those of patches"
    assert max(found[1:]) <= 1
    assert sum(found[1:]) <= 1, "then sizes that differ have been seen, and any fits"
