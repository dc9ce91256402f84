"""Generation from a model folder alone: boundaries as stored, half a character never shown."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import STACK, tiny_settings

from shared.batch import segments
from shared.config import ConfigError
from shared.entropy_model import EntropyModel
from shared.identity import IdentityError
from shared.initialise import initialise
from shared.model_files import build_model, save_model
from shared.model_identity import model_sha256
from shared.model_settings import EntropyModelSettings
from shared.patching import PatchingSettings, patch_lengths
from shared.scoring import Scorer
from shared.shards.manifest import NumericsClass, PatcherIdentity
from shared.vocabulary import BOS, byte_tokens, document_tokens
from trainer.__main__ import main
from trainer.data.packs import patch_map
from trainer.generate import Boundaries, GenerateSettings, Generator, Piece, PrefixScorer, choose_patching, text_of
from trainer.identity import IDENTITY_NAME, ModelIdentity, RunNumerics, save_identity

PATCHER = EntropyModelSettings(window=64, **STACK)
STREAM = 256


@pytest.fixture(scope="module")
def patcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patcher") / "model"
    model = EntropyModel(PATCHER)
    initialise(model, 5)
    save_model(model, PATCHER, folder)
    return folder


def scorer_of(folder: Path) -> Scorer:
    model = EntropyModel(PATCHER)
    initialise(model, 5)
    return Scorer(model, STREAM)


def prefix_scorer(stream_length: int = STREAM) -> PrefixScorer:
    model = EntropyModel(PATCHER)
    initialise(model, 5)
    return PrefixScorer(model, numerics(stream_length), torch.device("cpu"))


def numerics(stream_length: int = STREAM) -> NumericsClass:
    common = {"device": "cpu", "dtype": "float32", "torch": torch.__version__, "attention": "", "probe": ""}
    return NumericsClass(**common, stream_length=stream_length, threads=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def entropy_rule(patcher: Path) -> PatchingSettings:
    """A threshold in the middle of this model's entropies, so that about every second byte opens a patch."""
    (entropies,) = scorer_of(patcher).score([document_tokens(bytes(range(32, 127)) * 2)])
    return PatchingSettings(rule="entropy", theta=float(np.median(entropies)), max_length=16)


def model_folder(folder: Path, patching: PatchingSettings, patcher: Path | None) -> Path:
    """What a finished run leaves behind."""
    settings = tiny_settings("x", "y").model
    model = build_model(settings)
    initialise(model, 0)
    save_model(model, settings, folder, patcher)
    identity = ModelIdentity(
        config={},
        data={},
        patching=patching,
        patcher=PatcherIdentity(sha256=model_sha256(patcher), numerics=numerics()) if patcher else None,
        numerics=RunNumerics(dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=1),
    )
    save_identity(identity, folder / IDENTITY_NAME)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, patcher: Path, entropy_rule: PatchingSettings) -> Path:
    return model_folder(tmp_path_factory.mktemp("generate") / "model", entropy_rule, patcher)


def write(folder: Path, prompt: bytes, **options) -> tuple[bytes, list[bool]]:
    pieces = list(Generator(folder).write(prompt, GenerateSettings(**({"length": 24} | options))))
    return b"".join(piece.byte for piece in pieces), [piece.starts for piece in pieces]


def test_boundaries_while_writing_are_those_of_the_finished_document(
    folder: Path, patcher: Path, entropy_rule: PatchingSettings
) -> None:
    text, starts = write(folder, b"a prompt ")
    assert len(text) > 9
    tokens = document_tokens(text)
    (entropies,) = scorer_of(patcher).score([tokens])
    lengths = patch_lengths(tokens, entropy_rule, entropies)
    stored = np.zeros(len(tokens), bool)
    stored[np.cumsum(lengths)[:-1]] = True
    assert starts == stored[1 : 1 + len(text)].tolist()
    assert 0 < sum(starts) < len(starts)


def test_patches_of_a_prefix_are_those_that_training_sees(patcher: Path, entropy_rule: PatchingSettings) -> None:
    tokens = document_tokens(b"training and writing read the same patches")
    (entropies,) = scorer_of(patcher).score([tokens])
    lengths = patch_lengths(tokens, entropy_rule, entropies).astype(np.int64)
    boundaries = Boundaries(entropy_rule, prefix_scorer())
    boundaries.extend(tokens[:-1])
    patches = boundaries.patches()
    alone = lengths[-1] == 1
    inputs = lengths[:-1] if alone else np.append(lengths[:-1], lengths[-1] - 1)
    trained = patch_map([inputs], np.array([False]), np.array([alone]))
    assert patches.of_token.tolist() == trained.of_token.tolist()
    # After the last token training asks where EOS lies; the stream decides that by entropy, as for any byte.
    assert patches.of_decoder[:-1].tolist() == trained.of_decoder[:-1].tolist()
    assert patches.count == trained.in_slice[0]


