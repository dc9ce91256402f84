"""Hundreds of small files of every format, good and bad: each record has one status, each file is accounted for."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzzed_corpus import MAKERS, PACKERS, Made, Tar, make_corpus, warc
from helpers.input_trees import one_by_one
from helpers.pipeline_helpers import STATIC, counts, letters, preprocess, stored

from pipeline.read import read_split
from pipeline.records import DeadLetter, Record
from pipeline.run.driver import make_plan
from pipeline.settings import ReadSettings
from pipeline.splits.run_file import read_run

FILES = [300, pytest.param(1000, marks=pytest.mark.drill)]
SKIPPED = {"image.png": b"\x89PNG", "model.pkl": b"\x80\x04N.", "archive.zip": b"PK", "page.warc.gz": b"\x1f\x8b"}


def read(corpus: Path, out: Path, *options: object) -> None:
    assert preprocess(corpus, "--out", out, *STATIC, *options) == 3


def statuses(made: list[Made]) -> dict[str, int]:
    found = {"documents": sum(len(m.texts) for m in made), "dead": sum(m.dead for m in made)}
    found |= {"empty": sum(m.empty for m in made), "not_sampled": 0}
    return found | {"records": sum(found.values())}


@pytest.fixture(scope="module", params=FILES)
def corpus(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, list[Made]]:
    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder, request.param, seed=4)
    for name, content in SKIPPED.items():
        (folder / name).write_bytes(content)
    (folder / "link.txt").symlink_to(folder / made[0].name)
    return folder, made


@pytest.fixture(scope="module")
def out(corpus: tuple[Path, list[Made]], tmp_path_factory) -> Path:
    """A run over all of it."""
    out = tmp_path_factory.mktemp("run") / "out"
    read(corpus[0], out)
    return out


@pytest.fixture(scope="module")
def made(corpus: tuple[Path, list[Made]]) -> list[Made]:
    return corpus[1]


def test_all_files_come_to_what_their_makers_counted(made, out):
    dead, wanted = letters(out), statuses(made)
    assert len(dead) == wanted["dead"]
    wanted["dead"] = sum(letter.get("records", 1) for letter in dead)  # of a table's rows, all that are lost
    wanted["records"] = wanted["documents"] + wanted["empty"] + wanted["dead"]
    found = counts(out)
    assert {key: found[key] for key in wanted} == wanted


def test_the_texts_of_all_files_arrive(made, out):
    assert Counter(text for _, _, text in stored(out)) == Counter(text for m in made for text in m.texts)


@pytest.mark.parametrize(("kind", "count"), [("dead-letters", "dead"), ("empty-records", "empty")])
def test_each_lost_record_is_listed_with_its_file(made, out, kind, count):
    found = Counter(entry["path"] for entry in letters(out, kind))
    assert found == Counter({m.name: getattr(m, count) for m in made if getattr(m, count)})


def test_a_dead_letter_has_a_reason_a_hash_and_an_excerpt(out):
    for letter in letters(out):
        assert letter["reason"]
        assert len(letter["sha256"]) == 64
        assert len(letter.get("excerpt", letter.get("excerpt_base64"))) <= 90_000


def test_each_file_is_in_the_plan_or_counted_as_skipped(made, out):
    plan = read_run(out / "run.json").plan
    assert sorted(file.path for file in plan.files) == sorted(m.name for m in made)
    assert plan.skipped == {"no text by their suffix": len(SKIPPED), "symbolic links": 1}


def test_small_splits_come_to_the_same(tmp_path):
    made = make_corpus(tmp_path / "in", 2 * len(MAKERS), seed=5)
    read(tmp_path / "in", tmp_path / "small", "--split-bytes", 4000)
    read(tmp_path / "in", tmp_path / "large")
    assert stored(tmp_path / "small") == stored(tmp_path / "large")
    assert sorted(map(str, letters(tmp_path / "small"))) == sorted(map(str, letters(tmp_path / "large")))
    assert counts(tmp_path / "small") == counts(tmp_path / "large")
    assert counts(tmp_path / "small")["documents"] == statuses(made)["documents"]


def whole_file(kind: str) -> bytes:
    """A good file of a kind, with the texts of TEXTS."""
    sink = io.BytesIO()
    rows = pa.table({"text": TEXTS})
    if kind == ".parquet":
        pq.write_table(rows, sink, row_group_size=9)
    elif kind == ".feather":
        with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(rows, max_chunksize=9)
    elif kind == ".arrow":
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=9)
    elif kind.startswith(".tar"):
        tar = Tar(random.Random(1))
        for i, text in enumerate(TEXTS):
            tar.add(f"{i:03d}.txt", text.encode())
        sink.write(tar.content())
    elif kind.startswith(".warc.wet"):
        sink.write(b"".join(warc("conversion", text.encode(), i) for i, text in enumerate(TEXTS)))
    else:
        sink.write(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS))
    return PACKERS.get(Path(kind).suffix or kind, bytes)(sink.getvalue())


TEXTS = [f"text {i} " + "é\n" * (i % 5) for i in range(40)]
WHOLE = (".parquet", ".feather", ".arrow", ".tar", ".tar.gz", ".tar.zst", ".warc.wet", ".warc.wet.xz", ".jsonl.bz2")


def read_back(path: Path, split_bytes: int) -> tuple[Counter, int]:
    """The texts of the documents, and the number of dead letters."""
    reading = ReadSettings(split_bytes=split_bytes)
    plan = make_plan([path], reading)
    found = [record for split in plan.splits for record in one_by_one(read_split(split, reading))]
    texts = Counter(record.text for record in found if isinstance(record, Record) and record.text)
    return texts, sum(isinstance(record, DeadLetter) for record in found)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_anywhere_gives_a_part_of_the_texts_and_says_so(tmp_path, kind):
    rng, whole, path = random.Random(kind), whole_file(kind), tmp_path / f"a{kind}"
    path.write_bytes(whole)
    everything = Counter(text.encode() for text in TEXTS)
    assert read_back(path, 300) == (everything, 0)
    for _ in range(25):
        path.write_bytes(whole[: rng.randrange(1, len(whole))])
        texts, dead = read_back(path, rng.choice([300, 10**6]))
        assert texts <= everything
        assert dead or texts == everything


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_bits_anywhere_stop_nothing(tmp_path, kind):
    rng, whole, path = random.Random(kind), whole_file(kind), tmp_path / f"a{kind}"
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 8])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        texts, dead = read_back(path, rng.choice([300, 10**6]))
        assert dead or sum(texts.values()) == len(TEXTS)
