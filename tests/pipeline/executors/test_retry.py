"""What is tried again and what is not: the rules alone, and as the executors without Ray follow them."""

import errno
import os
import signal

import numpy as np
import pytest
from helpers.pipeline_helpers import preprocess, shard_hashes, some_records, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.executors import retry
from pipeline.executors.counting import room, workers_wanted
from pipeline.executors.retry import ATTEMPTS, BACK_OFF_SECONDS, Queue
from pipeline.settings import PipelineError
from pipeline.splits.marker import Counts
from pipeline.splits.worker import Outcome
from shared.io.stores.transient_errors import is_transient


def queue_of(*sizes: int) -> Queue:
    return Queue(np.arange(len(sizes)), np.array(sizes, np.int64))


def done(number: int) -> Outcome:
    return Outcome(number, Counts())


def in_our_words(error: Exception) -> PipelineError:
    """An error as a reader raises it in place of another."""
    try:
        try:
            raise error
        except type(error):
            raise PipelineError("in our words") from None
    except PipelineError as ours:
        return ours


def test_the_largest_split_comes_first_and_equal_ones_in_order():
    queue = queue_of(5, 9, 5, 7)
    assert [queue.pop(0) for _ in range(5)] == [1, 3, 0, 2, None]
    assert queue.unfinished == 4


def test_an_error_of_the_split_is_final_at_once():
    queue = queue_of(1)
    failed = Outcome(queue.pop(0), error="no such column")
    assert queue.ended(failed, 0) is failed
    assert queue.unfinished == 0


def failing(queue: Queue, number: int, now: float) -> Outcome | None:
    assert queue.pop(now) == number
    return queue.ended(Outcome(number, error="connection reset", transient=True), now)


def test_a_split_with_a_transient_error_pauses_and_others_do_not_wait_for_it():
    queue = queue_of(1, 2)
    assert failing(queue, 1, 100.0) is None
    assert [queue.pop(now) for now in (100.0, 100.0 + BACK_OFF_SECONDS[0] - 0.1)] == [0, None]
    assert queue.unfinished == 2


def test_a_transient_error_is_tried_again_after_each_pause_and_not_for_ever():
    queue, now = queue_of(2), 100.0
    for pause in BACK_OFF_SECONDS[: ATTEMPTS - 1]:
        assert failing(queue, 0, now) is None
        assert queue.pause(now) == pause
        assert queue.pop(now + pause - 0.1) is None
        now += pause
    outcome = failing(queue, 0, now)
    assert outcome.error == f"connection reset ({ATTEMPTS} attempts)"
    assert (queue.pause(now), queue.unfinished) == (None, 0)


def test_a_split_whose_workers_are_lost_is_given_up_with_the_reason():
    queue = queue_of(1)
    for _ in range(ATTEMPTS - 1):
        assert queue.lost(queue.pop(0), "killed") is None
    outcome = queue.lost(queue.pop(0), "killed", "the whole story")
    assert outcome.error == f"its worker was lost {ATTEMPTS} times: killed"
    assert outcome.trace == "the whole story"
    assert queue.unfinished == 0


@given(st.lists(st.integers(1, 9), max_size=12), st.randoms(use_true_random=False))
def test_every_split_has_exactly_one_end_whatever_happens(sizes, random):
    queue, now, ends = queue_of(*sizes), 0.0, []
    while queue.unfinished:
        number = queue.pop(now)
        if number is None:
            now += queue.pause(now)
            continue
        status = random.choice(["done", "failed", "transient", "lost"])
        if status == "lost":
            end = queue.lost(number, "")
        elif status == "done":
            end = queue.ended(done(number), now)
        else:
            end = queue.ended(Outcome(number, error="e", transient=status == "transient"), now)
        if end is not None:
            ends.append(end.split)
    assert sorted(ends) == list(range(len(sizes)))
    assert queue.pop(now) is None


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.EIO, "disk"), True),
        (TimeoutError("read"), True),
        (ConnectionResetError("peer"), True),
        (OSError(errno.ESTALE, "mount"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (ValueError("bad"), False),
        (MemoryError(), False),
    ],
)
def test_which_errors_may_pass(error, transient):
    assert is_transient(error) == transient
    assert is_transient(in_our_words(error)) == transient


