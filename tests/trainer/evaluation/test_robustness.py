"""Bits per byte under noise: what scoring the noised texts alone gives."""

import io
import json
import math
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.model_folders import entropy_folder, entropy_model_folder, entropy_rule, model_folder
from helpers.pack_examples import NONE, SPECIALS, document, make_dataset, with_spans
from helpers.rounding import NATS

from shared.errors import ConfigError
from shared.shards.dataset import Dataset
from trainer.__main__ import main
from trainer.evaluation.robustness.characters import character_start, damage
from trainer.evaluation.robustness.noise import noised
from trainer.evaluation.robustness.under_noise import Robustness, halved, robustness, table
from trainer.evaluation.texts import TextScorer

TEXTS = [
    "",
    "Ab",
    "The first patch begins with a byte. ",
    "Größe für Ähnliches, dann mehr",
    "日本語のテキスト",
    "x" * 90,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("models")
    return model_folder(at / "model", entropy_rule(), entropy_model_folder(at / "entropy_model"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [document(str(number), "ab"[number % 2], text.encode(), NONE) for number, text in enumerate(TEXTS)]
    return make_dataset(tmp_path_factory.mktemp("data") / "validation", [rows], patching=NONE, split="validation")


class Noised(NamedTuple):
    """Scores without a noise and with one, and the shares of work that were told on the way."""

    clean: Robustness
    noisy: Robustness
    shares: list[float]


@pytest.fixture(scope="module")
def noised_scores(folder: Path, dataset: Dataset) -> Noised:
    shares: list[float] = []
    clean, noisy = robustness(TextScorer(folder), dataset, ["repeat"], shares.append)
    return Noised(clean, noisy, shares)


def test_progress_is_told_in_shares_of_the_scoring(noised_scores: Noised) -> None:
    assert noised_scores.shares == pytest.approx([number / 6 for number in range(1, 7)])


def bits(folder: Path, befores: list[bytes], texts: list[bytes]) -> float:
    """Each text alone after its own beginning: nats of both less those of the beginning."""
    scorer, nats = TextScorer(folder), 0.0
    for before, text in zip(befores, texts):
        nats += scorer.score([before + text]).nats[0] - scorer.score([before], end=False).nats[0]
    return nats / math.log(2) / sum(map(len, texts))


WHOLE = [text.encode() for text in TEXTS]
NOTHING = [b""] * len(WHOLE)
PROMPTS, COMPLETIONS = [halved(text)[0] for text in WHOLE], [halved(text)[1] for text in WHOLE]
NOISY, NOISY_PROMPTS, NOISY_COMPLETIONS = (
    [noised(text, "repeat") for text in texts] for texts in (WHOLE, PROMPTS, COMPLETIONS)
)


@pytest.mark.numerics
def test_without_a_noise_all_halves_score_the_same(folder: Path, noised_scores: Noised) -> None:
    clean, halves = noised_scores.clean, pytest.approx(bits(folder, PROMPTS, COMPLETIONS), rel=NATS)
    assert clean.noise is None
    assert clean.text == pytest.approx(bits(folder, NOTHING, WHOLE), rel=NATS)
    assert clean.prompt == clean.completion == clean.both == halves


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("figure", "befores", "texts"),
    [
        ("text", NOTHING, NOISY),
        ("prompt", NOISY_PROMPTS, COMPLETIONS),
        ("completion", PROMPTS, NOISY_COMPLETIONS),
        ("both", NOISY_PROMPTS, NOISY_COMPLETIONS),
    ],
    ids=["text", "prompt", "completion", "both"],
)
def test_each_figure_is_that_of_its_texts(
    folder: Path, noised_scores: Noised, figure: str, befores: list[bytes], texts: list[bytes]
) -> None:
    assert getattr(noised_scores.noisy, figure) == pytest.approx(bits(folder, befores, texts), rel=NATS)


def test_a_noise_of_another_half_is_another_figure(noised_scores: Noised) -> None:
    clean, noisy, _ = noised_scores
    assert len({noisy.prompt, noisy.completion, noisy.both, clean.both}) == 4


def test_the_table_shows_changes_from_clean_text(folder: Path, dataset: Dataset) -> None:
    found = robustness(TextScorer(folder), dataset, ["upper-case"])
    head, clean, noisy = table(found).splitlines()
    assert len({len(line) for line in (head, clean, noisy)}) == 1
    assert noisy.startswith("upper-case")
    assert f"{found[1].text:.4f} ({found[1].text - found[0].text:+.4f})" in noisy


@pytest.fixture(scope="module")
def entropy(folder: Path) -> Path:
    """The entropy model reads the unpatched documents and writes too."""
    return entropy_folder(folder.with_name("entropy"))


def evaluate(model: Path, dataset: Dataset, *options: str) -> int:
    return main(["evaluate", str(model), str(dataset.folder), "--threads", "1", *options])


@pytest.fixture(scope="module")
def written(entropy: Path, dataset: Dataset) -> tuple[str, dict[str, Any]]:
    """What the command shows and writes with noises and samples."""
    out = entropy.parent / "scores.json"
    options = ("--noise", "drop", "antspeak", "--samples", "3", "--sample-bytes", "20")
    with redirect_stdout(io.StringIO()) as shown:
        assert evaluate(entropy, dataset, "--json", str(out), *options) == 0
    return shown.getvalue(), json.loads(out.read_text())["datasets"][0]


def test_the_command_writes_figures_of_each_noise(
    written: tuple[str, dict[str, Any]], entropy: Path, dataset: Dataset
) -> None:
    expected = robustness(TextScorer(entropy), dataset, ["antspeak", "drop"])
    assert written[1]["noise"] == [asdict(one) for one in expected]
    assert [one.noise for one in expected] == [None, "antspeak", "drop"]


def test_the_command_writes_and_shows_figures_of_samples(written: tuple[str, dict[str, Any]]) -> None:
    shown, figures = written
    assert figures["samples"]["samples"] == 3
    assert 0 < figures["samples"]["bytes"] <= 60
    assert "of 3 samples are valid UTF-8" in shown


def test_no_samples_at_all_are_refused(entropy: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate(entropy, dataset, "--samples", "0")
    assert "--samples: 0 is too small" in capsys.readouterr().err


def test_documents_with_special_ids_are_refused_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [with_spans(document("a", "a", b"some text", NONE), np.random.default_rng(1), NONE)]
    chats = make_dataset(tmp_path, [rows], patching=NONE, specials=SPECIALS)
    with pytest.raises(ConfigError, match="noise is for plain text"):
        robustness(TextScorer(folder), chats, ["drop"])
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), str(chats.folder), "--noise", "loud"])
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(chats.folder), "--noise", "drop"]) == 2
    shown = capsys.readouterr()
    assert "noise is for plain text" in shown.err
    assert not shown.out


@pytest.mark.parametrize("text", [*TEXTS, "🙂🙃"])
def test_a_cut_falls_where_a_character_begins(text: str) -> None:
    data = text.encode()
    for at in range(len(data) + 1):
        place = character_start(data, at)
        assert at - 3 <= place <= at
        assert data[:place].decode() + data[place:].decode() == text


def test_bytes_that_are_no_utf8_are_cut_anywhere() -> None:
    assert character_start(b"\x80" * 9, 7) == 7


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        (b"", True, (0, 0)),
        ("größer".encode(), True, (6, 0)),
        (b"a\xffb", True, (3, 1)),
        (b"\xe2\x82a", True, (2, 1)),
        ("日".encode()[:2], False, (0, 0)),
        ("日".encode()[:2], True, (1, 1)),
        ("\ufffd".encode(), True, (1, 0)),
        ("\ufffd".encode() + b"\x80", False, (2, 1)),
    ],
)
def test_damage_is_what_cannot_be_decoded(text: bytes, whole: bool, expected: tuple[int, int]) -> None:
    assert damage(text, whole) == expected
