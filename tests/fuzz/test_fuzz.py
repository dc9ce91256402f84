"""Spoiled artefacts of every boundary are refused in a line or read, in little memory and time, and harm nothing."""

import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fuzz_paths  # noqa: F401 (first: the others need it)
import pytest
from boundaries import BOUNDARIES, Boundary
from fuzz import Fuzzer, main
from fuzz_common import Action
from sandbox import run_case

ROOT = Path(__file__).resolve().parents[2]
QUICK_CASES = 2
"""Of each boundary; `make test-all` runs 20,000 in all."""


@pytest.fixture(scope="module", params=BOUNDARIES, ids=lambda boundary: boundary.name.replace(" ", "-"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fuzzer, Boundary]:
    return Fuzzer([request.param], tmp_path_factory.mktemp("fuzz")), request.param


@pytest.fixture(scope="module")
def done() -> set[tuple[bytes, Action]]:
    """Artefacts, of which several boundaries have the same, and what has read them."""
    return set()


@pytest.mark.drill
def test_the_valid_artefact_is_read_by_every_action(
    made: tuple[Fuzzer, Boundary], done: set[tuple[bytes, Action]]
) -> None:
    fuzzer, boundary = made
    for name, problem, words in fuzzer.valid(boundary, done):
        assert problem is None, f"{boundary.name}, {name}: {problem}\n{words}"


@pytest.mark.drill
def test_spoiled_artefacts_harm_nothing(made: tuple[Fuzzer, Boundary]) -> None:
    fuzzer, boundary = made
    for number in range(QUICK_CASES):
        failure = fuzzer.case(boundary, 0, number)
        assert failure is None, f"{failure}\n{failure.words}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_spoiled_artefacts_harm_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--cases", "20000", "--seed", "7"])
    assert main() == 0


READS = re.compile(
    r"json\.loads?\(|read_json\(|parse_json\(|read_bounded\(|tomllib\.|ipc\.(open|read|Message)|ParquetFile|safe_open"
    r"|torch\.load|tarfile|model_validate_json|zstandard\.Zstd|gzip\.|lzma\.|bz2\."
)
"""What reads bytes that others may have written."""
OF_OUR_OWN = {
    "pipeline/run/summary.py": "the columns of a record, as the reader of its format has just written them",
    "shared/io/stores/lease.py": "what the drivers of one run say of themselves in its lease",
    "shared/io/stores/store.py": "the bounded reader itself; each file of a run is validated where it is read",
    "trainer/checkpoints/mirror.py": "identities and states with the schemas of the checkpoint boundary",
    "shared/settings.py": "the format version of a file whose content a bounded reader has given",
    "shared/io/files/json_reader.py": "the bounded reader itself; every boundary of JSON passes through it",
    "trainer/data/packing/packs.py": "what a loader worker of the same run sends with a pack",
    "trainer/evaluation/baselines/compressors.py": "compresses texts that were read; opens nothing",
    "trainer/commands/serve.py": "keys of whoever runs the server: bounded, and compared as bytes",
    "trainer/distributed/straggler_monitor.py": "messages between the ranks of one run",
}
"""Modules with such words that read nothing from outside, and why."""


def test_every_module_that_reads_foreign_data_belongs_to_a_boundary_with_a_generator() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for package in ("shared", "pipeline", "trainer")
        for path in (ROOT / package).rglob("*.py")
        if READS.search(path.read_text())
    }
    known = {module for boundary in BOUNDARIES for module in boundary.modules}
    assert sorted(readers - known - OF_OUR_OWN.keys()) == []
    assert sorted(module for module in known if not (ROOT / module).exists()) == []


def _unpickle(folder: Path) -> None:
    pickle.loads(b"cos\ngetpid\n(tR.")


def _memory(folder: Path) -> None:
    bytearray(1 << 30)


def _spin(folder: Path) -> None:
    while True:
        pass


def _swallowed(folder: Path) -> None:
    with suppress(BaseException):
        open("/etc/passwd").close()


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "x").write_text("inside") and None, None),
        (lambda folder: 1 / 0, "ZeroDivisionError escapes"),
        (lambda folder: open("/etc/passwd").close(), "opens '/etc/passwd'"),
        (lambda folder: (folder.parent / "up").write_text("outside"), "opens"),
        (lambda folder: (folder / "link").write_text("outside"), "opens"),
        (lambda folder: os.rename(folder / "x", folder.parent / "y"), "os.rename"),
        (lambda folder: subprocess.run(["true"]), "subprocess.Popen"),
        (lambda folder: os.system("true"), "os.system"),
        (_swallowed, "opens"),
        (_unpickle, "unpickles"),
        (_memory, "MemoryError"),
        (lambda folder: print("\x1b[31mred", file=sys.stderr), "control character"),
        (lambda folder: print("a\u202eb"), "control character"),
        (lambda folder: print("Traceback (most recent call last)", file=sys.stderr), "prints a traceback"),
    ],
)
def test_the_sandbox_sees_what_must_not_happen(
    action: Callable[[Path], object], problem: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    outcome = run_case(folder, [action], ())
    if problem is None:
        assert outcome.problem is None, outcome
    else:
        assert outcome.problem is not None
        assert problem in outcome.problem
    assert not (tmp_path / "up").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_case_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sandbox.CPU_SECONDS", 1)
    outcome = run_case(tmp_path, [_spin], ())
    assert outcome.problem == "killed: needs more than 1 s of processor time"
    monkeypatch.setattr("sandbox.ELAPSED_SECONDS", 0.2)
    outcome = run_case(tmp_path, [lambda folder: time.sleep(60)], ())
    assert outcome.problem == "hangs: not done after 0.2 s"
