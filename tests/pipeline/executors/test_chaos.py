"""Killed again and again, a run ends with the very bytes of one that nobody disturbed: none lost, none doubled."""

from collections import Counter
from pathlib import Path

import pytest
from helpers.chaos import Chaos, a_worker_process, the_driver
from helpers.pipeline_helpers import counts, preprocess, shard_hashes, some_records, stored, write_jsonl

from pipeline.__main__ import main

KILLS = 5


@pytest.mark.drill
@pytest.mark.parametrize("workers", [1, 3])
def test_kills_leave_no_trace(tmp_path: Path, workers: int) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(12_000, words=120))
    with corpus.open("a") as file:
        file.write('{"text": ""}\nno json\n')
    options = (corpus, "--rule", "space", "--dedup", "--executor", "inline", "--split-bytes", 2**18)
    assert preprocess(*options, "--out", tmp_path / "quiet") == 3
    kills = {"driver": the_driver} | ({"worker": a_worker_process} if workers > 1 else {})
    spent: Counter[str] = Counter()
    for number in range(20):  # a quick machine may be done before all kills have happened
        out = tmp_path / f"out{number}"
        due = {kind: victim for kind, victim in kills.items() if kind not in spent} or kills
        chaos = Chaos(max(KILLS - spent.total(), 1), due, seed=number, pause=(0.3, 1.2))
        chaos.finish(["preprocess", *options, "--out", out, "--workers", workers], tmp_path / "log")
        spent += chaos.done
        assert shard_hashes(out) == shard_hashes(tmp_path / "quiet")  # of all files: nothing half-written is there
        assert counts(out) == counts(tmp_path / "quiet")
        if spent.total() >= KILLS and set(spent) == set(kills):
            break
    assert len({id for id, *_ in stored(out)}) == 12_000
    assert main(["verify", str(out)]) == 0
    assert spent.total() >= KILLS
    assert set(spent) == set(kills)
