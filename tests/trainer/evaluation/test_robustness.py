"""Bits per byte under noise: what scoring the noised texts alone gives."""

import json
import math
from dataclasses import asdict
from pathlib import Path

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
from trainer.evaluation.robustness.under_noise import halved, robustness, table
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


@pytest.mark.numerics
def test_each_figure_is_that_of_its_texts(folder: Path, dataset: Dataset) -> None:
    scorer = TextScorer(folder)
    shares: list[float] = []
    clean, noisy = robustness(scorer, dataset, ["repeat"], shares.append)
    assert shares == pytest.approx([number / 6 for number in range(1, 7)])

    def bits(befores: list[bytes], texts: list[bytes]) -> float:
        """Each text alone after its own beginning: nats of both less those of the beginning."""
        nats = 0.0
        for before, text in zip(befores, texts):
            nats += scorer.score([before + text]).nats[0] - scorer.score([before], end=False).nats[0]
        return nats / math.log(2) / sum(map(len, texts))

    texts = [text.encode() for text in TEXTS]
    prompts, completions = [halved(text)[0] for text in texts], [halved(text)[1] for text in texts]
    noisy_prompts, noisy_completions = ([noised(text, "repeat") for text in half] for half in (prompts, completions))
    nothing = [b""] * len(texts)
    assert clean.noise is None
    assert clean.text == pytest.approx(bits(nothing, texts), rel=NATS)
    assert clean.prompt == clean.completion == clean.both == pytest.approx(bits(prompts, completions), rel=NATS)
    assert noisy.text == pytest.approx(bits(nothing, [noised(text, "repeat") for text in texts]), rel=NATS)
    assert noisy.prompt == pytest.approx(bits(noisy_prompts, completions), rel=NATS)
    assert noisy.completion == pytest.approx(bits(prompts, noisy_completions), rel=NATS)
    assert noisy.both == pytest.approx(bits(noisy_prompts, noisy_completions), rel=NATS)
    assert len({noisy.prompt, noisy.completion, noisy.both, clean.both}) == 4


def test_the_table_shows_changes_from_clean_text(folder: Path, dataset: Dataset) -> None:
    found = robustness(TextScorer(folder), dataset, ["upper-case"])
    head, clean, noisy = table(found).splitlines()
    assert len({len(line) for line in (head, clean, noisy)}) == 1
    assert noisy.startswith("upper-case")
    assert f"{found[1].text:.4f} ({found[1].text - found[0].text:+.4f})" in noisy


def test_the_command_writes_noise_and_samples(
    folder: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The entropy model reads the unpatched documents and writes too.
    out = tmp_path / "scores.json"
    model = entropy_folder(folder.with_name("entropy"))
    command = ["evaluate", str(model), str(dataset.folder), "--threads", "1", "--json", str(out)]
    assert main([*command, "--noise", "drop", "antspeak", "--samples", "3", "--sample-bytes", "20"]) == 0
    shown = capsys.readouterr().out
    figures = json.loads(out.read_text())["datasets"][0]
    expected = robustness(TextScorer(model), dataset, ["antspeak", "drop"])
    assert figures["noise"] == [asdict(one) for one in expected]
    assert [one["noise"] for one in figures["noise"]] == [None, "antspeak", "drop"]
    assert figures["samples"]["samples"] == 3
    assert 0 < figures["samples"]["bytes"] <= 60
    assert "of 3 samples are valid UTF-8" in shown
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--samples", "0"])
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
