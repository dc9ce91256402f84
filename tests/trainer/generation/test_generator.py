"""Generation from a model folder alone: boundaries as stored, rows as if alone, drafts that change nothing."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.model_folders import (
    ENTROPY_MODEL,
    entropy_folder,
    entropy_model_folder,
    entropy_model_model,
    entropy_model_scorer,
    entropy_rule,
    model_folder,
)
from helpers.rounding import ENTROPY

from shared.errors import ConfigError, IdentityError
from shared.layers.batch import Patches, segments
from shared.model_folder.files import load_model, save_model
from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.vocabulary import BOS, EOS, OFFSET, byte_tokens, document_tokens
from trainer.generation.generator import Generator
from trainer.generation.piece import Piece
from trainer.generation.sampling import WRITABLE, SamplingSettings
from trainer.generation.settings import GenerateSettings

GREEDY = SamplingSettings(temperature=0)
PROMPTS = [
    b"",
    b"a",
    b"The patch begins",
    b"\xff\x00\n",
    b"x" * 130,
    "naïve Größe".encode(),
    b"1 2 3 " * 9,
]


@pytest.fixture(scope="module")
def entropy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return entropy_model_folder(tmp_path_factory.mktemp("entropy_model") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, entropy_model: Path) -> Path:
    return model_folder(tmp_path_factory.mktemp("generate") / "model", entropy_rule(), entropy_model)


def write(folder: Path, prompt: bytes, length: int = 24, **options) -> list[Piece]:
    return list(Generator(folder).write(prompt, GenerateSettings(length=length, **options)))


def text_of(pieces: list[Piece]) -> bytes:
    return b"".join(piece.byte for piece in pieces)


@pytest.mark.numerics
def test_boundaries_and_entropies_while_writing_are_those_of_the_finished_document(folder: Path) -> None:
    pieces = write(folder, b"a prompt ")
    text = text_of(pieces)
    assert len(text) > 9
    tokens = document_tokens(text)
    (entropies,) = entropy_model_scorer().score([tokens])
    stored = np.zeros(len(tokens), bool)
    stored[np.cumsum(patch_lengths(tokens, entropy_rule(), entropies))[:-1]] = True
    assert [piece.starts for piece in pieces] == stored[1 : 1 + len(text)].tolist()
    assert 0 < sum(piece.starts for piece in pieces) < len(pieces)
    np.testing.assert_allclose([piece.entropy for piece in pieces], entropies[: len(text)], atol=ENTROPY)
    assert [piece.from_prompt for piece in pieces] == [True] * 9 + [False] * (len(text) - 9)


@pytest.mark.parametrize(
    "rule",
    [
        entropy_rule(),
        entropy_rule(0.6, "monotonic"),
        PatchingSettings(rule="space", max_length=16),
        PatchingSettings(rule="static", stride=4),
    ],
    ids=lambda rule: rule.rule,
)
def test_greedy_text_is_that_of_recomputing_everything_for_each_byte(
    tmp_path: Path, entropy_model: Path, rule: PatchingSettings
) -> None:
    folder = model_folder(tmp_path / "model", rule, entropy_model if rule.needs_entropy else None)
    text = text_of(write(folder, b"The patch", sampling=GREEDY, length=24))
    model, entropy_model = load_model(folder), entropy_model_scorer()
    tokens = np.concatenate([[np.int16(BOS)], byte_tokens(b"The patch")]).astype(np.int16)
    for wanted in [*byte_tokens(text[9:]), EOS][:24]:
        (entropies,) = entropy_model.score([np.append(tokens, np.int16(EOS))])
        stream = PatchStream(rule)
        starts = np.array([True] + [stream.push(int(t), float(h)) for t, h in zip(tokens, entropies)])
        number = np.cumsum(starts) - 1
        patches = Patches(
            torch.from_numpy(number[:-1]), torch.from_numpy(number[1:] - 1), segments([int(number[-2]) + 1])
        )
        with torch.inference_mode():
            logits = model(torch.from_numpy(tokens.astype(np.int64)), segments([len(tokens)]), patches)[-1].numpy()
        logits[~WRITABLE] = -np.inf
        best, second = np.argsort(logits)[:-3:-1]
        assert wanted == best or logits[best] - logits[second] <= 1e-4
        tokens = np.append(tokens, np.int16(wanted))


def test_the_global_model_runs_once_for_each_patch(folder: Path) -> None:
    generator = Generator(folder)
    pieces = list(generator.write(b"a prompt ", GenerateSettings(length=60)))
    written = pieces[9:]
    statistics = generator.statistics
    assert statistics.bytes == len(written)
    ended_by_eos = generator.ended == ["end of document"]
    assert statistics.patches - sum(piece.starts for piece in written) in ((0, 1) if ended_by_eos else (0,))
    assert statistics.global_forwards == statistics.patches


Alone = Callable[[bytes, GenerateSettings], tuple[list[Piece], list[str], int]]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Alone:
    """Pieces of a text without drafts, how it ended, and how often the global model ran; each written once."""
    generator = Generator(folder)

    @cache
    def alone(prompt: bytes, settings: GenerateSettings) -> tuple[list[Piece], list[str], int]:
        return list(generator.write(prompt, settings)), generator.ended, generator.statistics.global_forwards

    return alone


@pytest.mark.parametrize("draft", [0, 5])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingSettings(temperature=0.9, top_k=40, seed=3)], ids=["greedy", "sampled"]
)
def test_a_batch_of_ragged_prompts_is_its_single_runs(
    folder: Path, alone: Alone, sampling: SamplingSettings, draft: int
) -> None:
    settings = GenerateSettings(length=24, sampling=sampling, stop=(b"\x00\x01",))
    generator = Generator(folder)
    rows: list[list[Piece]] = [[] for _ in PROMPTS]
    for row, piece in generator.write_batch(PROMPTS, settings.model_copy(update={"draft": draft})):
        rows[row].append(piece)
    for number, prompt in enumerate(PROMPTS):
        pieces, ended, _ = alone(prompt, settings)
        assert text_of(rows[number]) == text_of(pieces)
        assert [piece.starts for piece in rows[number]] == [piece.starts for piece in pieces]
        assert [generator.ended[number]] == ended


@pytest.mark.parametrize("draft", [1, 40])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingSettings(temperature=0.5, top_p=0.9, seed=4)], ids=["greedy", "sampled"]
)
def test_drafts_change_nothing_that_is_written(
    folder: Path, alone: Alone, sampling: SamplingSettings, draft: int
) -> None:
    generator, settings = Generator(folder), GenerateSettings(length=24, sampling=sampling)
    for prompt in PROMPTS[1:4]:
        plain, ended, forwards = alone(prompt, settings)
        drafted = list(generator.write(prompt, settings.model_copy(update={"draft": draft})))
        assert text_of(drafted) == text_of(plain)
        assert [piece.starts for piece in drafted] == [piece.starts for piece in plain]
        assert generator.ended == ended
        statistics = generator.statistics
        assert 0 <= statistics.accepted <= statistics.drafted
        assert statistics.drafted > 0
        assert statistics.global_forwards >= forwards


def test_a_draft_that_is_always_right_is_always_accepted(tmp_path: Path) -> None:
    """One patch for everything but BOS: what the decoder reads never changes, so the local models are never wrong."""
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="static", stride=500), None)
    generator = Generator(folder)
    list(generator.write(b"abc", GenerateSettings(length=61, sampling=GREEDY, draft=9)))
    statistics = generator.statistics
    if generator.ended == ["length"]:
        assert statistics.acceptance == 1
        assert statistics.global_forwards == 0


def test_text_goes_on_the_same_wherever_the_prompt_ends(folder: Path) -> None:
    text = text_of(write(folder, b"abc", sampling=GREEDY))
    assert text_of(write(folder, text[:10], sampling=GREEDY, length=len(text) - 10)) == text


def test_the_same_seed_writes_the_same_text_and_another_seed_another(folder: Path) -> None:
    seeds = [SamplingSettings(seed=seed) for seed in (1, 1, 2)]
    first, again, other = (text_of(write(folder, b"x", sampling=sampling)) for sampling in seeds)
    assert first == again != other


def test_only_utf8_is_written_when_that_is_asked_for(folder: Path) -> None:
    hot = SamplingSettings(temperature=5)
    assert _valid(text_of(write(folder, b"x", sampling=hot, length=80, utf8=True)))
    assert not _valid(text_of(write(folder, b"x", sampling=hot, length=80)))


def _valid(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_stop_string_ends_the_text_and_is_not_shown(folder: Path) -> None:
    text = text_of(write(folder, b"abc", sampling=GREEDY, length=30))[3:]
    stop = text[10:12]
    generator = Generator(folder)
    stopped = text_of(list(generator.write(b"abc", GenerateSettings(length=30, sampling=GREEDY, stop=(stop,)))))[3:]
    assert stopped == text[: text.find(stop)]
    assert generator.ended == ["stop"]


def test_another_entropy_model_than_the_recorded_one_is_refused(tmp_path: Path, entropy_model: Path) -> None:
    folder = model_folder(tmp_path / "model", entropy_rule(), entropy_model)
    save_model(entropy_model_model(seed=6), ENTROPY_MODEL, folder / "entropy_model")
    with pytest.raises(IdentityError, match="sha256"):
        Generator(folder)


def test_rules_without_entropy_need_no_entropy_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="space", max_length=16), None)
    pieces = write(folder, b"two words", length=0)
    assert text_of(pieces) == b"two words"
    assert [number for number, piece in enumerate(pieces) if piece.starts] == [0, 4]
    assert {piece.entropy for piece in pieces} == {None}


def test_an_entropy_model_writes_too_but_has_nothing_to_draft_for(tmp_path: Path) -> None:
    folder = entropy_folder(tmp_path / "model")
    text = text_of(write(folder, b"ab", sampling=GREEDY, length=1))
    tokens = torch.from_numpy(np.concatenate([[BOS], byte_tokens(b"ab")]).astype(np.int64))
    logits = load_model(folder)(tokens, segments([3]))[-1]
    assert text in (b"ab", b"ab" + bytes([int(logits[OFFSET:].argmax())]))
    with pytest.raises(ConfigError, match="draft"):
        write(folder, b"ab", draft=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("entropy_model", None),
        ("patching.theta", float("nan")),
        ("patching.theta", "1.5"),
        ("patching.max_length", 2**70),
        ("patching.thetas", [1]),
        ("numerics.threads", 10**9),
        ("numerics.threads", -1),
        ("numerics.dtype", "float16"),
        ("entropy_model.numerics.threads", 0),
        ("entropy_model.numerics.stream_length", 2**62),
        ("mean_patch_size", float("inf")),
        ("config", []),
        ("more", 1),
    ],
)
def test_an_identity_that_cannot_be_is_one_line(folder: Path, tmp_path: Path, key: str, value: object) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    values = json.loads((folder / "identity.json").read_text())
    *tables, last = key.split(".")
    inner = values
    for table in tables:
        inner = inner[table]
    inner[last] = value
    (tmp_path / "identity.json").unlink()
    (tmp_path / "identity.json").write_text(json.dumps(values))
    with pytest.raises(IdentityError, match=last):
        Generator(tmp_path)
