"""Processes that a run starts for itself: however and whenever it ends, they end too, and have nothing to say."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from pipeline.executors.process_pool import follow_parent, starting_processes
from pipeline.executors.processes import ProcessExecutor
from pipeline.settings import Job, OutputSettings, ReadSettings
from shared.patching import PatchingSettings


@pytest.fixture
def executor(tmp_path: Path) -> ProcessExecutor:
    output = OutputSettings(patching=PatchingSettings(rule="static", stride=5))
    return ProcessExecutor(1, Job(out=tmp_path / "out", reading=ReadSettings(), output=output))


def test_a_driver_that_leaves_messages_unread_resets_the_connection_and_no_traceback_follows(executor, capfd):
    with executor:
        (worker,) = executor._processes
        assert worker.pipe.poll(60)  # its first message, which nobody reads
        worker.pipe.close()
        worker.process.join(60)
        assert worker.process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_a_driver_that_is_gone_in_the_middle_of_a_message_is_no_traceback(executor, capfd):
    with executor:
        (worker,) = executor._processes
        executor.numerics()
        os.write(worker.pipe.fileno(), (1000).to_bytes(4, "big") + b"the first of 1,000 bytes")
        worker.pipe.close()
        worker.process.join(60)
        assert worker.process.exitcode == 0
    assert capfd.readouterr().err == ""


def signals(pid: int, kind: str) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().split("\n") if line.startswith(f"{kind}:")]
    return int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1


def following(ready, leave) -> None:
    follow_parent()
    ready.set()
    leave.wait(60)


def test_ctrl_c_does_not_reach_a_process_before_it_leaves_it_to_its_parent():
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=following, args=(ready, leave), daemon=True)
    with starting_processes():
        process.start()
    assert signals(process.pid, "SigBlk") == 1 or ready.is_set()
    os.kill(process.pid, signal.SIGINT)  # while it imports
    assert ready.wait(60)
    assert (signals(process.pid, "SigBlk"), signals(process.pid, "SigIgn")) == (0, 1)
    assert signals(os.getpid(), "SigBlk") == 0
    leave.set()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_order_to_stop_waits_until_the_processes_have_their_arguments(number):
    came = []
    before = signal.signal(number, lambda number, _: came.append(number))
    try:
        with starting_processes():
            signal.pthread_kill(threading.get_ident(), number)  # another thread would take it at some later time
            assert came == []
        assert came == [number]
    finally:
        signal.signal(number, before)
