"""What both programs print: nothing in it steers a terminal, and an output that is closed or full ends a command."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.__main__ import main as pipeline
from shared.errors import ExitCode
from shared.io.display.progress import Progress
from shared.io.display.terminal import imports, one_line, run_program, safe, safe_output, show_lines, unfiltered
from trainer.__main__ import main as trainer

HOSTILE = "a\x1b]0;x\x07\x1b[31m\x9b5m\x7f\u202eb\u2066\u200b\ufeff\u2028\r\nPATCHWORK: c\udc80\U000e0041"
UNSAFE = set(HOSTILE) - set("abcxPATCHWORK: ];0[315m\n")


def test_unsafe_characters_become_escapes_and_others_stay() -> None:
    assert safe("\x1b[1m\u202e\x85\r") == r"\x1b[1m\u202e\u0085\r"
    assert safe("tab\there\nä語🎉é") == "tab\there\nä語🎉é"
    assert not UNSAFE & set(safe(HOSTILE))
    assert one_line("a\nb\tc") == r"a\nb\tc"
    assert one_line(ValueError("a\n\x1bb")) == r"a\n\x1bb"


def test_both_programs_print_no_control_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / HOSTILE.replace("\udc80", ""))
    assert pipeline(["verify", path]) != 0
    assert pipeline(["inspect", path]) != 0
    assert pipeline(["status", path]) != 0
    assert trainer(["evaluate", path, path]) != 0
    with pytest.raises(SystemExit):
        pipeline(["preprocess", f"--{HOSTILE}"])
    with pytest.raises(SystemExit):
        trainer(["evaluate", f"--{HOSTILE}"])
    for text in capsys.readouterr():
        assert not UNSAFE & set(text)
        assert "\nPATCHWORK" not in text


def test_printed_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with safe_output():
        show_lines("one", HOSTILE)
        print(HOSTILE, file=sys.stderr)
        print("\x1b[K", end="", file=unfiltered(sys.stdout))
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert out.endswith("\x1b[K")
    assert not UNSAFE & (set(out.removesuffix("\x1b[K")) | set(err))


def test_a_stream_that_a_library_has_kept_is_silent_when_the_program_has_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """colorama, which Ray brings, writes an escape sequence when the interpreter ends."""
    with safe_output():
        kept = sys.stdout
        with safe_output():
            print("inner")
        print("outer")
    print("\x1b[0m", file=kept)
    assert capsys.readouterr().out == "inner\nouter\n"


def test_a_progress_line_steers_the_terminal_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    line = Progress(False, 0.0)
    line.show(1.0, HOSTILE[:40])
    line.log(HOSTILE)
    assert stream.getvalue().count("\x1b") == 1
    assert stream.getvalue().count("\r") == 1
    assert "\u202e" not in stream.getvalue()


def with_stdout(descriptor: int, main: str) -> subprocess.CompletedProcess[str]:
    code = f"from shared.io.display.terminal import *\ndef main():\n {main}\nend_program(lambda: run_program(main, c))"
    code = code.replace("\ndef", "\ndef c(e):\n import sys; print('error:', e, file=sys.stderr)\n return 1\ndef", 1)
    return subprocess.run([sys.executable, "-c", code], stdout=descriptor, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("main", ["print('x'); return 0", "print('x' * 100_000); return 0", "print('x', flush=True)"])
def test_a_reader_that_is_gone_ends_a_command_quietly(main: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = with_stdout(writing, main)
    os.close(writing)
    assert (found.returncode, found.stderr) == (ExitCode.BROKEN_PIPE, "")


def test_a_full_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        found = with_stdout(full.fileno(), "print('x'); return 0")
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "standard output" in found.stderr


def test_a_program_without_output_works_and_leaves_the_numbers_alone() -> None:
    code = (
        "import sys; from shared.io.display.terminal import *\n"
        "def main():\n print('x'); file = open('/dev/zero'); print('y', file=sys.stderr)\n"
        " return int(file.fileno() in (1, 2))\n"
        "end_program(lambda: run_program(main, None))"
    )
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(closed).returncode == 0


def test_news_that_nobody_reads_end_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from shared.io.display.terminal import *\n"
    code += "def main():\n print('x', file=sys.stderr); print('y'); return 0\n"
    code += "end_program(lambda: run_program(main, None))"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    assert (found.returncode, found.stdout) == (0, "y\n")


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise MemoryError

    said: list[str] = []
    assert run_program(main, lambda error: said.append(str(error)) or 1) == 1
    assert said == ["out of memory"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_modules_are_imported(number: int) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, _: came.append(number))
    try:
        with imports():
            signal.pthread_kill(threading.get_ident(), number)
            assert came == []
        assert came == [number]
    finally:
        signal.signal(number, before)
