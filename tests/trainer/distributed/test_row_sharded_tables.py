"""Tables that learn by rows: the same sums and gradients as plain ones, and nothing of their size beside them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.rank_tables import STEPS, table_settings
from helpers.tiny_runs import STATIC, quiet_environment, run_identity_of, tiny_data, tiny_settings, torchrun
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared.layers.batch import Segments, segments
from shared.layers.ngrams import NgramEmbedding, ngram_rows
from shared.model_settings import NgramSettings
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.dtensor import to_local
from trainer.distributed.row_sharded_tables import RowGradient, RowTables, by_row, local_rows
from trainer.distributed.world import World, started
from trainer.evaluation.validation import Validation
from trainer.optim.optimizer import SQUARES, RowwiseAdagrad, build_optimizer, set_rate
from trainer.optim.train_step import TrainStep, backward, clip, take_step
from trainer.settings import CheckpointSettings, TableSettings, TrainSettings

NGRAMS = NgramSettings(sizes=(2, 3), rows=50, functions=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("tables") / "data", STATIC)


@pytest.fixture(scope="module")
def world(data: Path) -> Iterator[World]:
    with started(tiny_settings(data, data).run) as world:
        yield world


def pair(world: World, dtype: torch.dtype = torch.float32, width: int = 8) -> tuple[NgramEmbedding, RowTables]:
    """Plain tables and the same that learn by rows."""
    plain = NgramEmbedding(NGRAMS, width)
    with torch.device("meta"):
        empty = NgramEmbedding(NGRAMS, width)
    tables = RowTables(empty, world.mesh, dtype).to_empty(device="cpu")
    local_rows(tables.weight).copy_(plain.weight.detach())
    return plain, tables


def text(seed: int) -> tuple[Tensor, Segments]:
    ids = torch.randint(60, 70, (24,), generator=torch.Generator().manual_seed(seed))
    return ids, segments([10, 14])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_plain_tables(world: World, dtype: torch.dtype) -> None:
    plain, tables = pair(world, dtype)
    sums = tables(*text(0))
    assert sums.dtype == dtype
    assert torch.equal(sums, plain.to(dtype)(*text(0)))
    assert tables(torch.empty(0, dtype=torch.int64), segments([])).shape == (0, 8)


def test_gradients_of_micro_batches_add_up_to_the_dense_one_on_the_rows_that_were_read(world: World) -> None:
    plain, tables = pair(world)
    touched = set()
    for seed in range(3):
        weights = torch.randn(24, 8, generator=torch.Generator().manual_seed(seed))
        for module in (plain, tables):
            (module(*text(seed)) * weights).sum().backward()
        touched |= set(ngram_rows(*text(seed), NGRAMS).flatten().tolist())
    with torch.no_grad():
        tables(*text(7))
    tables(*text(8))  # no backward pass: part of no step
    tables.collect()
    assert tables.gradient is not None
    assert tables.gradient.rows.tolist() == sorted(touched)
    assert plain.weight.grad is not None
    torch.testing.assert_close(tables.gradient.values, plain.weight.grad[tables.gradient.rows], rtol=1e-5, atol=1e-6)
    assert tables.weight.grad is None
    tables.forget()
    tables.collect()
    assert tables.gradient.rows.tolist() == []


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=20))
def test_what_belongs_to_one_row_is_summed(rows: list[list[int]]) -> None:
    values = torch.arange(3.0 * len(rows)).view(-1, 3)
    wanted = torch.zeros(10, 3)
    for line, (first, second) in enumerate(rows):
        wanted[first] += values[line]
        wanted[second] += values[line]
    found, sums = by_row(torch.tensor(rows, dtype=torch.int64).view(-1, 2), values)
    assert found.tolist() == sorted({row for line in rows for row in line})
    assert torch.equal(sums, wanted[found])


def dense_step(weight: Tensor, squares: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    """The rule as it is written, over every row."""
    squares += torch.linalg.vector_norm(gradient, dim=1).square() / gradient.shape[1]
    weight -= gradient / (squares.sqrt() + eps)[:, None] * lr


@settings(deadline=None, max_examples=40)
@given(
    width=st.sampled_from([1, 2, 8, 31, 128, 1000]),
    touched=st.lists(st.sets(st.integers(0, 199), max_size=60), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_a_step_over_touched_rows_is_the_dense_step_bit_for_bit(
    world: World, width: int, touched: list[set[int]], seed: int
) -> None:
    plain, tables = pair(world, width=width)
    optimizer = RowwiseAdagrad({tables: 1.0}, 0.1, TableSettings(eps=1e-8))
    weight, squares = plain.weight.detach(), torch.zeros(200)
    generator = torch.Generator().manual_seed(seed)
    for step, rows in enumerate(touched):
        gradient = torch.zeros(200, width)
        chosen = torch.tensor(sorted(rows), dtype=torch.int64)
        gradient[chosen] = torch.randn(len(rows), width, generator=generator) * 10.0 ** (-3 * step)
        tables.gradient = RowGradient(chosen, gradient[chosen])
        optimizer.step()
        dense_step(weight, squares, gradient, 0.1, 1e-8)
    assert torch.equal(local_rows(tables.weight), weight)
    assert torch.equal(local_rows(optimizer.state[tables.weight][SQUARES]), squares)


class Largest(TorchDispatchMode):
    """Notes the largest storage that is made while it is on, but for ``known`` ones."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.bytes = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        made = operator(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                own = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
                storage = own.untyped_storage()
                if storage.data_ptr() != self.known:
                    self.bytes = max(self.bytes, storage.nbytes())
        return made


