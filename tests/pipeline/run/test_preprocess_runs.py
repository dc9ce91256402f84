"""Whole runs without an entropy model: records conserved, bad input survived, stopped runs finished, others refused."""

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import webdataset
from helpers.pipeline_helpers import (
    STATIC,
    command,
    compressed,
    counts,
    environment,
    letters,
    preprocess,
    shard_hashes,
    some_records,
    stored,
    write_jsonl,
)

from shared.io.files.locks import locked
from shared.shards.manifest import MANIFEST_NAME, load_manifest
from shared.shards.open import open_dataset

GOOD = b'{"text": "good %d"}\n'


def bad_corpus(folder: Path) -> tuple[list[bytes], dict[str, str]]:
    """A directory of everything that goes wrong; the texts that must arrive, and what must be said of which file."""
    folder.mkdir()
    lines = b"".join(GOOD % i for i in range(20_000))
    truncated_zst, cut_gz = compressed(lines), gzip.compress(lines, mtime=0)
    files = {
        "truncated.jsonl.zst": truncated_zst[: len(truncated_zst) // 2],
        "cut.jsonl.gz": cut_gz[: len(cut_gz) // 2],
        "broken.jsonl": GOOD % 1 + b'{"text": "bro\n' + GOOD % 2,
        "array.jsonl": b'["text"]\n' + GOOD % 3,
        "no-text.jsonl": b'{"id": "x"}\n' + GOOD % 4,
        "number.jsonl": b'{"text": 5}\n' + GOOD % 5,
        "surrogate.jsonl": b'{"text": "\\ud800"}\n' + GOOD % 6,
        "nul.jsonl": b'{"text": "a\\u0000b"}\n',
        "bom-crlf.jsonl": b'\xef\xbb\xbf{"text": "bom"}\r\n\r\n{"text": "crlf"}\r\n',
        "twins.jsonl": b'{"id": "t", "text": "twin"}\n' * 2,
        "unterminated.jsonl": b'{"text": "last line"}',
        "empty-record.jsonl": b'{"text": ""}\n',
        "invalid.txt": b"caf\xe9 \xff\xfe\0",
        "utf16.txt": "héllo".encode("utf-16"),
        "empty.txt": b"",
        "empty.jsonl": b"",
        "empty.jsonl.zst": b"",
        "whole.txt.gz": gzip.compress(b"a whole text"),
        "cut.txt.gz": gzip.compress(os.urandom(5000))[:4000],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    texts = [b"good %d" % i for i in range(1, 7)]
    texts += [
        b"a\0b",
        b"bom",
        b"crlf",
        b"twin",
        b"twin",
        b"last line",
        files["invalid.txt"],
        files["utf16.txt"],
        b"a whole text",
    ]
    reasons = {
        "truncated.jsonl.zst": "the .zst ends in the middle",
        "cut.jsonl.gz": "the .gz ends in the middle",
        "broken.jsonl": "not JSON",
        "array.jsonl": "an array",
        "no-text.jsonl": "no column 'text'",
        "number.jsonl": "column 'text' is a number",
        "surrogate.jsonl": "lone surrogate",
        "cut.txt.gz": "the .gz ends in the middle",
    }
    return texts, reasons


class Survived(NamedTuple):
    """A run over bad input."""

    out: Path
    texts: list[bytes]
    reasons: dict[str, str]
    said: str

    @property
    def dead(self) -> dict[str, dict]:
        return {letter["path"]: letter for letter in letters(self.out)}


@pytest.fixture(scope="module", params=[700, 10**6])
def survived(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("bad")
    texts, reasons = bad_corpus(folder / "in")
    with redirect_stdout(io.StringIO()) as said:
        assert preprocess(folder / "in", "--out", folder / "out", *STATIC, "--split-bytes", request.param) == 3
    return Survived(folder / "out", texts, reasons, said.getvalue())


def test_each_bad_record_is_a_dead_letter_with_its_reason_and_place(survived):
    assert survived.dead.keys() == survived.reasons.keys()
    for path, reason in survived.reasons.items():
        assert reason in survived.dead[path]["reason"]
        assert {"line", "offset"} & survived.dead[path].keys(), path


def test_each_empty_file_or_record_is_listed(survived):
    assert {entry["path"] for entry in letters(survived.out, "empty-records")} == {
        "empty-record.jsonl", "empty.txt", "empty.jsonl", "empty.jsonl.zst",
    }  # fmt: skip


CUT = ("truncated.jsonl.zst", "cut.jsonl.gz")


@pytest.mark.parametrize("path", CUT)
def test_of_a_cut_file_every_complete_line_before_the_cut_arrives_and_nothing_else(survived, path):
    arrived = [text for i, _, text in stored(survived.out) if i.startswith(path)]
    assert sorted(arrived) == sorted(b"good %d" % i for i in range(len(arrived)))
    assert len(arrived) > 1000
    assert survived.dead[path]["offset"] == sum(len(GOOD % i) for i in range(len(arrived)))


def test_bad_input_costs_only_itself(survived):
    arrived = [text for i, _, text in stored(survived.out) if not i.startswith(CUT)]
    assert sorted(arrived) == sorted(survived.texts)


def test_every_record_of_bad_input_has_one_status(survived):
    statuses = counts(survived.out)
    assert statuses["records"] == sum(statuses[status] for status in ("documents", "dead", "empty", "not_sampled"))
    assert (statuses["dead"], statuses["empty"]) == (8, 4)


def test_the_number_of_bad_and_empty_records_is_printed(survived):
    assert re.search("8 dead letters.*4 empty|4 empty.*8 dead letters", survived.said, re.DOTALL)


@pytest.mark.drill
def test_a_line_of_80_megabytes_arrives_in_parts(tmp_path):
    text = "0123456789abcdef" * (5 * 2**20)
    path = write_jsonl(
        tmp_path / "huge.jsonl", [{"id": "small", "text": "s"}, {"id": "huge", "text": text}, {"text": "z"}]
    )
    out = tmp_path / "out"
    assert preprocess(path, "--out", out, *STATIC, "--stride", 50, "--validation-fraction", 0) == 0
    assert [(i, len(t)) for i, _, t in stored(out)] == [
        ("huge", len(text)),
        (f"huge.jsonl:@{len(text) + 56}", 1),
        ("small", 1),
    ]
    dataset = open_dataset(out / "train")
    indexes = [dataset.shard_index(number) for number, _ in enumerate(dataset.shards())]
    assert [part for index in indexes for part in index.part.tolist()] == [0, *range(21), 0]
    assert sum(int(index.bytes.sum()) for index in indexes) == len(text) + 2


def test_shards_are_the_same_whoever_does_the_work(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(300))
    runs = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        assert preprocess(corpus, "--out", out, *STATIC[:6], "--workers", workers, "--split-bytes", 9000) == 0
        runs[workers] = shard_hashes(out)
    assert runs[1] == runs[2]
    assert load_manifest(tmp_path / "out1" / "train").shard_count > 3


def test_content_and_sides_do_not_depend_on_the_split_size(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(200))
    sides = []
    for number, size in enumerate((3000, 10**6)):
        preprocess(
            corpus, "--out", tmp_path / f"{number}", *STATIC, "--split-bytes", size, "--validation-fraction", 0.2
        )
        folder = tmp_path / f"{number}"
        sides.append(
            {name: sorted(row.id for row in open_dataset(folder / name).rows()) for name in ("train", "validation")}
        )
    assert sides[0] == sides[1]
    assert len(sides[0]["validation"]) > 10
    assert stored(tmp_path / "0") == sorted((r["id"], r["lang"], r["text"].encode()) for r in some_records(200))


def test_webdataset_shards_hold_the_same_and_plain_webdataset_reads_them(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(60))
    for kind in ("arrow", "webdataset"):
        preprocess(corpus, "--out", tmp_path / kind, *STATIC, "--format", kind)
    assert stored(tmp_path / "arrow") == stored(tmp_path / "webdataset")
    (entry,) = open_dataset(tmp_path / "webdataset" / "train").shards()
    samples = list(webdataset.WebDataset(str(tmp_path / "webdataset" / "train" / entry.name), shardshuffle=False))
    train = [row.text for row in open_dataset(tmp_path / "arrow" / "train").rows()]
    assert [sample["bytes"] for sample in samples] == train


def test_our_own_datasets_are_an_input_and_records_keep_their_side(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", [r | {"page": i % 7} for i, r in enumerate(some_records(120))])
    options = ("--split-key", "page", "--validation-fraction", 0.3)
    preprocess(corpus, "--out", tmp_path / "first", "--rule", "none", "--executor", "inline", "--meta", *options)
    for kind in ("arrow", "webdataset"):
        out = tmp_path / kind
        assert (
            preprocess(tmp_path / "first", "--out", out, *STATIC, "--format", kind, "--split-bytes", 5000, "--meta")
            == 0
        )
        assert stored(out) == stored(tmp_path / "first")
        for name in ("train", "validation"):
            before, after = open_dataset(tmp_path / "first" / name), open_dataset(out / name)
            assert sorted((r.id, r.meta) for r in before.rows()) == sorted((r.id, r.meta) for r in after.rows())
    assert len(list(open_dataset(out / "validation").rows())) > 10


def test_the_sample_fits_and_the_rest_is_counted(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(200))
    texts = {}
    for seed in (1, 2):
        out = tmp_path / f"{seed}"
        preprocess(corpus, "--out", out, *STATIC, "--sample-bytes", 10_000, "--seed", seed)
        statuses = counts(out)
        assert 9_000 < statuses["document_bytes"] <= 10_000
        assert statuses["documents"] + statuses["not_sampled"] == statuses["records"] == 200
        texts[seed] = stored(out)
    assert texts[1] != texts[2]


def test_a_killed_run_is_finished_by_the_same_command(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", [*some_records(600), {"bad": 1}])
    arguments = [*STATIC, "--split-bytes", 2000]
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert preprocess(corpus, "--out", whole, *arguments) == 3
    line = [sys.executable, "-m", "pipeline", "preprocess", str(corpus), "--out", str(out), *map(str, arguments)]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(out.glob("splits/*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(out.glob("splits/*.json")))
    assert 5 <= done < len(list(whole.glob("splits/*.json")))
    (out / "train" / "shard-0009999-00000.arrow.1.tmp").write_bytes(b"half")
    result = command("preprocess", corpus, "--out", out, *arguments)
    assert result.returncode == 3
    assert f"{done} of them before" in result.stdout
    assert shard_hashes(out) == shard_hashes(whole)


def test_a_damaged_or_lost_shard_is_made_again(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(100))
    arguments = (corpus, "--out", tmp_path / "out", *STATIC, "--split-bytes", 4000)
    preprocess(*arguments)
    before = shard_hashes(tmp_path / "out")
    first, second = sorted((tmp_path / "out" / "train").glob("*.arrow"))[:2]
    first.unlink()
    damaged = bytearray(second.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    second.write_bytes(damaged)
    assert preprocess(*arguments) == 0
    assert shard_hashes(tmp_path / "out") == before


def test_a_split_without_its_marker_is_done_again_and_no_other(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(100))
    arguments = (corpus, "--out", tmp_path / "out", *STATIC, "--split-bytes", 4000)
    preprocess(*arguments)
    before = shard_hashes(tmp_path / "out")
    damaged = sorted((tmp_path / "out" / "train").glob("*.arrow"))[1]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    markers = sorted((tmp_path / "out" / "splits").iterdir())
    markers[1].unlink()
    capsys.readouterr()
    assert preprocess(*arguments) == 0
    assert f"{len(markers)} of {len(markers)} splits, {len(markers) - 1} of them before" in capsys.readouterr().out
    assert shard_hashes(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["tables/shards.arrow", "tables/runs.arrow", "tables/histograms.arrow", MANIFEST_NAME])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_or_lost_table_is_made_again(tmp_path, name, cut):
    corpus, out = write_jsonl(tmp_path / "a.jsonl", some_records(20)), tmp_path / "out"
    assert preprocess(corpus, "--out", out, *STATIC) == 0
    before, path = shard_hashes(out), out / "validation" / name
    if cut:
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    assert preprocess(corpus, "--out", out, *STATIC) == 0
    assert shard_hashes(out) == before


def test_another_run_in_the_same_folder_is_refused_and_the_difference_named(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(20))
    out = tmp_path / "out"
    preprocess(corpus, "--out", out, *STATIC)
    assert preprocess(corpus, "--out", out, *STATIC, "--stride", 7) == 2
    assert "patching.stride: recorded 5, now 7" in capsys.readouterr().err
    assert preprocess(corpus, "--out", out, *STATIC, "--validation-fraction", 0.5) == 2
    assert "reading.validation_fraction: recorded 0.05, now 0.5" in capsys.readouterr().err
    write_jsonl(corpus, some_records(21))
    assert preprocess(corpus, "--out", out, *STATIC) == 2
    assert "inputs.sha256" in capsys.readouterr().err


def test_a_file_that_is_missing_while_the_folder_is_locked_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="shard"), locked(tmp_path / "out"):
        raise FileNotFoundError("shard")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "a", "lang": "x" * 1001}, "1,001 characters"),
        ({"text": "a", "id": "x" * 200}, "200 bytes"),
    ],
)
def test_a_record_whose_names_no_shard_can_hold_is_a_dead_letter(tmp_path, monkeypatch, record, reason):
    monkeypatch.setattr("pipeline.read.source.LONGEST_NAMES", 150)
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "kept", "lang": "en", "id": "k"}, record])
    out = tmp_path / "out"
    assert preprocess(corpus, "--out", out, *STATIC, "--subset-column", "lang", "--id-column", "id") == 3
    (line,) = (out / "dead-letters" / "0000000-00000.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]
    assert json.loads(line)["line"] == 2


def test_a_second_driver_is_refused(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(5))
    out = tmp_path / "out"
    with locked(out):
        assert preprocess(corpus, "--out", out, *STATIC) == 2
    assert f"in use by another run (process {os.getpid()} on " in capsys.readouterr().err
    assert preprocess(corpus, "--out", out, *STATIC) == 0


def test_an_input_that_changes_during_the_run_fails_its_split_and_the_rest_finishes(tmp_path, capsys, monkeypatch):
    for number in range(4):
        write_jsonl(tmp_path / f"{number}.jsonl", some_records(10))
    files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    out = tmp_path / "out"
    import pipeline.run.driver as driver

    real = driver.make_executor

    def changed_after_planning(*arguments):
        files[1].write_bytes(b"other\n")
        return real(*arguments)

    monkeypatch.setattr(driver, "make_executor", changed_after_planning)
    assert preprocess(*files, "--out", out, *STATIC, "--split-bytes", 6000) == 1
    said = capsys.readouterr().out
    assert "1.jsonl has changed since the run was planned" in said
    assert not (out / "train" / "manifest.json").exists()
    assert len(list((out / "splits").glob("*.json"))) == 3
    assert "has changed" in (out / "failures" / "0000001-00000.txt").read_text()


def test_the_way_that_does_nothing_loads_neither_torch_nor_ray(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(20))
    arguments = ["preprocess", str(corpus), "--out", str(tmp_path / "out"), "--rule", "space"]
    preprocess(*arguments[1:], "--executor", "inline")
    code = (
        "import sys, json; from pipeline.__main__ import main; code = main(json.loads(sys.argv[1]));"
        "sys.exit(code or len({'torch', 'ray'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result
    assert "nothing to do" in result.stdout


def test_a_moved_corpus_is_the_same_corpus(tmp_path):
    (tmp_path / "c").mkdir()
    write_jsonl(tmp_path / "c" / "a.jsonl", some_records(20))
    assert preprocess(tmp_path / "c", "--out", tmp_path / "out", *STATIC) == 0
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    assert preprocess(tmp_path / "d", "--out", tmp_path / "out", *STATIC) == 0


def test_a_dry_run_says_how_long_and_writes_nothing(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(200))
    before = set(tmp_path.rglob("*"))
    assert preprocess(corpus, "--out", tmp_path / "out", *STATIC, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "1 split of" in said
    assert "seconds with 1 of 1 workers" in said
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "static"], "rule 'static' needs stride"),
        (["--rule", "entropy", "--theta", "2"], "rule entropy needs --entropy-model"),
        (["--rule", "space", "--theta", "2"], "rule 'space' does not take theta"),
        (["--theta", "2"], "--theta needs --rule"),
        (["--rule", "space", "--entropy-model", "m"], "--entropy-model is of no use"),
        (["--rule", "space", "--validation-fraction", "2"], "--validation-fraction: "),
        (["--rule", "space", "--seed", str(2**63)], "seed: must be less than"),
        (["--rule", "space", "--stream-length", "100", "--sidecar", "uint8"], "--sidecar needs --entropy-model"),
        (["--rule", "nonsense"], "--rule: unknown value 'nonsense'"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["--rule", "byte", "--executor", "inline", "--ray-address", "auto"], "--ray-address is for --executor ray"),
        (["--rule", "byte", "--executor", "inline", "--min-workers", "2"], "--min-workers is for --executor ray"),
        (["--rule", "byte", "--workers", "2", "--min-workers", "3"], "--min-workers 3 is more than --workers 2"),
        (["--rule", "byte", "--gpus-per-worker", "0.5"], "--gpus-per-worker is for an entropy model"),
        (["--patching", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_a_wrong_option_is_one_clear_line(tmp_path, capsys, options, said):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(1))
    try:
        code = preprocess(corpus, "--out", tmp_path / "out", *options)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("patchwork: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing", "missing/*.txt", "empty"])
def test_nothing_is_made_for_an_input_that_is_not_there(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    said = []
    for _ in range(2):
        assert preprocess(tmp_path / name, "--out", tmp_path / name.partition("/")[0] / "a/out", *STATIC) == 2
        said.append(capsys.readouterr().err)
        assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    assert said[0] == said[1]
    assert str(tmp_path / name) in said[0]


def test_the_lock_of_a_run_that_came_to_nothing_leaves_no_folder(tmp_path):
    with locked(tmp_path / "a/b/out"):
        assert (tmp_path / "a/b/out").is_dir()
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a/b/out"):
        (tmp_path / "a/b/out/kept").touch()
    assert (tmp_path / "a/b/out/kept").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert preprocess(corpus, "--out", tmp_path / "out", *STATIC) == 2
    assert "not empty and holds no run" in capsys.readouterr().err
