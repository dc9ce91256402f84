"""Signals, hanging ranks and processes that outlive each other."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.drill import ROOT, children, descendants, drill_recipe, killed, logged_step, rank_processes
from helpers.tiny_runs import quiet_environment, torchrun

from shared.io.programs.child_processes import STOP_SIGNALS, has_ended
from trainer.distributed.straggler_monitor import Heartbeat, standstill
from trainer.run.stopping import stop_on_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_of_the_signals_asks_to_stop_as_long_as_the_run_listens(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.requested
    finally:
        signal.signal(signal.SIGHUP, before)


LISTENER = """
import os, subprocess, sys, time
from trainer.run import stopping
stopping.IMPATIENCE_SECONDS = float(sys.argv[1])
other = subprocess.Popen(["sleep", "1000"], stderr=subprocess.DEVNULL)
with stopping.stop_on_signals([other.pid]) as request:
    print(other.pid, flush=True)
    while not request.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    while True:
        time.sleep(1000)
"""


@contextmanager
def listener(impatience: float = 0.5) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process that listens to signals and never comes to act on them, and its neighbour."""
    command = [sys.executable, "-c", LISTENER, str(impatience)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    neighbour = int(process.stdout.readline())
    try:
        yield process, neighbour
    finally:
        killed([process.pid, neighbour])
        process.communicate()


def asked(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal for the first time, and wait until it has been heard."""
    process.send_signal(number)
    assert process.stdout
    assert process.stdout.readline() == "asked\n"


def test_a_second_interrupt_ends_a_rank_at_once() -> None:
    with listener(impatience=0.0) as (process, _):
        asked(process, signal.SIGINT)
        time.sleep(0.1)  # the thread that counts interrupts may be behind the one that was interrupted
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 130
        assert process.stderr
        assert process.stderr.read() == "patchwork: interrupted twice: ended without saving\n"


def test_what_a_launcher_passes_on_is_not_a_second_interrupt() -> None:
    with listener(impatience=1e9) as (process, _):
        asked(process, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None


def test_a_rank_whose_neighbour_has_ended_does_not_wait_for_it() -> None:
    with listener() as (process, neighbour):
        asked(process, signal.SIGTERM)
        assert process.poll() is None
        killed([neighbour])
        while not has_ended(neighbour):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 1


MASTER = """
import os, time
from shared.io.programs.child_processes import serve, worker_server

def work():
    serve()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    worker_server("shared.io.programs.child_processes").Process(target=work, daemon=True).start()
    time.sleep(60)
"""


def test_a_loader_worker_survives_signals_to_its_group_and_ends_with_its_rank(tmp_path: Path) -> None:
    (tmp_path / "master.py").write_text(MASTER)
    with subprocess.Popen([sys.executable, tmp_path / "master.py"], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout
        worker = int(rank.stdout.readline())
        servers = children(rank.pid)
        assert len(servers) >= 2  # the server that the worker comes from, and what multiprocessing needs itself
        for number in STOP_SIGNALS:
            os.kill(worker, number)
        time.sleep(0.3)
        assert not has_ended(worker)
        rank.kill()
    deadline = time.monotonic() + 600
    while not all(map(has_ended, [worker, *servers])):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signs(*places: tuple[int, str], beats: int = 1) -> list[Heartbeat]:
    return [Heartbeat(beats, step, doing) for step, doing in places]


def test_the_rank_that_others_wait_for_is_named() -> None:
    before = signs((7, "computing"), (7, "waiting for data"), (7, "computing"))
    after = signs((7, "computing"), (7, "waiting for data"), (7, "computing"), beats=2)
    line = "no step has ended for 9 s: "
    assert standstill(before, after, 9.0) == line + "rank 1 still waiting for data in step 7, the others wait"
    after[2] = before[2]
    assert standstill(before, after, 9.0) == line + "no sign of life from rank 2"
    alike = signs((7, "computing"), (7, "computing"))
    assert standstill(alike, signs((7, "computing"), (7, "computing"), beats=2), 9.0).endswith(
        "all ranks are computing in step 7"
    )
    late = signs((7, "saving"), (6, "saving"), (8, "waiting for data"), (6, "saving"), beats=2)
    assert "ranks 1, 3 still saving in step 6" in standstill(signs(*[(1, "computing")] * 4), late, 9.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drill_recipe(tmp_path_factory.mktemp("stopping"), steps=100_000, every=20)


def running(recipe: Path, out: Path, timeout: int) -> subprocess.Popen:
    """A job of two ranks that has done some steps; they wait so many seconds for each other."""
    command = torchrun("trainer/main.py", recipe, "--run.out", out, "--run.timeout", str(timeout))
    process = subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while logged_step(out) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.drill
def test_an_interrupt_of_the_launcher_saves_and_leaves_nobody_behind(recipe: Path) -> None:
    process = running(recipe, recipe.parent / "interrupted", timeout=600)
    ranks = rank_processes(process.pid)
    everybody = [*ranks, *(process for rank in ranks for process in descendants(rank))]
    assert len(everybody) >= 4
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode != 0  # torchrun's own
    (step,) = re.findall(r"stopped by a signal after step (\d+), saved in .*step-\d+; rerun the same command", said)
    assert (recipe.parent / "interrupted" / "checkpoints" / f"step-{int(step):08d}" / "COMPLETE").exists()
    assert "patchwork: error" not in said
    assert all(map(has_ended, everybody))


@pytest.mark.drill
def test_a_rank_that_hangs_is_named_and_the_others_give_up(recipe: Path) -> None:
    process = running(recipe, recipe.parent / "hanging", timeout=20)
    ranks = rank_processes(process.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    assert process.stderr
    said = []
    for line in process.stderr:
        said += [line] if line.startswith("patchwork: ") else []
        if line.startswith("patchwork: error"):
            os.kill(ranks[1], signal.SIGCONT)  # torchrun would wait 30 s for it
    assert process.wait(600) == 1
    # On a busy machine a rank may have been slow before.
    assert "patchwork: rank 0: no step has ended for 10 s: no sign of life from rank 1\n" in said
    assert [line for line in said if "error" in line][:1] == [
        "patchwork: error: other ranks have not answered for 20 s (run.timeout)\n"
    ]
    assert all(map(has_ended, ranks))