def batches_of(settings: TrainSettings, steps: int = 1) -> Iterator[tuple[list, int]]:
    """Packs of each step and their number of targets."""
    train = open_dataset(settings.data.path / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), settings.data.packs))
    for _ in range(steps):
        mine = [next(packs) for _ in range(settings.data.packs)]
        yield [pack.batch for pack in mine], mine[0].step.targets


def large(data: Path, **optimizer: object) -> TrainSettings:
    """A model whose tables are by far its largest part."""
    settings = tiny_settings(data, data, optimizer={"lr": 3e-3, **optimizer})
    ngrams = settings.model.ngrams.model_copy(update={"rows": 40_000})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"ngrams": ngrams})})


def tables_of(model: nn.Module) -> RowTables:
    assert isinstance(model.ngrams, RowTables)
    return model.ngrams


def test_nothing_of_the_tables_size_is_made_by_steps_validation_and_saving(
    data: Path, world: World, tmp_path: Path
) -> None:
    settings = large(data)
    model = build_model(settings, world)
    validation = open_dataset(data / "validation")
    weight = local_rows(tables_of(model).weight)
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(asynchronous=False), world)
    with Largest(weight) as largest:
        optimizer = build_optimizer(model, settings.optimizer)
        checkpoints.save(model, optimizer, TrainState(identity=run_identity_of(settings), config={}))
        for batches, targets in batches_of(settings, 2):
            take_step(model, optimizer, TrainStep(batches, targets, lr=3e-3), world)
        Validation(validation, pack_limits(validation.manifest, settings.data.tokens), world).run(model)
        checkpoints.save(model, optimizer, TrainState(identity=run_identity_of(settings), config={}, step=2))
    assert largest.bytes < weight.numel() * weight.element_size() / 8
    with Largest(weight) as largest:
        torch.zeros_like(tables_of(model).weight)
    assert largest.bytes == weight.numel() * weight.element_size()


