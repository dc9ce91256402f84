"""The generate command: what goes in by options comes out as text, patches, objects and one summary line."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_folders import entropy_folder, entropy_model_folder, entropy_rule, model_folder
from helpers.rounding import ENTROPY

from shared.errors import ConfigError
from shared.patching import PatchingSettings
from trainer.__main__ import main
from trainer.commands import generate as command
from trainer.commands.generate import unescaped
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose patches are words."""
    return model_folder(tmp_path_factory.mktemp("words") / "model", PatchingSettings(rule="space", max_length=16), None)


@pytest.fixture(scope="module")
def entropy_rule_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose patches begin where an entropy model is uncertain."""
    parent = tmp_path_factory.mktemp("uncertain")
    return model_folder(parent / "model", entropy_rule(), entropy_model_folder(parent / "entropy_model"))


class Stdout(io.TextIOWrapper):
    """Standard output that keeps its bytes, and may say that it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        self.kept = io.BytesIO()
        self.terminal = terminal
        super().__init__(self.kept, encoding="ascii")

    def isatty(self) -> bool:
        return self.terminal


Command = Callable[..., tuple[bytes, str]]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command with options; returns what it wrote to standard output and to standard error."""

    def run(*arguments: str | Path, terminal: bool = False, code: int = 0) -> tuple[bytes, str]:
        out = Stdout(terminal)
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            try:
                ended = main(["generate", *map(str, arguments), "--device", "cpu"])
            except SystemExit as refusal:  # of the parser
                ended = refusal.code
            assert ended == code
            out.flush()
        return out.kept.getvalue(), capsys.readouterr().err

    return run


def test_it_prints_the_prompt_and_what_follows_and_a_summary(folder: Path, generate: Command) -> None:
    out, summary = generate(folder, "--prompt", "two words, naïve", "--bytes", "4", "--show-patches")
    text = out.decode()
    assert text.startswith("|two |words")
    assert text.replace("|", "").startswith("two words, naïve")
    assert text.endswith("\n")
    assert re.fullmatch(r"4 bytes, [\d,.]+ bytes/s.*; ended: length\n", summary)


def test_every_option_of_sampling_reaches_the_generator(folder: Path, generate: Command) -> None:
    options = ("--temperature", "1.5", "--top-k", "90", "--top-p", "0.9", "--min-p", "0.01", "--seed", "7", "--utf8")
    out, _ = generate(folder, "--prompt", "a b", "--bytes", "30", "--stop", "zz", *options)
    sampling = SamplingSettings(temperature=1.5, top_k=90, top_p=0.9, min_p=0.01, seed=7)
    settings = GenerateSettings(length=30, sampling=sampling, stop=(b"zz",), utf8=True)
    text = b"".join(piece.byte for piece in Generator(folder).write(b"a b", settings))
    assert out == text + b"\n"
    other, _ = generate(folder, "--prompt", "a b", "--bytes", "30", *options[:-3], "--seed", "8", "--utf8")
    assert other != out


def test_a_stop_string_ends_the_text_before_it(folder: Path, generate: Command) -> None:
    whole, _ = generate(folder, "--prompt", "x", "--bytes", "40", "--utf8")
    assert len(whole.decode()) > 20
    stop = whole.decode()[11:13]
    escaped = "".join(f"\\x{byte:02x}" for byte in stop.encode())
    cut, summary = generate(folder, "--prompt", "x", "--bytes", "40", "--utf8", "--stop", "never", "--stop", escaped)
    assert cut.decode() == "x" + whole.decode()[1:].partition(stop)[0] + "\n"
    assert summary.endswith("; ended: stop\n")


def test_prompts_and_prompt_files_are_one_batch_and_each_as_if_alone(
    folder: Path, generate: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"not UTF-8: \xff\xfe, then more of it")
    prompts = ["--prompt", "one", "--prompt", "and a second", "--prompt-file", str(tmp_path / "file")]
    out, summary = generate(folder, *prompts, "--bytes", "20", "--temperature", "0")
    alone = [generate(folder, *prompts[n : n + 2], "--bytes", "20", "--temperature", "0")[0] for n in (0, 2, 4)]
    assert out == b"".join(b"== prompt %d of 3\n%b" % (number, text) for number, text in enumerate(alone, 1))
    assert alone[2].startswith("not UTF-8: \ufffd\ufffd, then".encode())
    assert re.search(r"; ended: (\d \w[a-z ]*)(, \d \w[a-z ]*)*\n$", summary)


ODD = b"tw\xff"


@pytest.fixture
def objects(entropy_rule_folder: Path, generate: Command) -> tuple[list[dict[str, Any]], str]:
    """What is written after a prompt of text and one that is no UTF-8, and the summary."""
    options = ("--prompt", "one", "--prompt", os.fsdecode(ODD), "--bytes", "12", "--json")
    out, summary = generate(entropy_rule_folder, *options)
    return [json.loads(line) for line in out.decode().splitlines()], summary


@pytest.mark.numerics
def test_objects_hold_everything_about_each_byte(
    entropy_rule_folder: Path, objects: tuple[list[dict[str, Any]], str]
) -> None:
    generator = Generator(entropy_rule_folder)
    for found, prompt in zip(objects[0], (b"one", ODD), strict=True):
        pieces = list(generator.write(prompt, GenerateSettings(length=12)))
        assert (found["starts"], found["ended"]) == ([piece.starts for piece in pieces], generator.ended[0])
        assert found["entropy"] == pytest.approx([piece.entropy for piece in pieces], abs=ENTROPY)
        text = b"".join(piece.byte for piece in pieces)[len(prompt) :]
        assert bytes.fromhex(found.get("text_hex", found["text"].encode().hex())) == text


def test_an_object_holds_its_prompt_and_the_bytes_of_one_that_is_no_text(
    objects: tuple[list[dict[str, Any]], str],
) -> None:
    assert [found["prompt"] for found in objects[0]] == ["one", ODD.decode("utf-8", "replace")]
    assert "prompt_hex" in objects[0][1]


def test_the_summary_counts_passes_of_the_global_model(objects: tuple[list[dict[str, Any]], str]) -> None:
    assert "global forwards" in objects[1]


def test_patches_are_colours_on_a_terminal_and_marks_where_colour_is_not_wanted(
    folder: Path, generate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    options = (folder, "--prompt", "two words", "--bytes", "0", "--show-patches")
    coloured, _ = generate(*options, terminal=True)
    assert b"\x1b[" in coloured
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", coloured) == b"two words\n"
    assert generate(*options)[0] == b"|two |words\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert generate(*options, terminal=True)[0] == b"|two |words\n"
    assert generate(folder, "--prompt", "bell\a", "--bytes", "0", terminal=True)[0] == "bell␇\n".encode()


def test_drafts_change_the_summary_and_not_the_text(folder: Path, generate: Command) -> None:
    options = (folder, "--prompt", "two words", "--bytes", "40", "--temperature", "0")
    plain, drafted = generate(*options), generate(*options, "--draft", "4")
    assert plain[0] == drafted[0]
    assert "drafted" not in plain[1]
    assert re.search(r"[\d.]+% of \d+ drafted bytes accepted", drafted[1])


def test_an_interrupted_text_ends_its_line_and_leaves_no_colour(
    folder: Path, generate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batch = Generator.write_batch

    def interrupted(*arguments) -> Iterator:
        for number, pair in enumerate(write_batch(*arguments)):
            if number == 12:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(Generator, "write_batch", interrupted)
    out, error = generate(folder, "--prompt", "two words", "--show-patches", "--utf8", terminal=True, code=130)
    assert out.endswith(b"\x1b[0m\n")
    assert error == ""


def test_an_entropy_model_writes_too_and_has_no_patches(tmp_path: Path, generate: Command) -> None:
    out, summary = generate(entropy_folder(tmp_path / "model"), "--prompt", "ab", "--bytes", "5", "--show-patches")
    assert out.startswith(b"ab")
    assert b"|ab" not in out
    assert "patch" not in summary


def test_a_stop_string_is_written_with_escapes() -> None:
    assert unescaped(rb"a\n\t\r\\n\x00\xFf") == b"a\n\t\r\\n\x00\xff"
    assert unescaped("é".encode()) == "é".encode()
    for bad in (rb"\q", rb"\x4", rb"\xzz", b"end\\"):
        with pytest.raises(ConfigError, match="--stop"):
            unescaped(bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bytes", "-1"], "--bytes"),
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--top-k", "0"], "--top-k"),
        (["--top-p", "1.5"], "--top-p"),
        (["--min-p", "-1"], "--min-p"),
        (["--seed", "-1"], "--seed"),
        (["--stop", ""], "--stop"),
        (["--stop", r"\q"], "--stop"),
        (["--draft", "-1"], "--draft"),
        (["--threads", "0"], "--threads"),
        (["--theta", "nan"], "--theta"),
        (["--theta", "2"], "no threshold"),
        (["--prompt-file", "/nowhere/to/be/found"], "/nowhere/to/be/found"),
    ],
)
def test_bad_options_are_one_line(folder: Path, generate: Command, options: list[str], words: str) -> None:
    out, error = generate(folder, *options, code=2)
    assert out == b""
    assert words in error
    assert error.count("\n") == 1


def test_a_folder_without_identity_is_one_line(tmp_path: Path, generate: Command) -> None:
    _, error = generate(tmp_path, code=2)
    assert "is not a model folder" in error
    assert error.count("\n") == 1


def test_a_prompt_file_that_is_missing_is_named(folder: Path, tmp_path: Path, generate: Command) -> None:
    _, error = generate(folder, "--prompt-file", tmp_path / "none", code=2)
    assert f"--prompt-file {tmp_path / 'none'}: No such file" in error


def test_a_prompt_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST_PROMPT_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match="--prompt-file /dev/zero: larger than"):
        command.prompt_in(Path("/dev/zero"))


def test_a_device_that_is_not_there_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["generate", str(folder), "--device", "cuda"]) == 2
    assert "--device" in capsys.readouterr().err