def test_a_pool_grows_with_the_cluster_and_shrinks_with_the_work():
    assert workers_wanted(ready=0, unfinished=100, least=3, most=50) == 3
    assert workers_wanted(ready=3, unfinished=100, least=3, most=50) == 6
    assert workers_wanted(ready=40, unfinished=100, least=3, most=50) == 50
    assert workers_wanted(ready=40, unfinished=7, least=3, most=50) == 7


def test_room_for_workers_is_what_fits_on_each_node():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}, {"memory": 5.0}]
    assert room(nodes, cpus=1, gpus=0) == 11
    assert room(nodes, cpus=2, gpus=0) == 5
    assert room(nodes, cpus=1, gpus=1) == 2
    assert room(nodes, cpus=1, gpus=0.25) == 8
    assert room([{"CPU": 64.0, "GPU": 1.0}], cpus=1, gpus=0.1) == 10


# ---- as the executors follow them


STATIC = ("--rule", "static", "--stride", "5", "--split-bytes", 4000)


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", some_records(60))


@pytest.mark.parametrize(("code", "exit_code", "attempts"), [(errno.EIO, 0, 2), (errno.ENOSPC, 1, 1)])
def test_a_fault_of_the_disk_is_tried_again_and_a_full_one_is_not(
    corpus, tmp_path, monkeypatch, capsys, code, exit_code, attempts
):
    from pipeline.splits import worker

    real, tried = worker.process_split, []

    def failing_once(job, split, *rest):
        tried.append(split.number)
        if tried == [0]:
            raise OSError(code, os.strerror(code))
        return real(job, split, *rest)

    monkeypatch.setattr(worker, "process_split", failing_once)
    monkeypatch.setattr(retry, "BACK_OFF_SECONDS", (0.01, 0.02))
    options = (*STATIC, "--executor", "inline", "--workers", 1)
    assert preprocess(corpus, "--out", tmp_path / "out", *options) == exit_code
    assert tried.count(0) == attempts
    if exit_code:
        assert os.strerror(code) in capsys.readouterr().out
    else:
        monkeypatch.undo()
        assert preprocess(corpus, "--out", tmp_path / "quiet", *options) == 0
        assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "quiet")


@pytest.mark.parametrize(
    ("executor", "reason"),
    [
        pytest.param("inline", "exit code -9", marks=pytest.mark.drill),
        pytest.param("ray", "The actor died unexpectedly", marks=pytest.mark.slow),
    ],
)
def test_a_split_that_kills_every_worker_is_given_up_and_the_rest_is_done(
    corpus, tmp_path, capsys, monkeypatch, executor, reason
):
    folder = tmp_path / "patched"
    folder.mkdir()
    # Read by every worker process as it starts: split 1 ends whoever takes it.
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any(name in ' '.join(sys.orig_argv) for name in ('spawn_main', 'default_worker')):\n"
        "    from pipeline.splits import worker\n"
        "    real = worker.process_split\n"
        "    def deadly(job, split, *rest):\n"
        f"        if split.number == 1: os.kill(os.getpid(), {signal.SIGKILL})\n"
        "        return real(job, split, *rest)\n"
        "    worker.process_split = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    out = tmp_path / "out"
    assert preprocess(corpus, "--out", out, *STATIC, "--executor", executor, "--workers", 2) == 1
    assert f"its worker was lost {ATTEMPTS} times: {reason}" in capsys.readouterr().out
    assert {path.stem for path in (out / "splits").iterdir()} == {f"0000000-{part:05d}" for part in (0, 2, 3, 4, 5)}
    assert f"lost {ATTEMPTS} times" in (out / "failures" / "0000000-00001.txt").read_text()