def test_one_norm_covers_everything_and_scales_everything(data: Path, world: World) -> None:
    settings = tiny_settings(data, data)
    model = build_model(settings, world)
    ((batches, targets),) = batches_of(settings)
    backward(model, batches, targets, world)
    gradient = tables_of(model).gradient
    assert gradient is not None

    def everything() -> Tensor:
        dense = [to_local(p.grad).flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([*dense, gradient.values.flatten()])

    before = everything()
    assert float(gradient.values.norm()) > 0
    norm = clip(model, float(before.norm()) / 2).whole.float()
    torch.testing.assert_close(norm, before.norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(everything(), before / 2, rtol=1e-4, atol=0)


def test_tables_have_a_rate_of_their_own_times_that_of_their_name(data: Path, world: World) -> None:
    settings = tiny_settings(data, data, optimizer={"lr": 1.0, "rates": {"ngrams": 0.5}, "tables": {"rate": 3.0}})
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    tables = tables_of(model)
    before = local_rows(tables.weight).clone()
    tables.gradient = RowGradient(torch.tensor([5]), torch.full((1, 32), 0.25))
    set_rate(optimizer, 0.01)
    optimizer.step()
    moved = before - local_rows(tables.weight)
    torch.testing.assert_close(moved[5], torch.full((32,), 0.01 * 3.0 * 0.5), rtol=1e-3, atol=1e-6)
    moved[5] = 0
    assert not moved.any()


def test_frozen_tables_keep_nothing_and_stay(data: Path, world: World) -> None:
    settings = tiny_settings(data, data, optimizer={"lr": 1.0, "rates": {"ngrams": 0.0}})
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    tables = tables_of(model)
    before = local_rows(tables.weight).clone()
    for batches, targets in batches_of(settings, 2):
        take_step(model, optimizer, TrainStep(batches, targets, lr=0.01), world)
    assert torch.equal(local_rows(tables.weight), before)
    assert tables.weight not in optimizer.state


def test_tables_learn_alone_when_all_else_is_frozen(data: Path, world: World) -> None:
    rates = dict.fromkeys(("encoder", "global_", "decoder"), 0.0)
    settings = tiny_settings(data, data, optimizer={"lr": 1.0, "rates": rates})
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    before = {name: to_local(parameter).detach().clone() for name, parameter in model.named_parameters()}
    for batches, targets in batches_of(settings, 2):
        take_step(model, optimizer, TrainStep(batches, targets, lr=0.01), world)
    changed = {name for name, parameter in model.named_parameters() if not to_local(parameter).equal(before[name])}
    assert changed == {"ngrams.weight"}


def test_a_model_without_tables_trains(data: Path, world: World) -> None:
    settings = tiny_settings(data, data)
    model_settings = settings.model.model_copy(update={"ngrams": NgramSettings(sizes=())})
    settings = settings.model_copy(update={"model": model_settings})
    model = build_model(settings, world)
    assert not to_local(tables_of(model).weight).numel()
    optimizer = build_optimizer(model, settings.optimizer)
    before = {name: to_local(parameter).detach().clone() for name, parameter in model.named_parameters()}
    for batches, targets in batches_of(settings):
        take_step(model, optimizer, TrainStep(batches, targets, lr=0.01), world)
    for name, parameter in model.named_parameters():
        assert to_local(parameter).isfinite().all(), name
        assert to_local(parameter).equal(before[name]) == (name == "ngrams.weight"), name


@pytest.fixture(scope="module")
def two(data: Path) -> tuple[Path, dict[str, Tensor]]:
    """What two ranks have left: see rank_tables.py."""
    out = data.parent / "two"
    subprocess.run(
        torchrun("--module", "helpers.rank_tables", data, out), check=True, timeout=600, env=quiet_environment()
    )
    return out, safetensors.torch.load_file(out / "whole.safetensors")


@pytest.mark.drill
def test_rows_and_their_sums_of_two_ranks_come_back_on_one(
    data: Path, world: World, two: tuple[Path, dict[str, Tensor]]
) -> None:
    out, whole = two
    settings = table_settings(data)
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    checkpoints = Checkpoints(out, CheckpointSettings(), world)
    path = checkpoints.newest()
    assert path is not None
    assert checkpoints.load(path, model, optimizer, run_identity_of(settings)).step == STEPS
    weight = tables_of(model).weight
    assert torch.equal(local_rows(weight), whole["weight"])
    assert torch.equal(local_rows(optimizer.state[weight][SQUARES]), whole["squares"])
    assert whole["squares"].any()


@pytest.mark.drill
def test_two_ranks_read_what_one_does_however_few_rows_there_are(two: tuple[Path, dict[str, Tensor]]) -> None:
    whole = two[1]
    agree = {name: ranks.tolist() for name, ranks in whole.items() if name.startswith("agree/")}
    assert "agree/1" in agree
    assert set(map(tuple, agree.values())) == {(1, 1)}, agree


@pytest.mark.drill
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(two: tuple[Path, dict[str, Tensor]]) -> None:
    whole = two[1]
    assert whole["refused"].tolist() == [1, 1]
    assert whole["unchanged"].tolist() == [1, 1]
