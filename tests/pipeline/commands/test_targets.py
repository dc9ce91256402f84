"""targets keeps what the teacher says, for every byte and whatever the patches, and says what does not fit."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers.dataset_examples import SPACE, document, in_two_parts, save_dataset
from helpers.pipeline_helpers import environment
from helpers.refitted import fit_targets
from helpers.rewriting_examples import files
from helpers.subword_examples import LINES
from helpers.target_examples import teacher_folder

from pipeline.__main__ import main
from pipeline.rewriting.targets import document_texts
from shared.bpe.encoder import SubwordEncoder
from shared.distillation.targets_folder import open_targets
from shared.io.files.digests import file_sha256
from shared.layers.batch import segments
from shared.model_folder.files import load_model
from shared.shards.document import Row
from shared.shards.open import open_dataset
from shared.vocabulary import BOS, EOS, OFFSET


def run(*arguments: object) -> int:
    one = () if "--workers" in arguments or arguments[0] == "verify" else ("--workers", 1)
    return main([*map(str, (*arguments, *one))])


def texts(count: int) -> list[Row]:
    made = [b"", b"\xff\x00 no text", b"a", *(line + b"\n" + LINES[number - 1] for number, line in enumerate(LINES))]
    return [document(f"d{n}", ("code", "prose")[n % 2], text, SPACE) for n, text in enumerate(made[:count])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in two shards with a document in parts, its teacher, and its targets in windows of 16 tokens."""
    folder = tmp_path_factory.mktemp("targets")
    teacher_folder(folder)
    rows = texts(12)
    save_dataset(folder / "data" / "train", [[*rows[:6], *in_two_parts(rows[8])], rows[9:]], SPACE)
    save_dataset(folder / "data" / "validation", [rows[6:8]], SPACE, split="validation")
    line = ("targets", folder / "data", "--teacher", folder / "teacher", "--context", 16)
    assert run(*line, "--out", folder / "targets") == 0
    assert run(*line, "--out", folder / "exact", "--top", 256, "--dtype", "float32", "--context", 4096) == 0
    return folder


def test_along_each_token_targets_add_up_to_its_probability(place: Path) -> None:
    """Checked with all tokens that begin with its bytes, not with the tree: the end of it is what these have beside it.

    Together: ln of the probability of the document's own tokens, its end included.
    """
    dataset = open_dataset(place / "data" / "train")
    targets = open_targets(place / "exact", dataset)
    model, encoder = load_model(place / "teacher"), SubwordEncoder(place / "teacher" / "tokenizer")
    vocabulary = encoder.subwords.tokens
    for shard in range(dataset.shard_count):
        row = 0
        for text in map(b"".join, document_texts(dataset, shard)):
            parts = [targets.row(shard, row)]
            while not dataset.shard_index(shard).last[row]:
                row += 1
                parts.append(targets.row(shard, row))
            row += 1
            symbols, logs = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
            ids = [*encoder.ids(text).tolist(), EOS]
            said = model(torch.tensor([BOS, *ids[:-1]]), segments([len(ids)])).log_softmax(1).detach().numpy()
            place_of, total, wanted = 0, 0.0, 0.0
            for number, token in enumerate(ids):
                known = vocabulary[token]
                symbols_of = [EOS] if known is None else [byte + OFFSET for byte in known]
                along = sum(
                    float(logs[place_of + n][symbols[place_of + n] == symbol][0]) for n, symbol in enumerate(symbols_of)
                )
                place_of += len(symbols_of)
                same = [v for v, own in enumerate(vocabulary) if known is not None and own and own.startswith(known)]
                begins = float(np.logaddexp.reduce(said[number][same or [token]]))
                assert along == pytest.approx(begins, abs=1e-4)
                end = float(said[number][token]) - begins
                total, wanted = total + along + end, wanted + float(said[number][token])
            assert total == pytest.approx(wanted, abs=1e-3)
            assert place_of == len(symbols) == len(text) + 1


def test_files_hold_what_was_counted_and_are_found_in_order(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", place / "data", "--targets", place / "targets") == 0
    shutil.copytree(place / "targets", tmp_path / "targets")
    for name, change in (
        ("shard-00001.targets", lambda content: content[:-2] + b"\x00\x7c"),
        ("targets.json", lambda content: content.replace(b'"documents": 10', b'"documents": 11')),
    ):
        path = tmp_path / "targets" / "train" / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        assert path.read_bytes() != whole
        capsys.readouterr()
        assert run("verify", place / "data", "--targets", tmp_path / "targets") == 1
        assert name in capsys.readouterr().out
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"end": -1.0}, "target 0 of document 0 has probabilities that do not sum to 1"),
        ({"symbols": 70}, "target 0 of document 0 has a symbol twice"),
        ({"logs": [-9, -1, -1, -1, -1, -1, -1, -1]}, "has symbols that are not the most probable first"),
        ({"largest_rest": 0.5}, "largest_rest is"),
    ],
)
def test_whole_files_of_wrong_targets_are_found(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], problem: str
) -> None:
    folder = tmp_path / "targets"
    shutil.copytree(place / "targets" / "train", folder)
    path = folder / "shard-00001.targets"
    arrays = safetensors.numpy.load_file(path)
    for name in change.keys() & arrays.keys():
        arrays[name][0] = change[name]
    safetensors.numpy.save_file(arrays, path)
    fit_targets(folder, changes={"shard-00001.targets": {name: change[name] for name in change.keys() - arrays.keys()}})
    assert run("verify", place / "data" / "train", "--targets", folder) == 1
    assert problem in capsys.readouterr().out


