"""Sharding changes where numbers are, never which: every layout of ranks equals one process (law 5, FSDP and HSDP)."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.rank_runs import FULL, PACKS, STEPS, compute, restored, settings_for
from helpers.rounding import NATS, TRAINED, assert_equal_but_rounded, in_fp64
from helpers.tiny_runs import STATIC, quiet_environment, tiny_data, torchrun

from shared.errors import ConfigError
from shared.model_folder.files import build_model as plain_model
from shared.models.initialise import initial_value, initialise
from shared.shards.open import open_dataset
from shared.vocabulary import IGNORED_LABEL
from trainer.checkpoints.initial_weights import build_model
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.world import started
from trainer.optim.train_step import predict

Results = dict[str, torch.Tensor]

TWO = [FULL, {"offload": True, "keep_gathered": True}]
"""Layouts on two ranks: one copy of the model over both."""
FOUR = [{"shard": 2, "activation_checkpointing": "selective"}]
"""On four: two copies, each over two ranks."""
LAYOUTS = ["two/0", "two/1", "four/0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("fsdp") / "data", STATIC)


@pytest.fixture(scope="module")
def one(data: Path) -> Results:
    """What one process computes. It keeps everything, and leaves its state for the others."""
    settings = settings_for(data, {})
    with started(settings.run) as world:
        return compute(settings, world, data.parent / "one")


@pytest.fixture(scope="module")
def exact(data: Path) -> Callable[[int], Results]:
    """The oracle, in fp64: one plain model, so many packs of the first step, mean over every target at once."""
    settings = settings_for(data, {})
    train = open_dataset(data / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), PACKS))
    batches = [next(packs).batch.to(torch.device("cpu")) for _ in range(PACKS)]
    model = plain_model(settings.model)
    initialise(model, 0)

    def gradients(model: torch.nn.Module, count: int) -> Results:
        model.zero_grad()
        logits = torch.cat([predict(model, batch) for batch in batches[:count]])
        labels = torch.cat([batch.labels for batch in batches[:count]])
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    return lambda count: in_fp64(model, lambda model: gradients(model, count))


@pytest.fixture(scope="module")
def several(data: Path, one: Results) -> dict[str, Results]:
    """The results of each layout on several ranks."""
    return on_ranks(data, "two", TWO, 2) | on_ranks(data, "four", FOUR, 4)


def on_ranks(data: Path, name: str, layouts: list[dict[str, Any]], ranks: int) -> dict[str, Results]:
    """The results of layouts, by the name and the layout's number."""
    out = data.parent / f"{name}.safetensors"
    command = torchrun("--module", "helpers.rank_runs", data, out, *map(json.dumps, layouts), ranks=ranks)
    subprocess.run(command, check=True, timeout=600, env=quiet_environment())
    results = safetensors.torch.load_file(out)
    return {f"{name}/{number}": of(results, f"{number}/") for number in range(len(layouts))}


