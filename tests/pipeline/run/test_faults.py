"""What goes wrong around a run: full disks, orders to stop, memory that is not there, a second driver, damaged notes.

In every case the run says what is wrong, and the same command ends with the bytes of an undisturbed run later.
"""

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pipeline_helpers import (
    STATIC,
    counts,
    environment,
    preprocess,
    shard_hashes,
    some_records,
    stored,
    write_jsonl,
)

from pipeline.__main__ import main
from pipeline.records import Place, Record, Records
from pipeline.run.driver import make_plan
from pipeline.run.progress import load_progress
from pipeline.run.run_folder import copy_entropy_model, remove_half_written
from pipeline.settings import Job, OutputSettings, PipelineError, ReadSettings
from pipeline.splits.pipelining import ahead
from pipeline.splits.process import READ_AHEAD, _held, _Shards, process_split
from pipeline.splits.selection import select, survey_split
from shared.io.files.atomic import atomic_file
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import WEIGHTS_FILE, model_sha256
from shared.model_settings import EntropyModelSettings
from shared.patching import PatchingSettings
from shared.shards.open import open_dataset
from shared.shards.writer import ShardWriter

pytestmark = pytest.mark.drill

LARGE = 3
"""The split of the corpus whose shard is many times as large as any other file of the run."""
NAME = f"{LARGE:07d}-00000"
OPTIONS = (*STATIC[:6], "--split-bytes", 5000, "--validation-fraction", 0)


def make_corpus(folder: Path) -> Path:
    """Six files of a split each."""
    folder.mkdir()
    for number in range(6):
        if number == LARGE:
            (folder / f"{number}.txt").write_text(np.random.default_rng(0).bytes(1_000_000).hex())
        else:
            write_jsonl(folder / f"{number}.jsonl", some_records(12))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "in")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run leaves: of the same files elsewhere, which no byte of it tells."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert preprocess(make_corpus(folder / "in"), "--out", folder / "quiet", *OPTIONS, "--workers", 1) == 0
    return shard_hashes(folder / "quiet")


def left_over(out: Path) -> list[Path]:
    return list(out.rglob("*.tmp"))


