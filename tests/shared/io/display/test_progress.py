"""The progress line: what it keeps when there is little room, and how it is sampled."""

import io
import sys
import time

import pytest

from shared.io.display.progress import ByteProgress, Progress, fitted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_narrow_terminal_loses_the_least_important_first() -> None:
    pieces = ["step 10", "2.345 bits/byte", "12.0 kB/s", "31% MFU"]
    assert (
        fitted(" 50.0%", pieces, "0:10 left", None) == " 50.0%  step 10  2.345 bits/byte  12.0 kB/s  31% MFU  0:10 left"
    )
    assert fitted(" 50.0%", pieces, "0:10 left", 45) == " 50.0%  step 10  2.345 bits/byte  0:10 left"
    assert fitted(" 50.0%", pieces, "0:10 left", 12) == " 50.0%  0:10"


def test_a_terminal_is_redrawn_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stream)
        line = Progress(False, 0.001)
        line.show(1.0, "step 1", "x" * 80)
        line.show(1.0, "step 2")
        line.log("saved")
    assert terminal.getvalue() == (
        "\r100.0%  step 1  0:00 elapsed, 0:00 remaining\x1b[K"
        "\r100.0%  step 2  0:00 elapsed, 0:00 remaining\x1b[K\nsaved\n"
    )
    assert file.getvalue().splitlines()[1:] == ["100.0%  step 2  0:00 elapsed, 0:00 remaining", "saved"]


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    line = Progress(True, 0.001)
    line.show(1.0, "step 1")
    line.log("saved")
    assert capsys.readouterr().err == ""


def test_bytes_are_shown_with_their_rate_and_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(time, "monotonic", iter([0.0, 0.0, 0.1, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]).__next__)
    with ByteProgress("Reading", 4000, done=1000) as line:
        line.update(1000)
    shown = terminal.getvalue()
    assert "Reading  2.0 kB of 4.0 kB" in shown
    assert shown.endswith("\r\x1b[K")


def test_work_that_is_soon_done_leaves_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with ByteProgress("Reading", 4000) as line:
        line.update(4000)
    assert capsys.readouterr().err == ""