def test_every_recut_of_the_dataset_has_the_same_targets(place: Path, tmp_path: Path) -> None:
    recut = ("recut", place / "data", "--out")
    assert run(*recut, tmp_path / "bpe", "--rule", "bpe", "--tokenizer", place / "tokenizer") == 0
    assert run(*recut, tmp_path / "static", "--rule", "static", "--stride", 3) == 0
    assert run("convert", place / "data", "--to", "webdataset", "--out", tmp_path / "tar") == 0
    for name in ("bpe", "static", "tar"):
        assert run("verify", tmp_path / name, "--targets", place / "targets") == 0


def test_a_long_document_is_read_in_windows(place: Path) -> None:
    """Where it begins the whole document gives the same, and later the teacher sees less."""
    dataset = open_dataset(place / "data" / "train")
    short, long = (open_targets(place / name, dataset) for name in ("targets", "exact"))
    row = int(np.argmax(dataset.shard_index(1).tokens))
    one, two = short.row(1, row), long.row(1, row)
    np.testing.assert_array_equal(one[0][:8], two[0][:8, :8])
    assert not np.array_equal(one[0], two[0][:, :8])
    assert short.manifest.flops > long.manifest.flops, "windows overlap"
    assert long.manifest.largest_rest < short.manifest.largest_rest, "ids that no student has are all that is left"


def test_the_same_command_does_nothing_and_another_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("targets", place / "data", "--teacher", place / "teacher", "--context", 16, "--out", place / "targets")
    before = files(place / "targets")
    assert run(*line, "--dry-run") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert run(*line) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(*line, "--top", 3) == 2
    assert "identity.form.top" in capsys.readouterr().err
    assert run(*line, "--precision", "bfloat16") == 2
    assert "precision: recorded None, now 'bfloat16'" in capsys.readouterr().err
    assert files(place / "targets") == before


def test_a_teacher_in_bfloat16_says_nearly_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("targets", place / "data", "--teacher", place / "teacher", "--context", 4096, "--top", 256)
    assert run(*line, "--dtype", "float32", "--precision", "bfloat16", "--out", tmp_path / "out") == 0
    assert "FLOPs of the teacher in bfloat16  " in capsys.readouterr().out
    data = open_dataset(place / "data" / "validation")
    exact, rounded = (open_targets(folder / "validation", data) for folder in (place / "exact", tmp_path / "out"))
    assert rounded.identity.numerics is not None
    assert rounded.identity.numerics.dtype == "bfloat16"
    row = next(iter(data.rows(0)))
    length, said = len(row.text) + 1, []
    for one in (exact, rounded):
        symbols, logs = one.next_bytes(0, 0, 0, length)
        said.append(np.zeros((length, 512)))
        np.put_along_axis(said[-1], symbols.astype(np.int64), np.exp(logs[:, :-1]), 1)
    apart = np.abs(said[0] - said[1]).sum(1) / 2  # what each target has moved of its probability
    assert 0 < apart.mean() < 0.05


def test_what_is_no_teacher_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_folder(tmp_path, vocabulary=301)
    line = ("targets", place / "data", "--out", tmp_path / "out", "--teacher")
    assert run(*line, tmp_path / "teacher") == 2
    assert "301 ids" in capsys.readouterr().err
    shutil.copytree(place / "teacher", tmp_path / "bytes")
    config = json.loads((tmp_path / "bytes" / "config.json").read_text())
    (tmp_path / "bytes" / "config.json").write_text(json.dumps(config | {"vocabulary": 260}))
    assert run(*line, tmp_path / "bytes") == 2
    assert "reads bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.drill
def test_a_killed_command_goes_on_and_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    rows = [row for _ in range(4) for row in texts(40)]
    save_dataset(tmp_path / "data", [rows[n::12] for n in range(12)], SPACE)
    line = ["targets", tmp_path / "data", "--teacher", place / "teacher", "--context", 16]
    assert run(*line, "--out", tmp_path / "quiet") == 0
    wanted = files(tmp_path / "quiet")
    command = [sys.executable, "-m", "pipeline", *line, "--out", tmp_path / "out", "--workers", 2]
    unfinished = tmp_path / ".out.unfinished"
    for done in (0, 3):
        process = subprocess.Popen([*map(str, command)], env=environment(), stderr=subprocess.DEVNULL)
        while len(list(unfinished.glob("units/*.json"))) < done or not list(unfinished.glob("*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (tmp_path / "out").exists()
    kept = {path.name: file_sha256(path) for path in unfinished.glob("*.targets")}
    assert kept.items() <= wanted.items(), "a file has its name when it is whole"
    assert run(*command[3:]) == 0
    assert files(tmp_path / "out") == wanted
    assert run("verify", tmp_path / "data", "--targets", tmp_path / "out") == 0