def disturbed(arguments: list[object], disturbance: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """A command in a process that ``disturbance`` has prepared."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=600, preexec_fn=disturbance)


@contextmanager
def driver(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on beside the test."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_markers(out: Path, count: int) -> None:
    deadline = time.monotonic() + 600
    while len(list(out.glob("splits/*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- disks


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_a_full_disk_fails_its_split_by_name_and_the_same_command_finishes(corpus, quiet, tmp_path, workers):
    out = tmp_path / "out"
    arguments = ["preprocess", corpus, "--out", out, *OPTIONS, "--workers", workers]
    # A file may not grow beyond what every file but the large shard needs.
    limited = disturbed(arguments, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    assert limited.returncode == 1, limited
    shard = out / "train" / f"shard-{NAME}.arrow"
    assert f"failed: split {NAME} ({LARGE}.txt): [Errno 27] File too large: '{shard}'" in limited.stdout
    assert limited.stdout.count("failed: split") == 1
    assert limited.stderr == ""
    assert not left_over(out)
    assert not (out / "train" / "manifest.json").exists()
    assert preprocess(*arguments[1:]) == 0
    assert shard_hashes(out) == quiet


def test_news_that_cannot_be_written_do_not_hide_why_a_split_failed(corpus, quiet, tmp_path, monkeypatch, capsys):
    from pipeline.splits import worker

    out = tmp_path / "out"
    assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0
    real = worker.process_split

    def full(job, split, *rest):
        if split.number == LARGE:
            raise OSError(28, "No space left on device", "shard")
        return real(job, split, *rest)

    for name in ("progress.json", "report.json", "failures"):
        (out / name).unlink(missing_ok=True)
    (out / "progress.json").mkdir()  # neither this ...
    (out / "report.json").mkdir()
    (out / "failures").write_text("")  # ... nor anything below this can be written
    for shard in (out / "train").glob("shard-*.arrow"):
        shard.unlink()
    monkeypatch.setattr(worker, "process_split", full)
    assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 1
    said = capsys.readouterr()
    assert f"failed: split {NAME} ({LARGE}.txt): [Errno 28] No space left on device" in said.out
    assert "there is no new report: " in said.err
    assert "report.json" in said.err
    monkeypatch.undo()
    assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0
    assert shard_hashes(out) == quiet


def test_a_disk_without_room_for_the_plan_is_one_line(corpus, tmp_path):
    out = tmp_path / "out"
    arguments = ["preprocess", corpus, "--out", out, *OPTIONS, "--workers", 1]
    limited = disturbed(arguments, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)))
    assert limited.returncode == 1
    assert re.fullmatch(rf"patchwork: error: \[Errno 27\] File too large: '{out}/files-\w+\.arrow'\n", limited.stderr)


def test_a_file_that_fails_names_itself_and_an_error_of_another_file_keeps_its_name(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_too_much(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        try:
            with atomic_file(tmp_path / "a.json") as outer, atomic_file(tmp_path / "b.json"):
                outer.write(bytes(size))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    for size in (10, 10**6):  # kept until the end, and written at once
        with pytest.raises(OSError, match=r"File too large: '.*/a\.json'"):
            write_too_much(size)
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_file(tmp_path / "a.json"):
        (tmp_path / "nowhere").read_text()
    (tmp_path / "b.json").unlink()  # it was whole
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_a_split_is_surveyed_is_told_like_any_other(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"{number}"} for number in range(4000)])
    out = tmp_path / "out"
    arguments = ["preprocess", path, "--out", out, *STATIC, "--dedup"]
    limited = disturbed(arguments, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    assert limited.returncode == 1, limited
    survey = out / "selection" / "0000000.survey.npy"
    assert f"failed: split 0000000-00000 (a.jsonl): [Errno 27] File too large: '{survey}'" in limited.stdout
    assert not left_over(out)


# ---- orders to stop, and drivers


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_a_terminated_run_says_so_and_the_same_command_finishes(corpus, quiet, tmp_path, workers):
    out = tmp_path / "out"
    arguments = ["preprocess", corpus, "--out", out, *OPTIONS, "--workers", workers]
    with driver(*arguments) as process:
        wait_for_markers(out, 1)
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate(timeout=600)
    assert process.returncode == 130, (said, complained)
    assert complained == "patchwork: stopped; rerun the same command to resume\n"
    assert not (out / "train" / "manifest.json").exists()
    assert preprocess(*arguments[1:]) == 0
    assert shard_hashes(out) == quiet
    assert not left_over(out)


def test_an_order_to_stop_while_a_command_is_loaded_is_no_traceback(monkeypatch, capsys):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.io.programs.command_line.import_module", interrupted)
    assert main(["status", "nowhere"]) == 130
    assert capsys.readouterr().err == "patchwork: stopped; rerun the same command to resume\n"


TURNED = """
try: signal.raise_signal(number)
except BaseException as error: raise RuntimeError("in a library") from error
"""


IN_EXEC = "signal.raise_signal(number)"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, IN_EXEC), (signal.SIGINT, TURNED), (signal.SIGTERM, TURNED), (signal.SIGHUP, IN_EXEC)],
    ids=["SIGINT in an exec", "SIGINT turned into an error", "SIGTERM turned into an error", "SIGHUP in an exec"],
)
def test_whatever_becomes_of_the_interrupt_a_signal_ends_a_command_with_its_line_and_code(tmp_path, number, code):
    (tmp_path / "interrupted.py").write_text(f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from shared.io.programs import command_line
from pipeline import __main__ as program
command_line.heed_signals()
command_line._chosen = lambda *arguments: exec({code!r}, {{"signal": signal, "number": {int(number)}}})
program.end_program(program.main)
""")
    line = [sys.executable, "-m", "interrupted"]  # not as a file: Python leaves in other ways then
    where = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=where, timeout=600)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "patchwork: stopped; rerun the same command to resume\n"


