"""Texts that are not held in memory: the same shards as if they were, whatever is done with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.input_trees import one_by_one
from helpers.pipeline_helpers import STATIC, counts, letters, preprocess, shard_hashes, stored

from pipeline.read import read_split
from pipeline.records import LongText, Place, Record, Records, content_digest, sample_hash, splits_of
from pipeline.run.driver import make_plan
from pipeline.scoring.cut import cut, pieces
from pipeline.settings import PipelineError, ReadSettings
from shared.model_folder.files import build_model
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import load_manifest
from shared.vocabulary import document_tokens

READERS = ("pipeline.read.formats.whole.LONGEST_HELD", "pipeline.read.formats.datasets.LONGEST_HELD")


def a_text(size: int, seed: int = 0) -> bytes:
    letters = np.frombuffer(b"the quick brown fox\n", np.uint8)
    return letters[np.random.default_rng(seed).integers(0, len(letters), size)].tobytes()


def long(text: bytes, chunk: int = 700) -> LongText:
    return LongText(len(text), content_digest(text), lambda: (text[i : i + chunk] for i in range(0, len(text), chunk)))


def test_it_falls_on_the_same_side_and_in_the_same_sample():
    reading = ReadSettings(validation_fraction=0.5)
    texts = [a_text(2000, seed) for seed in range(20)]
    sides = set()
    for text in texts:
        held, streamed = (Record(Place("f"), "id", "s", t) for t in (text, long(text)))
        assert splits_of(Records.of([held]), reading) == splits_of(Records.of([streamed]), reading)
        assert sample_hash(text, 3) == sample_hash(long(text), 3)
        sides.update(splits_of(Records.of([held]), reading))
    assert sides == {"train", "validation"}


def test_its_entropies_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.scoring.cut.CHUNK", 500)
    torch.set_num_threads(1)
    settings = EntropyModelSettings(width=16, layers=1, heads=2, window=64)
    model = build_model(settings)
    initialise(model, 1)
    scorer = Scorer(model, 256)  # type: ignore[arg-type]
    texts = [a_text(size, size) for size in (5, 3000, 1, 499, 500, 1000)]
    records = [Record(Place("f"), f"{n}", "s", long(text) if n % 2 else text) for n, text in enumerate(texts)]
    found: dict[str, list[Row]] = {}
    for _, rows in cut(pieces([Records.of(records)], scorer), PatchingSettings(rule="none"), 600):
        for row in map(rows.row, range(len(rows))):
            found.setdefault(row.id, []).append(row)
    assert [len(rows) > 1 for rows in found.values()] == [False, True, False, False, False, True]
    for text, rows, whole in zip(texts, found.values(), scorer.score(map(document_tokens, texts))):
        assert b"".join(row.text for row in rows) == text
        np.testing.assert_array_equal(np.concatenate([row.entropies for row in rows]), whole)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_shards_do_not_depend_on_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        path = folder / f"{number}.txt"
        path.write_bytes(a_text(1_200_000 + number, number))
        if suffix:
            subprocess.run(["gzip", "-n", path], check=True)
    hashes = []
    for limit in (2**25, 1000):
        for name in READERS:
            monkeypatch.setattr(name, limit)
        first, again = tmp_path / f"first{limit}", tmp_path / f"again{limit}"
        assert preprocess(folder, "--out", first, "--executor", "inline", "--validation-fraction", 0.5) == 0
        assert preprocess(first, "--out", again, *STATIC) == 0
        assert [len(text) for *_, text in stored(again)] == [1_200_000 + n for n in range(4)]
        hashes.append((shard_hashes(first), shard_hashes(again)))
    assert hashes[0] == hashes[1]
    assert len(hashes[0][0]) > 2


def test_a_file_that_changes_between_two_readings_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(READERS[0], 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(a_text(3_000_000))
    for change in (a_text(3_000_000, 1), a_text(2_999_999), a_text(3_000_001), b""):
        path.write_bytes(a_text(3_000_000))
        plan = make_plan([path], ReadSettings())
        (record,) = one_by_one(read_split(plan.splits[0], ReadSettings()))
        assert isinstance(record, Record)
        assert isinstance(record.text, LongText)
        path.write_bytes(change)
        with pytest.raises(PipelineError, match=r"a\.txt changed while it was read"):
            list(record.text.open())


MEASURED = """
import resource, sys
from pathlib import Path
from pipeline.__main__ import main
status = main(sys.argv[1:])
# Of this process ru_maxrss would count what its parent held before it became this program.
own = next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print("peak", 1024 * max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


def peak_bytes(*arguments: object) -> int:
    """Memory of the driver or of its largest worker while a run goes on."""
    line = [sys.executable, "-c", MEASURED, "preprocess", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=2400)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_document_of_two_gigabytes_takes_little_memory(tmp_path: Path):
    size, block = 2 * 10**9, a_text(1_000_000)
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    out = tmp_path / "out"
    assert peak_bytes(tmp_path / "a.txt", "--out", out, *STATIC) < 10**9  # half of what a worker may have
    totals = [load_manifest(out / name).totals for name in ("train", "validation")]
    assert sum(total.bytes for total in totals) == size
    assert sum(total.documents for total in totals) == 1
    assert not letters(out)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ten_million_tiny_documents_take_little_memory(tmp_path: Path):
    count = 10_000_000
    with (tmp_path / "a.jsonl").open("w") as file:
        for begin in range(0, count, 100_000):
            file.writelines(f'{{"text":"tiny {number}"}}\n' for number in range(begin, begin + 100_000))
    out = tmp_path / "out"
    assert peak_bytes(tmp_path / "a.jsonl", "--out", out, *STATIC[:-1], 2) < 10**9
    totals = [load_manifest(out / name).totals for name in ("train", "validation")]
    assert sum(total.documents for total in totals) == counts(out)["records"] == count
    assert sum(total.bytes for total in totals) == sum(len(f"tiny {number}") for number in range(count))
