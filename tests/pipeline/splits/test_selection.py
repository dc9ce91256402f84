"""Duplicates and samples: decided over the whole input, the same whoever works, every record accounted for."""

import json
import re
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.pipeline_helpers import STATIC, counts, letters, preprocess, shard_hashes, stored, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import content_digest, sample_hash
from pipeline.run.driver import make_plan
from pipeline.settings import Job, OutputSettings, PipelineError, ReadSettings
from pipeline.splits.process import process_split
from pipeline.splits.selection import SURVEY, RecordStatus, sample_threshold, select, selection_done, statuses_of
from shared.patching import PatchingSettings


def repetitive(path: Path, files: int = 3, lines: int = 60) -> list[str]:
    """Files in which texts come again, within a file and across; returns the texts in order."""
    rng = np.random.default_rng(5)
    texts = []
    for number in range(files):
        own = [f"text {value} " * 20 for value in rng.integers(0, 70, lines)]
        write_jsonl(path / f"{number}.jsonl", [{"text": text, "id": f"{number}-{i}"} for i, text in enumerate(own)])
        texts += own
    return texts


@pytest.mark.parametrize("compared", [2**24, 3])
def test_the_first_of_equal_texts_is_kept_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr("pipeline.splits.selection.COMPARED", compared)
    source = tmp_path / "in"
    source.mkdir()
    texts = repetitive(source)
    (source / "9.jsonl").write_text('{"text": ""}\nnot json\n{"text": ""}\n')
    out = tmp_path / "out"
    assert preprocess(source, "--out", out, *STATIC, "--dedup", "--split-bytes", 4000) == 3
    first = {}
    for number, text in enumerate(texts):
        first.setdefault(text, f"{number // 60}-{number % 60}")
    assert {(i, t.decode()) for i, _, t in stored(out)} == {(i, t) for t, i in first.items()}
    totals = counts(out)
    assert totals["duplicates"] == len(texts) - len(first) == len(letters(out, "duplicates"))
    assert (totals["empty"], totals["dead"], totals["records"]) == (2, 1, len(texts) + 3)
    listed = letters(out, "duplicates")
    assert all(
        re.fullmatch(r"\d{7}-\d{5}", entry["first"]["split"]) and entry["path"].endswith(".jsonl") for entry in listed
    )
    assert not (out / "selection").exists()


