"""Sharding changes where numbers are, never which: two ranks equal one process (law 5, FSDP)."""

import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_runs import STATIC, quiet_environment, tiny_data, torchrun
from two_ranks import compute, settings_for

from shared.initialise import initial_value
from shared.model_files import build_model as plain_model
from trainer.data.limits import pack_limits
from trainer.data.loader import PackLoader
from trainer.learning.step import predict
from trainer.parallel.world import started

Results = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("fsdp") / "data", STATIC)


@pytest.fixture(scope="module")
def one(data: Path) -> Results:
    settings = settings_for(data)
    with started(settings.run) as world:
        return compute(settings, world)


@pytest.fixture(scope="module")
def two(data: Path) -> Results:
    out = data.parent / "two.safetensors"
    script = Path(__file__).with_name("two_ranks.py")
    subprocess.run(torchrun(script, data, out), check=True, timeout=120, env=quiet_environment())
    return safetensors.torch.load_file(out)


def of(results: Results, prefix: str) -> Results:
    return {name: tensor for name, tensor in results.items() if name.startswith(prefix)}


def test_initial_parameters_are_equal_bit_for_bit_for_any_number_of_ranks(one: Results, two: Results) -> None:
    assert of(one, "initial")
    for name, tensor in of(one, "initial").items():
        assert torch.equal(tensor, two[name]), name
        parameter = name.removeprefix("initial/")
        assert torch.equal(tensor, initial_value(parameter, tensor.shape, 0)), name


def test_loss_and_gradients_of_two_ranks_equal_those_of_one_process(one: Results, two: Results) -> None:
    torch.testing.assert_close(one["nats"], two["nats"], rtol=1e-6, atol=0)
    torch.testing.assert_close(one["norm"], two["norm"], rtol=1e-5, atol=0)
    for name, tensor in of(one, "gradient").items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_parameters_after_steps_stay_equal(one: Results, two: Results) -> None:
    for name, tensor in of(one, "trained").items():
        assert not torch.equal(tensor, one[name.replace("trained", "initial")]), name
        # Adam divides by the gradient's own size, so that rounding shows where gradients are nearly nothing.
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_compiled_and_recomputed_blocks_learn_the_same(data: Path, one: Results) -> None:
    plain = settings_for(data)
    settings = plain.model_copy(update={"parallel": plain.parallel.model_copy(update={"compile": True})})
    with started(settings.run) as world:
        compiled = compute(settings, world)
    torch.testing.assert_close(compiled["nats"], one["nats"], rtol=1e-6, atol=0)
    for name, tensor in of(one, "gradient").items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_the_sharded_gradient_is_that_of_the_plain_mean_over_all_targets(data: Path, one: Results) -> None:
    """The oracle: one plain model, all packs of the step, mean cross-entropy over every valid target at once."""
    from shared.shards.dataset import open_dataset

    settings = settings_for(data)
    train = open_dataset(data / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), settings.data.packs))
    batches = [next(packs).batch for _ in range(settings.data.packs)]
    model = plain_model(settings.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, 0))
    logits = torch.cat([predict(model, batch) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(one[f"gradient/{name}"], parameter.grad, rtol=1e-4, atol=1e-6)
