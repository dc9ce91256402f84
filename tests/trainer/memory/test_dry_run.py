"""The dry run: it counts what is there, says what does not fit, and changes nothing."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import STATIC, losses, run, tiny_data, tiny_settings
from torch import Tensor

from shared.model_folder.files import build_model as plain_model
from trainer.checkpoints.initial_weights import build_model
from trainer.data.packing.limits import PackLimits
from trainer.distributed.dtensor import to_local
from trainer.distributed.world import World, started
from trainer.errors import TrainingError
from trainer.memory.dry_run import DryRun, dry_run, many_documents, one_document, worst_steps
from trainer.memory.parts import HELP, Memory
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, predict, take_step
from trainer.settings import TrainSettings

LIMITS = PackLimits(256, 80)
STACK = {"width": 64, "layers": 2, "heads": 2, "feed_forward": 100}
BLT = {"kind": "blt", "window": 64, "ngrams": {"sizes": [3], "rows": 500}, "encoder": STACK, "decoder": STACK}
MODEL = BLT | {"global": STACK}


def settings_for(
    tokens: int = LIMITS.tokens, model: dict[str, Any] = MODEL, dtype: str = "float32", **parallel: Any
) -> TrainSettings:
    sections = {"run": {"dtype": dtype}, "data": {"tokens": tokens}, "model": model, "parallel": parallel}
    return tiny_settings(Path("unused"), Path("unused"), **sections)


@pytest.fixture
def world() -> Iterator[World]:
    with started(settings_for().run) as world:
        yield world


def found(settings: TrainSettings, world: World, limits: PackLimits = LIMITS) -> DryRun:
    model = build_model(settings, world)
    return dry_run(model, build_optimizer(model, settings.optimizer), settings, limits, world)


def everything(model: torch.nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Parameters and moments, copied."""
    tensors = {name: to_local(parameter).detach().clone() for name, parameter in model.named_parameters()}
    for number, state in enumerate(optimizer.state.values()):
        tensors |= {f"{number}/{key}": to_local(value).clone() for key, value in state.items()}
    return tensors


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_is_changed(trained: bool, world: World) -> None:
    settings = settings_for()
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    if trained:
        take_step(model, optimizer, TrainStep(worst_steps(LIMITS, 2)[0], 512, lr=1e-3), world)
    before, generator = everything(model, optimizer), torch.get_rng_state()
    dry_run(model, optimizer, settings, LIMITS, world)
    after = everything(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.ngrams.gradient is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with a dry run before it, and without."""
    folder = tmp_path_factory.mktemp("runs")
    data = tiny_data(folder / "data", STATIC)
    assert run(data, folder / "with", "--run.steps", 2, parallel={"dry_run": True}) == 0
    assert run(data, folder / "without", "--run.steps", 2, parallel={"dry_run": False}) == 0
    return folder / "with", folder / "without"


def test_a_run_learns_the_same_with_and_without(runs: tuple[Path, Path]) -> None:
    weights, others = ((out / "model/model.safetensors").read_bytes() for out in runs)
    assert weights == others
    assert losses(runs[0]) == losses(runs[1])


def test_a_dry_run_records_the_memory_of_each_rank(runs: tuple[Path, Path]) -> None:
    (rank,) = json.loads((runs[0] / "memory.json").read_text())["ranks"]
    assert set(rank) == {*HELP, "peak"}
    # transient: a part of the peak; unsharded: one rank that computes in the dtype of its masters
    assert {name for name, size in rank.items() if size == 0} == {"transient", "unsharded", "teacher"}


def test_without_a_dry_run_no_memory_is_recorded(runs: tuple[Path, Path]) -> None:
    assert not (runs[1] / "memory.json").exists()


def test_static_parts_are_the_arithmetic_of_the_shapes(world: World) -> None:
    settings = settings_for()
    (memory,) = found(settings, world).ranks
    sizes = {name: parameter.numel() for name, parameter in plain_model(settings.model).named_parameters()}
    tables = sizes.pop("ngrams.weight")
    assert memory.parameters == memory.gradients == 4 * sum(sizes.values())
    assert memory.moments == 8 * sum(sizes.values())
    assert (memory.tables, memory.table_moments) == (4 * tables, 4 * 500)
    assert memory.logits == 2 * 4 * 256 * 260
    assert memory.unsharded == 0


def test_a_model_in_another_dtype_than_its_masters_is_unsharded_in_that(world: World) -> None:
    (memory,) = found(settings_for(dtype="bfloat16"), world).ranks
    (kept,) = found(settings_for(dtype="bfloat16", keep_gathered=True), world).ranks
    assert 2 * kept.unsharded == memory.parameters > 2 * memory.unsharded > memory.parameters / 3


def test_activations_are_the_tensors_that_the_backward_pass_will_ask_for(world: World) -> None:
    settings = settings_for()
    model = plain_model(settings.model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    largest = 0
    for batch in (one_document(LIMITS), many_documents(LIMITS)):
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = predict(model, batch)
        largest = max(largest, sum(saved.values()))
        del logits
    counted = found(settings, world).ranks[0].activations
    assert counted == pytest.approx(largest, rel=0.03)


def test_what_is_computed_again_is_not_kept(world: World) -> None:
    none, selective, full = (
        found(settings_for(activation_checkpointing=how), world).ranks[0] for how in ("none", "selective", "full")
    )
    assert none.activations > selective.activations > full.activations
    assert none.peak > selective.peak > full.peak
    assert none.peak > none.activations + none.parameters + none.moments + none.gradients + none.tables


def test_the_entropy_model_has_no_tables(world: World) -> None:
    memory = found(settings_for(model=STACK | {"kind": "entropy"}), world, PackLimits(256, None)).ranks[0]
    assert memory.tables == memory.table_moments == 0
    assert memory.activations > 0


def test_the_worst_packs_are_full_and_valid() -> None:
    for limits in (LIMITS, PackLimits(300, None), PackLimits(64, 100)):
        for batch in (one_document(limits), many_documents(limits)):
            assert sum(batch.documents.lengths) == len(batch.ids) == limits.tokens
            if batch.patches is None:
                continue
            owners = batch.patches.of_token
            assert batch.patches.count == limits.patches
            assert (owners.diff() >= 0).all()
            assert (owners.diff() <= 1).all()
            assert len(owners.unique()) == min(limits.patches, limits.tokens)
            patch_document = batch.patches.documents.ids[owners]
            assert torch.equal(patch_document, batch.documents.ids)


def test_want_of_memory_is_one_line_that_says_what_would_help(world: World) -> None:
    limits = PackLimits(131_072, 32_000)  # far more than what other tests have left free in this process
    settings = settings_for(tokens=limits.tokens)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 150_000_000, before[1]))
    try:
        with pytest.raises(TrainingError) as error:
            found(settings, world, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    line = str(error.value)
    assert line.startswith("dry run on rank 0: out of memory after ")
    assert "activations are most: smaller data.tokens, or parallel.activation_checkpointing" in line
    assert "\n" not in line


@pytest.mark.slow
def test_blocks_that_cannot_be_compiled_are_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(TrainingError, match=r"parallel.compile = false") as error:
        found(settings_for(compile=True), world)
    assert "\n" not in str(error.value)


def test_a_lines_parts_come_with_the_largest_first() -> None:
    memory = Memory(10, 10, 20, 400, 0, 0, activations=5000, logits=7, peak=9000)
    line = DryRun(1.25, True, [memory, memory]).line()
    assert line == (
        "dry run in 1.2 s, compiling included: 9.0 kB at most on rank 0, which needs most: "
        "activations 5.0 kB, tables 400 B, moments 20 B, parameters 10 B, gradients 10 B, logits 7 B"
    )
