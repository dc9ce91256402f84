"""What the language model evaluation harness asks of a model, asked as it asks: requests with ``args``."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.model_folders import (
    ENTROPY_MODEL,
    entropy_model_folder,
    entropy_model_model,
    entropy_rule,
    identity_of,
    model_folder,
)
from helpers.rounding import NATS

from shared.errors import ConfigError
from shared.model_folder.files import save_model
from shared.patching import PatchingSettings
from shared.vocabulary import OFFSET
from trainer.__main__ import main
from trainer.errors import TaskError
from trainer.evaluation.lm_eval import Harness, harness_module, settings_from
from trainer.evaluation.texts import TextScorer
from trainer.provenance.identity import IDENTITY_NAME, save_identity


def asked(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte latent transformer."""
    parent = tmp_path_factory.mktemp("harness")
    return model_folder(parent / "model", entropy_rule(), entropy_model_folder(parent / "entropy_model"))


@pytest.fixture(scope="module")
def ascii_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that likes ASCII letters best, so that what it writes is text."""
    folder = tmp_path_factory.mktemp("ascii") / "model"
    model = entropy_model_model()
    with torch.no_grad():
        letters = torch.zeros(len(model.head.weight), dtype=torch.bool)
        letters[OFFSET + ord("a") : OFFSET + ord("z") + 1] = True
        model.head.weight[~letters] = 0
    save_model(model, ENTROPY_MODEL, folder)
    save_identity(identity_of(PatchingSettings(rule="none")), folder / IDENTITY_NAME)
    return folder


@pytest.mark.numerics
def test_likelihoods_are_those_of_the_continuation_after_the_context(folder: Path) -> None:
    harness = Harness(folder)
    pairs = [("The man", " went home."), ("", "The"), ("naïve ", "Straße"), ("x", "")]
    found = [nats for nats, _ in harness.loglikelihood([asked(*pair) for pair in pairs])]
    texts = [(context + continuation).encode() for context, continuation in pairs]
    begins = [len(context.rstrip().encode()) for context, _ in pairs]  # spaces count with what follows them
    expected = TextScorer(folder).score(texts, begins, end=False).nats
    assert found == pytest.approx((-expected).tolist(), rel=NATS)
    assert found[3] == 0
    # A text is as likely as its parts, each after what is before it.
    parts = harness.loglikelihood([asked("", "The man"), asked("The man", " went"), asked("The man went", " home.")])
    (whole,) = harness.loglikelihood_rolling([asked("The man went home.")])
    assert whole == pytest.approx(sum(nats for nats, _ in parts), rel=NATS)


def test_what_the_model_writes_is_greedy_and_nothing_else_is(ascii_folder: Path) -> None:
    harness = Harness(ascii_folder)
    contexts = ["The man", "one two", "q"]
    how = {"until": ["\n\n"], "max_gen_toks": 2, "do_sample": False}
    texts = harness.generate_until([asked(context, how) for context in contexts])
    assert all(len(text) == 8 and text.isascii() for text in texts)
    other = [text[:-1] + ("a" if text[-1] != "a" else "b") for text in texts]
    found = harness.loglikelihood([asked(*pair) for pair in [*zip(contexts, texts), *zip(contexts, other)]])
    assert [greedy for _, greedy in found] == [True] * 3 + [False] * 3


def test_requests_that_want_texts_written_otherwise_are_each_answered_in_order(ascii_folder: Path) -> None:
    harness = Harness(ascii_folder)
    plain, until = {"max_gen_toks": 3}, "The man"
    (text,) = harness.generate_until([asked(until, plain)])
    stopped = plain | {"until": text[4]}
    mixed = [asked(until, plain), asked(until, stopped), asked("q", plain), asked(until, plain)]
    found = harness.generate_until(mixed)
    assert found[0] == found[3] == text
    assert found[1] == text[: text.index(text[4])]
    assert found[2] == harness.generate_until([asked("q", plain)])[0]


@pytest.mark.parametrize(
    ("asked", "length", "temperature"),
    [
        ({}, 1024, 0),
        ({"max_new_tokens": 5, "until": "x"}, 20, 0),
        ({"do_sample": True}, 1024, 1),
        ({"do_sample": False, "temperature": 0.7}, 1024, 0),
        ({"temperature": 0.7, "top_p": 0.9}, 1024, 0.7),
    ],
)
def test_lengths_and_temperatures_of_the_harness_are_understood(
    asked: dict[str, Any], length: int, temperature: float
) -> None:
    found = settings_from(asked)
    assert (found.length, found.sampling.temperature) == (length, temperature)


def test_the_share_to_sample_from_is_understood() -> None:
    assert settings_from({"temperature": 0.7, "top_p": 0.9}).sampling.top_p == 0.9


def test_texts_to_stop_at_are_understood_but_for_empty_ones() -> None:
    assert settings_from({"until": ["x", "", "yz"]}).stop == (b"x", b"yz")


@pytest.mark.parametrize(("asked", "key"), [({"num_beams": 4}, "num_beams"), ({"top_p": 3}, "top_p")])
def test_other_words_of_the_harness_are_refused(asked: dict[str, Any], key: str) -> None:
    with pytest.raises(TaskError, match=key):
        settings_from(asked)


def test_a_text_longer_than_a_pack_is_cut_only_where_the_whole_of_it_counts(folder: Path) -> None:
    harness = Harness(folder, tokens=64)
    (nats,) = harness.loglikelihood_rolling([asked("The man went home. " * 20)])
    assert math.isfinite(nats)
    with pytest.raises(TaskError, match="380 bytes"):
        harness.loglikelihood([asked("The man went home. " * 19, "The man went home. ")])


def test_without_the_package_one_line_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="pip install"):
        harness_module("api.model")
    assert main(["lm-eval", str(folder), "--tasks", "hellaswag"]) == 2
    assert "pip install -e '.[lm-eval]'" in capsys.readouterr().err