def of(results: Results, prefix: str) -> Results:
    """The results under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in results.items() if name.startswith(prefix)}


@pytest.mark.drill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_initial_parameters_are_equal_bit_for_bit(layout: str, one: Results, several: dict[str, Results]) -> None:
    assert of(one, "initial/")
    for name, tensor in of(one, "initial/").items():
        assert torch.equal(tensor, several[layout][f"initial/{name}"]), name
        assert torch.equal(tensor, initial_value(name, tensor.shape, 0)), name


@pytest.mark.drill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_share_copies_of_the_model_and_one_copy_of_the_tables(
    layout: str, one: Results, several: dict[str, Results]
) -> None:
    ranks, copies = {"two": (2, 1), "four": (4, 2)}[layout.partition("/")[0]]
    assert several[layout]["parameters"].tolist() == [int(one["parameters"]) * copies // ranks] * ranks
    assert several[layout]["tables"].tolist() == [int(one["tables"]) // ranks] * ranks


@pytest.mark.drill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_pack_is_read_twice_and_none_is_missed(layout: str, one: Results, several: dict[str, Results]) -> None:
    """Rank r of R takes the r-th of every R packs, whatever the mesh."""
    by_rank = several[layout]["packs"]
    ranks = len(by_rank)
    assert ranks == {"two": 2, "four": 4}[layout.partition("/")[0]]
    assert sorted(by_rank.flatten().tolist()) == list(range(STEPS * PACKS)) == one["packs"].flatten().tolist()
    assert all((row % ranks == rank).all() for rank, row in enumerate(by_rank))


@pytest.mark.drill
@pytest.mark.numerics
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_equal_those_of_one_process(
    layout: str, one: Results, several: dict[str, Results], exact: Callable[[int], Results]
) -> None:
    found = several[layout]
    torch.testing.assert_close(found["nats"], one["nats"], rtol=NATS, atol=0)
    torch.testing.assert_close(found["first_norm"], one["first_norm"], rtol=NATS, atol=0)
    assert_equal_but_rounded(of(found, "gradient/"), of(one, "gradient/"), exact(PACKS))


@pytest.mark.drill
@pytest.mark.numerics
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_whose_packs_are_empty_are_normal(
    layout: str, one: Results, several: dict[str, Results], exact: Callable[[int], Results]
) -> None:
    assert all(tensor.any() for tensor in of(one, "unequal/").values())
    assert_equal_but_rounded(of(several[layout], "unequal/"), of(one, "unequal/"), exact(1))


@pytest.mark.drill
@pytest.mark.numerics
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_steps_end_at_the_same_weights(layout: str, one: Results, several: dict[str, Results]) -> None:
    found = several[layout]
    torch.testing.assert_close(found["norm"], one["norm"], rtol=TRAINED, atol=0)
    torch.testing.assert_close(found["validation"], one["validation"], rtol=TRAINED, atol=0)
    for name, tensor in of(one, "trained/").items():
        assert not torch.equal(tensor, one[f"initial/{name}"]), name
        # Adam divides by the gradient's own size, so that rounding shows where gradients are nearly nothing.
        torch.testing.assert_close(found[f"trained/{name}"], tensor, rtol=TRAINED, atol=TRAINED, msg=name)


@pytest.mark.drill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_exported_model_is_the_trained_one(layout: str, several: dict[str, Results]) -> None:
    exported = of(several[layout], "exported/")
    assert exported
    for name, tensor in exported.items():
        assert torch.equal(tensor, several[layout][f"trained/{name}"]), name


@pytest.mark.drill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_is_read_back_by_every_layout(layout: str, data: Path, one: Results, several: dict[str, Results]) -> None:
    """From many ranks to one process and the other way, bit for bit."""
    ranks, _, number = layout.partition("/")
    settings = settings_for(data, {})
    with started(settings.run) as world:
        here = restored(settings, world, data.parent / f"{ranks}.{number}")
    assert any(name.startswith("moments/") for name in here)
    for name, tensor in here.items():
        assert torch.equal(tensor, several[layout][name]), name
        assert torch.equal(several[layout][f"restored/{name}"], one[name]), name


def test_ranks_that_cannot_be_grouped_are_one_clear_line(data: Path) -> None:
    settings = settings_for(data, {"shard": 3})
    with started(settings.run) as world, pytest.raises(ConfigError) as error:
        build_model(settings, world)
    assert "parallel.shard is 3: it must divide the number of ranks, 1" in str(error.value)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_compiled_blocks_learn_the_same(how: str, data: Path, one: Results, exact: Callable[[int], Results]) -> None:
    parallel: dict[str, Any] = {"compile": True, "activation_checkpointing": how}
    settings = settings_for(data, parallel)
    with started(settings.run) as world:
        compiled = compute(settings, world)
    torch.testing.assert_close(compiled["nats"], one["nats"], rtol=NATS, atol=0)
    assert_equal_but_rounded(of(compiled, "gradient/"), of(one, "gradient/"), exact(PACKS))


@pytest.mark.slow
@pytest.mark.numerics
def test_compiled_and_recomputed_blocks_learn_the_same_in_copies_of_the_model(
    data: Path, one: Results, exact: Callable[[int], Results]
) -> None:
    parallel = {"shard": 2, "compile": True, "activation_checkpointing": "selective"}
    found = on_ranks(data, "compiled", [parallel], 4)["compiled/0"]
    torch.testing.assert_close(found["nats"], one["nats"], rtol=NATS, atol=0)
    assert_equal_but_rounded(of(found, "gradient/"), of(one, "gradient/"), exact(PACKS))


@pytest.mark.numerics
def test_the_sharded_gradient_is_that_of_the_plain_mean_over_all_targets(
    one: Results, exact: Callable[[int], Results]
) -> None:
    found, wanted = of(one, "gradient/"), exact(PACKS)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor).abs().max()
        assert error <= NATS * tensor.abs().max(), name
