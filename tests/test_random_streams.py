"""What random values are made from: names and keys that stay as they are when code is renamed.

Whatever of these changes, runs with equal seeds train on other documents, begin with other parameters, or sample
other records.
"""

import ast
import hashlib
from pathlib import Path

import numpy as np
import pytest
from helpers.model_examples import (
    any_model,
    blt_settings,
    entropy_settings,
    flat_settings,
    hnet_settings,
    megabyte_settings,
    spacebyte_settings,
)

from pipeline.records import sample_hash
from shared.model_settings import AnyModelSettings
from shared.models.initialise import _generator
from shared.randomness import shuffled, stream_key, uniform
from trainer.evaluation.robustness.noise import _uniforms

ROOT = Path(__file__).parents[1]
KEYS = {
    "batches": 18074503356039813826,
    "shards": 2530402012907486279,
    "documents": 10054311648901707918,
    "schedule": 17880494959388555666,
}


@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_the_key_of_a_stream_is_of_its_literal_name(name: str, key: int) -> None:
    assert int(stream_key(7, name, 3)) == key


def test_every_stream_has_one_of_these_literal_names() -> None:
    calls = [
        node
        for path in ROOT.glob("trainer/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"stream_key", "pass_key"}
    ]
    names = [call.args[1].value if isinstance(call.args[1], ast.Constant) else None for call in calls]
    assert sorted(map(str, names)) == sorted(KEYS)


def test_values_of_a_stream_are_functions_of_key_and_counter() -> None:
    assert shuffled(np.arange(10), stream_key(7, "batches", 0)).tolist() == [6, 2, 9, 8, 1, 0, 7, 3, 5, 4]
    assert uniform(np.arange(2), stream_key(7, "schedule", 0)).tolist() == [0.7147110415267037, 0.9359622372712856]


NAMES = {
    "blt": (blt_settings(), "c174c8e8718b050d"),
    "blt with pooling by attention": (blt_settings(pooling="attention"), "406e55273cd519d1"),
    "entropy": (entropy_settings(), "13de2b0aa60c277b"),
    "flat": (flat_settings(), "13de2b0aa60c277b"),
    "megabyte": (megabyte_settings(), "b5917ad1686b5f32"),
    "hnet": (hnet_settings(), "1a2f281ac1e9d315"),
    "spacebyte": (spacebyte_settings(), "c9724cc1aff462c7"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_initial_parameters_are_made_from_these_names(kind: str) -> None:
    """Every name of a parameter is part of the key of its initial values."""
    settings: AnyModelSettings
    settings, digest = NAMES[kind]
    names = sorted(name for name, _ in any_model(settings).named_parameters())
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == digest, names


def test_a_parameter_is_drawn_by_seed_name_and_chunk() -> None:
    assert _generator("global_.blocks.0.qkv.weight", 7, 0).initial_seed() == 6086002311905410068
    assert _generator("ngrams.weight", 7, 2).initial_seed() == 1710050196897910395


def test_a_record_is_sampled_by_its_text_and_the_seed() -> None:
    assert sample_hash(b"some text", 7) == 6264019617656780357


def test_noise_is_drawn_by_its_name_the_seed_and_the_text() -> None:
    assert _uniforms(b"some text", "drop", 7, 2).tolist() == [0.8727081160987803, 0.3247063891608418]
