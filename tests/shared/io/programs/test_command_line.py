"""What one sees who asks a command line what it can do, and who writes something that it does not know."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pipeline.__main__ as pipeline
import trainer.__main__ as trainer
import trainer.main as train
from shared import __version__
from shared.errors import ExitCode, PatchworkError
from shared.io.programs.command_line import Parser, command_parser, complain

PROGRAMS = {"pipeline": pipeline, "trainer": trainer}
ALL = [(program, name) for program, module in PROGRAMS.items() for name in module.COMMANDS]
ROOT = Path(__file__).parents[4]


def parser_of(program: str, name: str) -> Parser:
    return command_parser(program, name, PROGRAMS[program].COMMANDS[name])[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_commands(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS[program].main(["--help"]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert all(command in shown for command in PROGRAMS[program].COMMANDS)


@pytest.mark.parametrize(("program", "name"), ALL)
def test_every_option_has_help(program: str, name: str) -> None:
    without = [action.dest for action in parser_of(program, name)._actions if not action.help]
    assert without == []


@pytest.mark.parametrize(("program", "name"), ALL)
def test_the_help_of_numbers_says_what_they_are_when_not_given(program: str, name: str) -> None:
    parser = parser_of(program, name)
    shown = " ".join(parser.format_help().split())
    for action in parser._actions:
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert f"default: {action.default}" in shown or "default" in str(action.help), action.dest


@pytest.mark.parametrize(("program", "name"), ALL)
def test_the_examples_of_a_command_have_options_that_it_knows(program: str, name: str) -> None:
    parser, module = command_parser(program, name, "")
    example = f"  {parser.prog} "
    lines = [line for line in str(module.__doc__).splitlines() if line.startswith(example)]
    assert lines
    for line in lines:
        words = shlex.split(line.removeprefix(example))
        parser.check_options(words)
        parser.parse_args(words)


def error_of(program: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line about what is wrong."""
    try:
        code = PROGRAMS[program].main(words)
    except SystemExit as end:
        code = end.code
    assert code == ExitCode.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchwork: error: ")
    return line


@pytest.mark.parametrize(
    ("program", "words", "meant"),
    [
        ("pipeline", ["preproces"], "preprocess"),
        ("trainer", ["evalute"], "evaluate"),
        ("trainer", ["export_hf"], "export-hf"),
        ("pipeline", ["preprocess", "x", "--otu", "y"], "--out"),
        ("pipeline", ["inspect", "x", "--document=3"], "--documents"),
        ("trainer", ["generate", "model", "--temprature", "1"], "--temperature"),
        ("pipeline", ["preprocess", "x", "--out", "y", "--rule", "entrpy"], "entropy"),
    ],
)
def test_the_nearest_known_name_is_suggested(
    program: str, words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {meant!r}?" in error_of(program, words, capsys)


@pytest.mark.parametrize("words", [[], ["zzzzzz"], ["status", "x", "--zzzzzz"], ["status", "x", "-z"], ["status"]])
def test_what_is_near_nothing_is_refused_without_a_suggestion(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean" not in error_of("pipeline", words, capsys)


def test_what_is_near_no_choice_gets_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "choose from none, byte, static" in error_of("pipeline", ["preprocess", "--rule", "zzzzzz"], capsys)


@pytest.mark.parametrize("program", [pipeline, trainer, train])
def test_programs_say_their_version(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out == f"patchwork {__version__}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_error_of_the_user_ends_both_programs_with_the_same_code(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"pipeline": ["recut", str(tmp_path), "--out", "x"], "trainer": ["generate", str(tmp_path)]}[program]
    assert str(tmp_path) in error_of(program, words, capsys)


@pytest.mark.parametrize(("error", "code"), [(PatchworkError("x"), 2), (OSError("x"), 1), (MemoryError("x"), 1)])
def test_the_code_follows_from_the_class_of_the_error(error: Exception, code: int) -> None:
    assert complain(error) == code


def test_help_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pipeline", "status", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == ExitCode.FAILED
    assert "standard output" in done.stderr


def test_options_inside_an_option_need_whole_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "x", "--out", "y", "--corpus-options", "--include '*.py"]
    assert "--corpus-options" in error_of("trainer", words, capsys)


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(SystemExit):
        parser_of("pipeline", "status").check_options(["--verb"])


def test_values_that_look_like_options_and_what_follows_two_dashes_are_no_unknown_options() -> None:
    parser = argparse.Namespace(parser=Parser("x", "", "")).parser
    parser.add_argument("--more")
    parser.check_options(["--more=--include", "--more", "--include '*.py'", "--", "--file"])


def levels_shown(*options: str, **environment: str) -> str:
    """What is said at each level."""
    code = (
        "import sys; from shared.io.display.log import LOG, set_level\n"
        "set_level('--verbose' in sys.argv, '--quiet' in sys.argv)\n"
        "[getattr(LOG, name)('a %s', name) for name in ('debug', 'info', 'warning', 'error')]"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | environment
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout == ""
    return done.stderr


ERROR = "patchwork: error: a error\n"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], "a info\npatchwork: a warning\n" + ERROR),
        (["--quiet"], "patchwork: a warning\n" + ERROR),
        (["--verbose"], "patchwork: debug: a debug\na info\npatchwork: a warning\n" + ERROR),
    ],
)
def test_levels_choose_what_is_said(options: list[str], shown: str) -> None:
    assert levels_shown(*options) == shown


@pytest.mark.parametrize(("level", "options"), [("LOUD", []), ("DEBUG", ["--quiet", "--verbose"])])
def test_a_level_that_there_is_not_is_refused(
    level: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATCHWORK_LOG_LEVEL", level)
    named = options or ["PATCHWORK_LOG_LEVEL", level]
    line = error_of("pipeline", ["status", "x", *options], capsys)
    assert all(word in line for word in named)


def test_lines_of_one_of_several_ranks_say_which() -> None:
    shown = levels_shown("--verbose", RANK="3", WORLD_SIZE="4")
    assert shown == "patchwork: debug: rank 3: a debug\na info\npatchwork: rank 3: a warning\n" + ERROR


def test_processes_that_are_started_say_as_much() -> None:
    assert "a debug" in levels_shown(PATCHWORK_LOG_LEVEL="DEBUG")


URL = "s3://me:hush-hush@bucket/run"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["inspect", URL], "DATASET"),
        (["preprocess", "a", "--out", "b", "--entropy-model", URL], "--entropy-model"),
    ],
)
def test_a_url_where_a_path_is_asked_for_is_no_folder_of_this_machine(
    caplog: pytest.LogCaptureFixture, words: list[str], what: str
) -> None:
    with pytest.raises(SystemExit, match=str(ExitCode.REFUSED.value)):
        pipeline.main(words)
    assert f"argument {what}: s3://...@bucket/run is a URL" in caplog.text
