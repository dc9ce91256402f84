"""What a request is said to take at most is no less than what it takes, and a request that cannot fit is told why."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.serving import chat_model

from shared.incremental import LONGEST_ADVANCE, DecodingState
from shared.model_settings import BltSettings, EntropyModelSettings, HNetSettings
from shared.stack_settings import StackSettings
from shared.vocabulary import BOS, OFFSET
from trainer.generation.generator import Generator
from trainer.serving.engine import state_size
from trainer.serving.memory import PART, Budget, Demand, StateSize, available_bytes

STACK = StackSettings(width=64, layers=3, heads=4, kv_heads=2)
BLT = BltSettings(encoder=STACK, global_=STACK, decoder=STACK, window=32)
ENTROPY_MODEL = EntropyModelSettings(width=32, layers=2, heads=2, window=64)
HNET = HNetSettings(encoder=STACK, global_=STACK, decoder=STACK, window=32)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(chat_model(tmp_path_factory.mktemp("memory")))


def tensor_bytes(state: DecodingState, generator: Generator) -> int:
    """Of all tensors and arrays of a state, those of the models and of tables that rows share left out."""
    models = {id(generator.model), id(generator.entropy_model)}
    seen: dict[int, int] = {}

    def walk(value: object, depth: int = 0) -> None:
        if id(value) in models or isinstance(value, torch.nn.Module) or depth > 8:
            return
        if isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, np.ndarray):
            seen[value.__array_interface__["data"][0]] = value.nbytes
        elif isinstance(value, list | tuple):
            for one in value:
                walk(one, depth + 1)
        elif isinstance(value, dict):
            walk(list(value.values()), depth + 1)
        elif type(value).__name__ != "Rotations":
            walk(list(getattr(value, "__dict__", {}).values()), depth + 1)

    walk(state)
    return sum(seen.values())


@pytest.mark.parametrize("tokens", [1, 60, 300, 1500])
def test_a_row_takes_no_more_than_it_is_said_to(generator: Generator, tokens: int) -> None:
    state = DecodingState(generator.model, generator.identity.patching, generator.entropy_model)
    ids = np.full(tokens, OFFSET + ord("x"), np.int16)
    ids[0] = BOS
    state.read(ids)
    one = tensor_bytes(state, generator)
    size = state_size(generator)
    assert size.row_bytes(tokens) >= one
    several = DecodingState(generator.model, generator.identity.patching, generator.entropy_model, rows=0)
    for _ in range(5):
        several.append(state)
    assert size.batch_bytes(5, tokens) >= tensor_bytes(several, generator) >= 4 * one


def test_a_part_is_what_the_models_read_at_once() -> None:
    assert PART == LONGEST_ADVANCE


@pytest.mark.parametrize("model", [BLT, HNET, ENTROPY_MODEL], ids=lambda model: model.kind)
def test_estimates_grow_with_what_is_asked(model: BltSettings) -> None:
    size = StateSize(model, ENTROPY_MODEL, 4)
    plain = Demand(rows=1, prompt=300, length=300)
    larger = [
        Demand(rows=2, prompt=300, length=300),
        Demand(rows=1, prompt=300, length=3000),
        Demand(rows=1, prompt=3000, length=300),
        Demand(rows=1, prompt=300, length=300, shows_prompt=True),
        Demand(rows=1, prompt=300, length=300, scores=20),
    ]
    for one in larger:
        assert size.total_bytes([one]) > size.total_bytes([plain])
    assert size.total_bytes([plain, plain]) > size.total_bytes([plain])
    assert size.total_bytes([]) == 0
    # One long row makes room for as much in every other.
    assert size.total_bytes([plain, larger[1]]) >= size.batch_bytes(2, 3300)


def test_half_as_wide_numbers_take_half_as_much() -> None:
    whole, half = (StateSize(BLT, None, width).row_bytes(4096) for width in (4, 2))
    assert 0.5 < half / whole < 0.6


def test_a_budget_says_why_a_request_can_never_fit() -> None:
    budget = Budget(StateSize(BLT, None, 4), memory=1 << 26, most_rows=4)
    assert budget.objection(Demand(rows=4, prompt=100, length=100)) is None
    assert "5 texts" in str(budget.objection(Demand(rows=5, prompt=100, length=100)))
    too_long = str(budget.objection(Demand(rows=1, prompt=5, length=1_000_000)))
    assert "1,000,000" in too_long
    assert "67.1 MB" in too_long
    assert budget.fits([Demand(1, 10, 10)] * 4)
    assert not budget.fits([Demand(1, 10, 10)] * 5)


def test_available_memory_is_the_least_of_the_system_and_its_group(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  2048 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 2 << 20
    assert available_bytes(tmp_path / "none", tmp_path) > 0