def test_statuses_do_not_depend_on_workers_or_splits(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    repetitive(source)
    hashes, texts = [], []
    for workers, size in ((1, 5000), (2, 5000), (1, 10**6)):
        out = tmp_path / f"{workers}-{size}"
        options = ("--dedup", "--sample-bytes", 9000, "--workers", workers, "--split-bytes", size)
        assert preprocess(source, "--out", out, *STATIC[:6], *options) == 0
        hashes.append(shard_hashes(out))
        texts.append(stored(out))
        assert sum(len(text) for *_, text in texts[-1]) <= 9000
        assert counts(out)["not_sampled"] > 0
    assert hashes[0] == hashes[1]
    assert texts[0] == texts[2]
    assert max(Counter(text for *_, text in texts[0]).values()) == 1


def surveys(out: Path, splits: list[list[tuple[int, int, int]]]) -> None:
    """What workers leave of texts with these hashes, places in the order of the sample and sizes."""
    (out / "selection").mkdir(parents=True)
    for number, texts in enumerate(splits):
        survey = np.zeros(len(texts), SURVEY)
        for row, (content, place, size) in zip(survey, texts):
            row["content"], row["place"], row["bytes"] = (content % 2**64, content >> 64), place, size
        np.save(out / "selection" / f"{number:07d}.survey.npy", survey)


HASHES = st.integers(0, 3) | st.integers(2**63, 2**63 + 1) | st.sampled_from([2**64, 2**64 + 2**63, 2**128 - 1])


@given(
    st.lists(st.lists(st.tuples(HASHES, st.integers(0, 2**64 - 1), st.integers(1, 9)), max_size=9), max_size=9),
    st.booleans(),
    st.none() | st.integers(1, 200),
)
@settings(max_examples=30, deadline=None)
def test_statuses_are_those_that_follow_from_looking_at_all_texts_at_once(splits, dedup, limit):
    wanted, first, kept = {}, {}, []
    for split, texts in enumerate(splits):
        for text, (content, place, size) in enumerate(texts):
            earlier = first.setdefault(content, (split, text)) if dedup else (split, text)
            wanted[split, text] = (RecordStatus.KEPT, 0, 0)
            if earlier == (split, text):
                kept.append((place, size, split, text))
            else:
                wanted[split, text] = (RecordStatus.DUPLICATE, *earlier)
    held = 0
    for place, size, split, text in sorted(kept):
        held += size
        if limit is not None and held > limit:
            for later, _, split, text in kept:
                if later >= place:
                    wanted[split, text] = (RecordStatus.NOT_SAMPLED, 0, 0)
            break
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("pipeline.splits.selection.COMPARED", 5)
        surveys(Path(folder), splits)
        select(Path(folder), len(splits), ReadSettings(dedup=dedup, sample_bytes=limit))
        found = {
            (split, text): status
            for split in range(len(splits))
            for text, status in enumerate(statuses_of(Path(folder), split))
        }
        assert {path.name for path in Path(folder, "selection").iterdir() if path.suffix != ".npy"} == {"done"}
    assert found == wanted


@pytest.mark.drill
@pytest.mark.parametrize("hashes", ["all equal", "all different"])
def test_memory_for_a_selection_does_not_grow_with_the_texts(tmp_path, monkeypatch, hashes):
    monkeypatch.setattr("pipeline.splits.selection.COMPARED", 2**11)
    rng = np.random.default_rng(0)

    def peak(splits: int) -> int:
        out = tmp_path / f"{splits}"
        (out / "selection").mkdir(parents=True)
        for number in range(splits):
            survey = np.zeros(2**10, SURVEY)
            if hashes == "all different":
                survey["content"] = rng.integers(0, 2**63, (2**10, 2))
            survey["bytes"], survey["place"] = 1, rng.integers(0, 2**63, 2**10)
            np.save(out / "selection" / f"{number:07d}.survey.npy", survey)
        tracemalloc.start()
        select(out, splits, ReadSettings(dedup=True, sample_bytes=2**12))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(4)
    assert peak(64) < 1.2 * peak(16)


@given(
    st.lists(st.tuples(st.integers(0, 20) | st.integers(2**48, 2**48 + 9), st.integers(1, 9)), max_size=40),
    st.integers(0, 200),
)
def test_the_sample_is_the_largest_that_fits(records: list[tuple[int, int]], limit: int) -> None:
    def kept(threshold: int) -> int:
        return sum(size for value, size in records if value < threshold)

    def texts():
        for part in (records[:7], records[7:]):
            yield np.array([v for v, _ in part], np.uint64), np.array([s for _, s in part], np.int64)

    threshold = sample_threshold(texts, limit)
    assert kept(threshold) <= limit
    larger = [value + 1 for value, _ in records if value >= threshold]
    assert not larger or kept(min(larger)) > limit


def test_the_sample_is_that_of_the_hashes(tmp_path: Path) -> None:
    texts = [f"document {number} " * 9 for number in range(200)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    out = tmp_path / "out"
    assert preprocess(path, "--out", out, *STATIC, "--sample-bytes", 5000, "--seed", 7) == 0
    order = sorted(texts, key=lambda text: sample_hash(text.encode(), 7))
    wanted, held = set(), 0
    for text in order:
        held += len(text)
        if held > 5000:
            break
        wanted.add(text.encode())
    assert {text for *_, text in stored(out)} == wanted


def test_more_texts_than_were_surveyed_are_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    reading = ReadSettings(dedup=True)
    plan = make_plan([path], reading)
    job = Job(out=tmp_path / "out", reading=reading, output=OutputSettings(patching=PatchingSettings(rule="none")))
    folder = job.out / "selection"
    folder.mkdir(parents=True)
    record = np.zeros(1, [("content", ">u8", 2), ("place", "<u8"), ("bytes", "<i8")])
    record["content"] = np.frombuffer(content_digest(b"a")[:16], ">u8")
    np.save(folder / "0000000.survey.npy", record)
    select(job.out, 1, reading)
    assert selection_done(job.out)
    with pytest.raises(PipelineError, match="more texts than were surveyed"):
        process_split(job, plan.splits[0], "")
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1]) == {"text": "b"}
