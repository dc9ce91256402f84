"""Answering chats: special ids in the prompt, patches as stored, the end of the turn, and what the command prints."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from helpers.model_folders import entropy_model_folder, entropy_model_scorer, entropy_rule, model_folder
from helpers.rounding import ENTROPY

from shared.errors import ConfigError
from shared.model_folder.identity import WEIGHTS_FILE
from shared.patching import patch_lengths
from shared.text.chat import END, ROLES, Turn, prompt_tokens
from shared.vocabulary import BOS, EOS, byte_tokens, special_id
from trainer.__main__ import main
from trainer.generation.generator import Generator
from trainer.generation.piece import Piece
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

SPECIALS = (*ROLES, END)
CHAT = [Turn("system", b"Be brief."), Turn("user", "Größe?".encode())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("chat")
    return model_folder(parent / "model", entropy_rule(), entropy_model_folder(parent / "entropy_model"), SPECIALS)


@pytest.fixture(scope="module")
def brief(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, but once it has written a few bytes it ends its turn."""
    parent = tmp_path_factory.mktemp("brief")
    made = model_folder(parent / "model", entropy_rule(), entropy_model_folder(parent / "entropy_model"), SPECIALS)
    weights = safetensors.torch.load_file(made / WEIGHTS_FILE)
    end = special_id(END, SPECIALS)
    weights["decoder.head.weight"][end] = 3 * weights["decoder.head.weight"][4:260].mean(0) + 0.3
    safetensors.torch.save_file(weights, made / WEIGHTS_FILE)
    return made


def answer(
    folder: Path, chats: Sequence[Sequence[Turn]], length: int = 30, **options
) -> tuple[list[list[Piece]], list]:
    generator = Generator(folder)
    sampling = options.pop("sampling", SamplingSettings(temperature=0))
    rows: list[list[Piece]] = [[] for _ in chats]
    for row, piece in generator.write_batch(chats, GenerateSettings(length=length, sampling=sampling, **options)):
        rows[row].append(piece)
    return rows, generator.ended


def test_the_prompt_is_the_template_up_to_the_answer() -> None:
    system, user, assistant, end = range(260, 264)
    wanted = [BOS, system, *byte_tokens(b"Be brief."), end, user, *byte_tokens("Größe?".encode()), end, assistant]
    assert prompt_tokens(CHAT, SPECIALS).tolist() == wanted
    assert prompt_tokens([], SPECIALS).tolist() == [BOS, assistant]


@pytest.mark.numerics
def test_patches_of_a_chat_are_those_that_the_pipeline_stores(folder: Path) -> None:
    """Prompt and answer together, as a document: special ids are scored and end patches as they do offline."""
    (pieces,), _ = answer(folder, [CHAT])
    written = b"".join(piece.byte for piece in pieces if not piece.from_prompt)
    assert len(written) > 5
    tokens = np.concatenate([prompt_tokens(CHAT, SPECIALS), byte_tokens(written), np.array([EOS], np.int16)])
    (entropies,) = entropy_model_scorer().score([tokens])
    stored = np.zeros(len(tokens), bool)
    stored[np.cumsum(patch_lengths(tokens, entropy_rule(), entropies))[:-1]] = True
    assert [piece.starts for piece in pieces] == stored[1:-1].tolist()
    np.testing.assert_allclose([piece.entropy for piece in pieces], entropies[:-1], atol=ENTROPY)
    names = [piece.special for piece in pieces if piece.special]
    assert names == ["system", "end", "user", "end", "assistant"]


def test_an_answer_ends_with_its_turn_and_special_ids_are_never_text(brief: Path, folder: Path) -> None:
    sampling = SamplingSettings(temperature=1.0, seed=3)
    (pieces,), ended = answer(brief, [CHAT], 400, sampling=sampling)
    assert ended == ["end of turn"]
    assert 0 < sum(not piece.from_prompt for piece in pieces) < 400
    assert all(len(piece.byte) == 1 and piece.special is None for piece in pieces if not piece.from_prompt)
    # Going on from a text, the same model never writes a special id.
    generator = Generator(brief)
    text = list(generator.write(b"a", GenerateSettings(length=400, sampling=sampling)))
    assert all(piece.special is None for piece in text)
    assert generator.ended in (["length"], ["end of document"])


CHATS = [CHAT, [Turn("user", b"")], [*CHAT, Turn("assistant", b"12 m"), Turn("user", b"more " * 20)]]
SAMPLED = SamplingSettings(temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def each_alone(brief: Path) -> list[tuple[list[list[Piece]], list]]:
    """The answers to the chats, each written alone and without drafts."""
    return [answer(brief, [chat], 60, sampling=SAMPLED, utf8=True) for chat in CHATS]


@pytest.mark.parametrize("draft", [0, 4])
def test_rows_are_as_if_alone_and_drafts_change_nothing(
    brief: Path, each_alone: list[tuple[list[list[Piece]], list]], draft: int
) -> None:
    together, ended = answer(brief, CHATS, 60, sampling=SAMPLED, draft=draft, utf8=True)
    for ((alone,), (alone_ended,)), row, end in zip(each_alone, together, ended, strict=True):
        assert [(piece.byte, piece.starts) for piece in row] == [(piece.byte, piece.starts) for piece in alone]
        assert end == alone_ended
        b"".join(piece.byte for piece in row if not piece.from_prompt).decode()


SHORT = ("--chat", "--bytes", "20", "--temperature", "0")


def test_the_command_prints_the_answer_alone(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["generate", str(folder), *SHORT, "--system", "Be brief.", "--user", "Größe?"]) == 0
    printed = capsysbinary.readouterr().out
    (pieces,), _ = answer(folder, [CHAT], 20)
    written = b"".join(piece.byte for piece in pieces if not piece.from_prompt)
    assert printed.decode() == written.decode("utf-8", "replace") + "\n"


def test_an_object_names_special_ids_and_their_places(
    folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    messages = [{"role": turn.role, "content": turn.content.decode()} for turn in CHAT]
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    assert main(["generate", str(folder), *SHORT, "--messages", str(tmp_path / "chat.json"), "--json"]) == 0
    found = json.loads(capsysbinary.readouterr().out)
    assert found["prompt"] == "Be brief.Größe?"
    assert [name for _, name in found["specials"]] == ["system", "end", "user", "end", "assistant"]
    assert [place for place, _ in found["specials"]][:3] == [0, 10, 11]


def test_special_ids_are_shown_between_patches(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["generate", str(folder), *SHORT, "--user", "a", "--show-patches"]) == 0
    assert b"<user>|a" in capsysbinary.readouterr().out.replace(b"||", b"|")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--user", "a"), "are for --chat"),
        (("--chat",), "--chat needs what is asked"),
        (("--chat", "--system", "a"), "--chat needs what is asked"),
        (("--chat", "--user", "a", "--prompt", "b"), "--prompt and --prompt-file go on from a text"),
        (("--chat", "--messages", "nowhere.json"), "nowhere.json: No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    folder: Path, options: tuple[str, ...], words: str, capsys
) -> None:
    assert main(["generate", str(folder), *options]) != 0
    assert words in capsys.readouterr().err


def test_a_model_without_special_ids_says_so(tmp_path: Path) -> None:
    plain = model_folder(tmp_path / "model", entropy_rule(), entropy_model_folder(tmp_path / "entropy_model"))
    with pytest.raises(ConfigError, match="has no special id 'assistant', only those of every model"):
        answer(plain, [CHAT])