def test_an_order_to_stop_while_the_input_is_looked_at_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", some_records(3))
    for step in (
        "pipeline.inputs.listing.Files.of",
        "pipeline.plan._grouped",
        "pipeline.run.driver.run_identity",
    ):
        with monkeypatch.context() as changed:
            changed.setattr(step, interrupted)
            assert preprocess(tmp_path / "in", "--out", tmp_path / "new" / "out", "--rule", "none") == 130
        assert capsys.readouterr().err.endswith("patchwork: stopped; rerun the same command to resume\n")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_second_driver_is_refused_while_the_first_lives_and_not_when_it_is_killed(corpus, quiet, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["preprocess", corpus, "--out", out, *OPTIONS, "--workers", 2]
    with driver(*arguments) as first:
        wait_for_markers(out, 1)
        first.send_signal(signal.SIGSTOP)  # it hangs; its workers do what they have been given
        assert preprocess(*arguments[1:]) == 2
        said = capsys.readouterr().err
        assert f"patchwork: error: {out} is in use by another run (process {first.pid} on " in said
        first.kill()
        first.wait()
        assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0
    assert shard_hashes(out) == quiet
    assert not left_over(out)


def test_a_driver_that_was_killed_while_it_wrote_its_plan_is_no_other_run(corpus, quiet, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("7\n")
    (out / "run.json.0a1b2c3d.tmp").write_text('{"identity"')
    assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0
    assert shard_hashes(out) == quiet
    assert not left_over(out)


@pytest.mark.drill
def test_nothing_half_written_stays_whichever_file_a_killed_driver_was_writing(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", [*some_records(12), {"text": ""}])
    options = (corpus, "--rule", "space", "--dedup", "--workers", 1, "--executor", "inline")
    assert preprocess(*options, "--out", tmp_path / "quiet") == 0
    quiet = shard_hashes(tmp_path / "quiet")
    for number in itertools.count():
        out = tmp_path / f"out{number}"
        killed = killed_at_file(number, *options, "--out", out)
        assert bool(left_over(out)) is killed
        assert preprocess(*options, "--out", out) == 0
        assert not left_over(out)
        assert shard_hashes(out) == quiet
        if not killed:
            break
    assert number > 15


def killed_at_file(number: int, *arguments: object) -> bool:
    """Whether a driver in a process of its own was killed when the file ``number`` was to get its name."""
    if not (process := os.fork()):
        finished, replace = itertools.count(), os.replace

        def last(source: Path, target: Path) -> None:
            if next(finished) == number:
                os._exit(9)
            replace(source, target)

        os.replace = last
        os._exit(preprocess(*arguments))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def test_a_damaged_copy_of_the_patcher_is_replaced(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    settings = EntropyModelSettings(width=32, layers=1, heads=2, window=64, feed_forward=64)
    save_model(build_model(settings), settings, model)
    sha256 = model_sha256(model)
    copy_entropy_model(model, sha256, out)
    weights = out / "train" / "entropy_model" / WEIGHTS_FILE
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    copy_entropy_model(model, sha256, out)
    assert weights.read_bytes() == (model / WEIGHTS_FILE).read_bytes()
    assert sorted(path.name for path in (out / "train").iterdir()) == ["entropy_model"]


def test_a_worker_of_an_earlier_driver_that_still_writes_changes_nothing(corpus, quiet, tmp_path, monkeypatch):
    out = tmp_path / "out"
    reading = ReadSettings(split_bytes=5000, validation_fraction=0)
    output = OutputSettings(patching=PatchingSettings(rule="static", stride=5))
    job, plan = Job(out=out, reading=reading, output=output), make_plan([corpus], reading)
    seen, add = [], _Shards.add

    def a_whole_run_goes_by(*arguments) -> None:
        add(*arguments)
        if not seen:
            seen.append(len(left_over(out)))
            assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0

    # The folder is that of the run from the start: the late worker began under its first driver.
    assert preprocess(corpus, "--out", tmp_path / "first", *OPTIONS, "--workers", 1) == 0
    out.mkdir()
    for kept in (tmp_path / "first" / "run.json", *(tmp_path / "first").glob("files-*")):
        (out / kept.name).write_bytes(kept.read_bytes())
    monkeypatch.setattr(_Shards, "add", a_whole_run_goes_by)
    with pytest.raises(FileNotFoundError):
        process_split(job, plan.splits[LARGE], "")
    assert seen[0] > 0
    assert shard_hashes(out) == quiet
    assert not left_over(out)


# ---- memory


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_a_worker_without_memory_fails_its_split_and_the_rest_is_done(corpus, quiet, tmp_path, workers):
    folder, out = tmp_path / "patched", tmp_path / "out"
    folder.mkdir()
    # Read by every process as it starts: while it does the large split it gets next to no memory.
    (folder / "sitecustomize.py").write_text(
        "import resource, sys\n"
        "if 'pipeline' in sys.orig_argv or 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    from pipeline.splits import worker\n"
        "    real = worker.process_split\n"
        "    def starved(job, split, *rest):\n"
        f"        if split.number != {LARGE}: return real(job, split, *rest)\n"
        "        had = resource.getrlimit(resource.RLIMIT_AS)\n"
        "        pages = int(open('/proc/self/statm').read().split()[0])\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**16, had[1]))\n"
        "        held = []\n"
        "        try:\n"
        "            while True: held.append(bytearray(2**16))\n"
        "        except MemoryError: pass\n"
        "        try: return real(job, split, *rest)\n"
        "        finally: held.clear(); resource.setrlimit(resource.RLIMIT_AS, had)\n"
        "    worker.process_split = starved\n"
    )
    arguments = ["preprocess", corpus, "--out", out, *OPTIONS, "--workers", workers]
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    starved = subprocess.run(
        line, capture_output=True, text=True, env=environment() | {"PYTHONPATH": path}, timeout=600
    )
    assert starved.returncode == 1, starved
    assert f"failed: split {NAME} ({LARGE}.txt): " in starved.stdout
    assert "Memory" in (out / "failures" / f"{NAME}.txt").read_text()
    assert len(list((out / "splits").glob("*.json"))) == 5
    assert not left_over(out)
    assert preprocess(*arguments[1:]) == 0
    assert shard_hashes(out) == quiet


def test_a_shard_that_is_closed_is_let_go(tmp_path, monkeypatch):
    from pipeline.splits import process as split

    writers: list[weakref.ref] = []
    alive: list[int] = []

    class Watched(ShardWriter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            writers.append(weakref.ref(self))
            alive.append(sum(writer() is not None for writer in writers))

    monkeypatch.setattr(split, "ShardWriter", Watched)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"{number}" * 50} for number in range(100, 120)])
    reading = ReadSettings(validation_fraction=0)
    job = Job(out=tmp_path / "out", reading=reading, output=OutputSettings(patching=PatchingSettings(rule="none")))
    (whole,) = make_plan([path], reading).splits
    assert len(process_split(job, whole, "", shard_bytes=1).shards["train"]) == 20
    assert max(alive) <= 2


def test_what_waits_is_bounded_for_texts_of_one_byte_too():
    made = 0

    def source() -> Iterator[Records]:
        nonlocal made
        while True:
            made += 1
            yield Records.of([Record(Place("a.jsonl", line=made), f"a.jsonl:{made}", "default", b"x")])

    records = ahead(source(), _held, READ_AHEAD)
    next(records)
    before = -1
    while made != before:
        before = made
        time.sleep(0.2)
    records.close()
    assert made < 20_000


# ---- what a run keeps for itself


def surveyed(tmp_path: Path, lines: int = 40) -> tuple[Job, Path]:
    """A run that is about to select: every text twice."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {number % (lines // 2)}"} for number in range(lines)])
    reading = ReadSettings(dedup=True, validation_fraction=0)
    job = Job(out=tmp_path / "out", reading=reading, output=OutputSettings(patching=PatchingSettings(rule="none")))
    survey_split(job, make_plan([path], reading).splits[0], lambda _: None)
    return job, path


def test_what_a_selection_decides_is_on_the_disk_before_it_is_said_to_be_done(tmp_path, monkeypatch):
    job, _ = surveyed(tmp_path)
    real, safe = os.fsync, {}

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            safe[path.name.partition(".npy")[0]] = path.read_bytes()

    monkeypatch.setattr(os, "fsync", fsync)
    select(job.out, 1, job.reading)
    assert safe["0000000.statuses"] == (job.out / "selection" / "0000000.statuses.npy").read_bytes()
    assert np.load(job.out / "selection" / "0000000.statuses.npy")["status"].sum() == 2 * 20


@pytest.mark.parametrize("now", [39, 41])
def test_an_input_with_other_texts_than_were_surveyed_is_an_error(tmp_path, now):
    job, path = surveyed(tmp_path)
    select(job.out, 1, job.reading)
    write_jsonl(path, [{"text": f"text {number % 20}"} for number in range(now)])
    with pytest.raises(PipelineError, match=f"split 0000000-00000 has {'more' if now > 40 else 'fewer'} texts"):
        process_split(job, make_plan([path], job.reading).splits[0], "")
    remove_half_written(job.out)
    assert not list((job.out / "train").glob("*"))


DEDUPLICATED = (*OPTIONS, "--workers", 1, "--dedup")


@pytest.fixture(scope="module")
def deduplicated(tmp_path_factory) -> dict[str, str]:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("deduplicated")
    assert preprocess(make_corpus(folder / "in"), "--out", folder / "out", *DEDUPLICATED) == 0
    return shard_hashes(folder / "out")


@pytest.mark.parametrize("name", ["survey", "statuses"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_selection_is_named_with_what_repairs_it(corpus, deduplicated, tmp_path, capsys, name, damage):
    out, options = tmp_path / "out", DEDUPLICATED
    from pipeline.run import driver as driving

    real = driving.select

    def damaged(folder: Path, *rest: object) -> None:
        path = folder / "selection" / f"0000001.{name}.npy"
        if name == "statuses":
            real(folder, *rest)
        content = path.read_bytes()
        path.unlink()
        if damage != "gone":
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
        if name == "survey":
            real(folder, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "select", damaged)
        assert preprocess(corpus, "--out", out, *options) == (1 if name == "statuses" else 2)
    said = "".join(capsys.readouterr())
    assert f"0000001.{name}.npy is missing or damaged" in said
    assert f"remove {out / 'selection'} and run the same command" in said
    for file in (out / "selection").iterdir():
        file.unlink()
    assert preprocess(corpus, "--out", out, *options) == 0
    assert shard_hashes(out) == deduplicated
    assert counts(out)["duplicates"] == 12 * 4


def test_a_run_that_is_killed_while_it_tidies_up_can_make_a_shard_again(corpus, tmp_path):
    out, options = tmp_path / "out", (*OPTIONS, "--workers", 1, "--dedup")

    def killed(folder: Path, **_: object) -> None:
        if folder.name == "selection":
            for statuses in folder.glob("*.statuses.npy"):
                statuses.unlink()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.splits.selection.shutil.rmtree", killed)
        assert preprocess(corpus, "--out", out, *options) == 130
    next((out / "train").glob("*.arrow")).unlink()
    assert preprocess(corpus, "--out", out, *options) == 0
    assert preprocess(corpus, "--out", tmp_path / "quiet", *options) == 0
    assert shard_hashes(out) == shard_hashes(tmp_path / "quiet")
    assert not (out / "selection").exists()


def test_a_failed_split_is_not_in_the_figures_of_what_was_done(corpus, tmp_path, monkeypatch):
    from pipeline.splits import worker

    out, real = tmp_path / "out", worker.process_split

    def failing(job, split, *rest):
        if split.number == LARGE:
            raise PipelineError("no")
        return real(job, split, *rest)

    monkeypatch.setattr(worker, "process_split", failing)
    assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 1
    progress, sizes = load_progress(out), [path.stat().st_size for path in sorted(corpus.iterdir())]
    assert progress is not None
    assert progress.splits_done == 5
    assert progress.finished_bytes == sum(sizes) - sizes[LARGE]


def test_a_run_inside_its_own_input_does_not_read_itself(corpus, quiet, tmp_path, capsys):
    out = corpus / "out"
    for _ in range(2):
        assert preprocess(corpus, "--out", out, *OPTIONS, "--workers", 1) == 0
        assert "nothing to do" in capsys.readouterr().out or _ == 0
        assert shard_hashes(out) == quiet
    assert preprocess(f"{corpus}/**", "--out", tmp_path / "glob", *OPTIONS, "--workers", 1, "--exclude", "out") == 0
    assert stored(tmp_path / "glob") == stored(out)


# ---- the ends of the scale


def test_an_input_of_duplicates_only_is_one_document(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "the same"}] * 500)
    out = tmp_path / "out"
    assert preprocess(path, "--out", out, *OPTIONS, "--workers", 2, "--dedup") == 0
    assert [(i, text) for i, _, text in stored(out)] == [("a.jsonl:@0", b"the same")]
    assert (counts(out)["records"], counts(out)["duplicates"]) == (500, 499)


def test_a_long_document_in_validation_leaves_an_empty_training_set(tmp_path):
    text = np.random.default_rng(1).bytes(5 * 2**20).hex()
    (tmp_path / "long.txt").write_text(text)
    out = tmp_path / "out"
    assert preprocess(tmp_path / "long.txt", "--out", out, *STATIC, "--validation-fraction", 1) == 0
    rows = list(open_dataset(out / "validation").rows())
    assert [row.part for row in rows] == [0, 1, 2]
    assert b"".join(row.text for row in rows).decode() == text
    assert open_dataset(out / "train").totals.documents == 0
    assert main(["verify", str(out)]) == 0