def test_entropies_of_a_prefix_are_those_of_the_recorded_stream_within_law_2() -> None:
    model = EntropyModel(PATCHER)
    initialise(model, 5)
    recorded, scorer = Scorer(model, 1024), prefix_scorer(1024)
    document = document_tokens(bytes(range(256)) * 5)
    for length in (2, 255, 257, 600, len(document)):
        (expected,) = recorded.score([document[:length]])
        np.testing.assert_allclose(scorer(document[: length - 1]), expected, rtol=0, atol=1e-4)


def test_logits_at_each_byte_do_not_depend_on_how_much_came_before_in_one_call(folder: Path) -> None:
    """Greedy text is the same whether the prompt ends early or late."""
    text, _ = write(folder, b"abc", temperature=0)
    longer, _ = write(folder, text[:10], temperature=0, length=len(text) - 10)
    assert longer == text


def test_the_same_seed_writes_the_same_text_and_another_seed_another(folder: Path) -> None:
    assert write(folder, b"x", seed=1) == write(folder, b"x", seed=1)
    assert write(folder, b"x", seed=1) != write(folder, b"x", seed=2)


def test_any_bytes_are_a_prompt_and_an_empty_one_too(folder: Path) -> None:
    text, _ = write(folder, b"\xff\x00\n", length=2)
    assert text.startswith(b"\xff\x00\n")
    assert len(write(folder, b"", length=3)[0]) <= 3


@settings(deadline=None)
@given(st.text(max_size=20), st.binary(max_size=4))
def test_no_half_character_is_shown_and_what_is_not_utf8_is_replaced(text: str, rest: bytes) -> None:
    data = text.encode("utf-8", "replace") + rest
    shown = list(text_of(iter([Piece(bytes([byte]), False) for byte in data]), show_patches=False))
    assert "".join(shown) == data.decode("utf-8", "replace")


def test_patches_are_set_apart() -> None:
    pieces: Iterator[Piece] = iter([Piece(b"a", True), Piece(b"b", False), Piece(b"c", True)])
    assert "".join(text_of(pieces, show_patches=True)) == "|ab|c"


def test_thresholds_by_subset_need_a_choice() -> None:
    rule = PatchingSettings(rule="entropy", theta=1.0, thetas={"de": 2.0, "en": 3.0})
    assert choose_patching(rule, GenerateSettings(1, subset="de")).theta == 2.0
    assert choose_patching(rule, GenerateSettings(1, theta=0.5)).theta == 0.5
    for subset in (None, "fr"):
        with pytest.raises(ConfigError, match="de, en"):
            choose_patching(rule, GenerateSettings(1, subset=subset))
    with pytest.raises(ConfigError, match="no threshold"):
        choose_patching(PatchingSettings(rule="byte"), GenerateSettings(1, theta=0.5))


def test_another_patcher_than_the_recorded_one_is_refused(
    tmp_path: Path, patcher: Path, entropy_rule: PatchingSettings
) -> None:
    folder = model_folder(tmp_path / "model", entropy_rule, patcher)
    other = EntropyModel(PATCHER)
    initialise(other, 6)
    save_model(other, PATCHER, folder / "patcher")
    with pytest.raises(IdentityError, match="sha256"):
        Generator(folder)


def test_rules_without_entropy_need_no_patcher(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="space", max_length=16), None)
    text, starts = write(folder, b"two words", length=0)
    assert text == b"two words"
    assert [number for number, start in enumerate(starts) if start] == [0, 4]


def test_an_entropy_model_writes_too(tmp_path: Path, patcher: Path) -> None:
    folder = tmp_path / "model"
    model = EntropyModel(PATCHER)
    initialise(model, 5)
    save_model(model, PATCHER, folder)
    identity = ModelIdentity(
        config={},
        data={},
        patching=PatchingSettings(rule="none"),
        patcher=None,
        numerics=RunNumerics(dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=1),
    )
    save_identity(identity, folder / IDENTITY_NAME)
    text, _ = write(folder, b"ab", temperature=0, length=1)
    tokens = torch.cat([torch.tensor([BOS]), torch.from_numpy(byte_tokens(b"ab").astype(np.int64))])
    logits = model(tokens, segments([3]))[-1]
    assert text in (b"ab", b"ab" + bytes([int(logits[4:].argmax())]))


def test_the_command_prints_the_prompt_and_what_follows(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["generate", str(folder), "--prompt", "naïve ", "--bytes", "4", "--show-patches"]) == 0
    out.flush()
    shown = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert shown.replace("|", "").startswith("naïve ")
    assert "|" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--bytes", "-1"], "--bytes"), (["--temperature", "-1"], "--temperature"), (["--top-k", "0"], "--top-k")],
)
def test_bad_options_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["generate", str(folder), *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_folder_without_identity_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert IDENTITY_NAME in error
    assert error.count("\n") == 1
