"""Files of checkpoints: any number of ranks reads them; foreign ones are refused whole and never unpickled."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.rank_checkpoints import settings_for, stage
from helpers.tiny_runs import STATIC, quiet_environment, run, tiny_data, torchrun
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader

from shared.errors import ModelFileError
from trainer.__main__ import main as command
from trainer.checkpoints.index import Index, read_index
from trainer.checkpoints.model import model_at
from trainer.distributed.world import started
from trainer.errors import CheckpointError
from trainer.provenance.checkpoint_folders import COMPLETE_NAME, INDEX_NAME, STATE_NAME, record_of

Results = dict[str, Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "data", STATIC)


@pytest.fixture(scope="module")
def chain(data: Path) -> tuple[Path, list[Results]]:
    """A run of one step on two ranks, then one on one, then one on three; what each has read and left."""
    folder = data.parent / "chain"
    return folder, [on_ranks(data, folder, 2), alone(data, folder), on_ranks(data, folder, 3)]


def on_ranks(data: Path, folder: Path, ranks: int) -> Results:
    out = folder.with_suffix(f".{ranks}")
    subprocess.run(
        torchrun("--module", "helpers.rank_checkpoints", data, folder, out, ranks=ranks),
        check=True,
        timeout=600,
        env=quiet_environment(),
    )
    return safetensors.torch.load_file(out)


def alone(data: Path, folder: Path) -> Results:
    settings = settings_for(data)
    with started(settings.run) as world:
        return stage(settings, world, folder)


def of(results: Results, prefix: str) -> Results:
    return {name.removeprefix(prefix): tensor for name, tensor in results.items() if name.startswith(prefix)}


@pytest.mark.drill
def test_two_ranks_then_one_then_three_read_what_was_left_bit_for_bit(chain: tuple[Path, list[Results]]) -> None:
    """AdamW, Muon, tables by row; the third rank holds no row of the tables."""
    for before, after in zip(chain[1], chain[1][1:]):
        left, read = of(before, "left/"), of(after, "read/")
        assert left.keys() == read.keys()
        assert any("squares" in name for name in left)
        assert any("momentum" in name for name in left)
        assert [name for name in left if not torch.equal(left[name], read[name])] == []
        assert any(not torch.equal(left[name], after[f"left/{name}"]) for name in left)


@pytest.mark.drill
def test_a_rank_without_rows_leaves_no_chunk(chain: tuple[Path, list[Results]]) -> None:
    index = read_index(chain[0] / "checkpoints" / "step-00000003")
    (name,) = (name for name in index.tensors if name.endswith("ngrams.weight") and name.startswith("model."))
    assert [chunk.file for chunk in index.tensors[name].chunks] == ["rank-00000.safetensors", "rank-00001.safetensors"]


@pytest.mark.drill
def test_torch_reads_the_files_without_our_index(chain: tuple[Path, list[Results]]) -> None:
    path = chain[0] / "checkpoints" / "step-00000003"
    theirs: dict[str, Any] = dict(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)
    ours = read_index(path).tensors
    assert {name: tuple(entry.size) for name, entry in theirs.items()} == {n: t.shape for n, t in ours.items()}


@pytest.fixture(scope="module")
def ended(data: Path) -> Path:
    """A run that has ended after two checkpoints."""
    out = data.parent / "run"
    assert run(data, out, "--checkpoint.keep", 2) == 0
    return out


@pytest.fixture
def checkpoint(ended: Path, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint of a run, the only one, and no model."""
    newest = sorted((ended / "checkpoints").glob("step-*"))[-1]
    copy = tmp_path / "run" / "checkpoints" / newest.name
    copy.mkdir(parents=True)
    for file in newest.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for name in ("identity.json", "config.json"):
        (tmp_path / "run" / name).write_bytes((ended / name).read_bytes())
    return copy


def vouch(path: Path, *names: str, version: int | None = 4) -> None:
    """Make COMPLETE fit what lies in the folder."""
    listed = names or [file.name for file in path.iterdir() if file.name != COMPLETE_NAME]
    files = {name: record_of((path / name).read_bytes()).model_dump() for name in listed}
    contents = {"files": files} | ({} if version is None else {"format_version": version})
    (path / COMPLETE_NAME).write_text(json.dumps(contents))


def change(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Edit the index of a checkpoint, and make COMPLETE fit."""

    def inflict(path: Path) -> None:
        index = json.loads((path / INDEX_NAME).read_text())
        edit(index["tensors"])
        (path / INDEX_NAME).write_text(json.dumps(index))
        vouch(path)

    return inflict


def matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    """The record of one matrix of the model."""
    return next(record for name, record in tensors.items() if name.startswith("model.") and len(record["shape"]) == 2)


def split(record: dict[str, Any], first: int, second: int) -> None:
    """Make two chunks of the one of a matrix: ``first`` rows, and those from ``second`` on."""
    rows, columns = record["shape"]
    file = record["chunks"][0]["file"]
    record["chunks"] = [
        {"file": file, "offsets": [0, 0], "lengths": [first, columns]},
        {"file": "rank-00001.safetensors", "offsets": [second, 0], "lengths": [rows - second, columns]},
    ]


def second_file(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, path / "rank-00001.safetensors")
    vouch(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "chunk missing": (change(lambda tensors: matrix(tensors).update(chunks=[])), "up to 0 in dimension 0"),
    "rows missing": (change(lambda tensors: split(matrix(tensors), 2, 3)), "leave a gap in dimension 0"),
    "rows twice": (change(lambda tensors: split(matrix(tensors), 3, 2)), "overlap in dimension 0"),
    "chunk twice": (change(lambda t: matrix(t)["chunks"].append(matrix(t)["chunks"][0])), "two chunks at one place"),
    "chunk outside": (change(lambda t: matrix(t)["chunks"][0].update(offsets=[1, 0])), "leave a gap in dimension 0"),
    "chunk negative": (change(lambda t: matrix(t)["chunks"][0].update(offsets=[-1, 0])), "greater than or equal to 0"),
    "file not listed": (
        change(lambda t: matrix(t)["chunks"][0].update(file="rank-00007.safetensors")),
        "is not a file",
    ),
    "file elsewhere": (change(lambda t: matrix(t)["chunks"][0].update(file="../x.safetensors")), "match pattern"),
    "huge": (change(lambda t: huge(matrix(t))), "bytes, its tensors would have"),
    "absurd": (change(lambda t: matrix(t).update(shape=[10**30, 1])), "less than 281474976710656"),
    "too many dimensions": (change(lambda t: matrix(t).update(shape=[1] * 9)), "at most 8 items"),
    "other dtype": (change(lambda tensors: matrix(tensors).update(dtype="BF16")), "is BF16"),
    "no such dtype": (change(lambda tensors: matrix(tensors).update(dtype="F4")), "match pattern"),
    "tensor missing": (change(lambda tensors: tensors.pop(next(iter(tensors)))), "has no tensor"),
    "tensor more": (change(lambda tensors: tensors.update({"model.x": matrix(tensors)})), "tensor (model.)?x"),
    "file without tensors": (second_file, "rank-00001.safetensors holds no tensor"),
    "no index": (lambda path: nested(path, INDEX_NAME), "index.json"),
    "no state": (lambda path: nested(path, STATE_NAME), "state.json"),
    "state not listed": (lambda path: vouch(path, INDEX_NAME, "rank-00000.safetensors"), "does not list state.json"),
    "another file listed": (lambda path: another(path), "lists x.pkl, which a checkpoint does not have"),
    "older": (
        lambda path: vouch(path, version=None),
        "COMPLETE has format version 1, this version of Patchwork reads version 4",
    ),
    "newer": (
        lambda path: vouch(path, version=5),
        "COMPLETE has format version 5, this version of Patchwork reads version 4",
    ),
}


def nested(path: Path, name: str) -> None:
    (path / name).write_text("[" * 10**5)
    vouch(path)


def another(path: Path) -> None:
    (path / "x.pkl").write_bytes(b"x")
    vouch(path)


def huge(record: dict[str, Any]) -> None:
    record.update(shape=[2**40, 2**6])
    record["chunks"][0]["lengths"] = [2**40, 2**6]


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_checkpoint_cannot_be_is_refused_in_one_line(
    checkpoint: Path, data: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inflict, said = REFUSED[what]
    inflict(checkpoint)
    with pytest.raises((ModelFileError, CheckpointError), match=said) as refusal, model_at(checkpoint):
        pass
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("what", ["rows missing", "tensor more", "tensor missing", "other dtype", "older", "no state"])
def test_a_run_that_would_continue_from_it_is_refused_in_one_line(
    checkpoint: Path, data: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inflict, said = REFUSED[what]
    inflict(checkpoint)
    assert run(data, checkpoint.parents[1]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert re.search(said, line)
    assert checkpoint.is_dir()  # not set aside: it is no damage


@dataclass
class Trap:
    """A pickle that makes a folder when it is read."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Watch:
    """What has been opened and unpickled since it was begun; hooks cannot be taken away."""

    def __init__(self) -> None:
        self.on = False
        self.opened: set[str] = set()
        self.found: set[str] = set()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "open":
            self.opened.add(
                Path(os.fsdecode(arguments[0])).name if isinstance(arguments[0], str | bytes | Path) else ""
            )
        elif self.on and event == "pickle.find_class":
            self.found.add(f"{arguments[0]}.{arguments[1]}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.opened, self.found, self.on = set(), set(), True
        try:
            yield
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


PLANTED = [".metadata", "x.pkl", "rank-00000.distcp", "rank-00009.safetensors", ".hidden", INDEX_NAME, STATE_NAME]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", [*PLANTED, "rank-00000.safetensors", COMPLETE_NAME])
def test_a_pickle_in_the_folder_is_never_unpickled_on_any_way(
    checkpoint: Path, data: Path, tmp_path: Path, watch: Watch, name: str, listed: bool
) -> None:
    """Nor opened, where COMPLETE does not list it. Where it does, its sha256 is looked at."""
    there = (checkpoint / name).exists()
    sprung = tmp_path / "sprung"
    (checkpoint / name).write_bytes(pickle.dumps(Trap(sprung)))
    if name != COMPLETE_NAME and (listed or there):
        files = [file.name for file in checkpoint.iterdir() if file.name != COMPLETE_NAME]
        vouch(checkpoint, *(file for file in files if listed or file != name))
    out = checkpoint.parents[1]
    ways: dict[str, Callable[[], int]] = {
        "start.model": lambda: run(data, tmp_path / "other", "--start.model", checkpoint),
        "evaluate": lambda: command(["evaluate", str(checkpoint), str(data)]),
        "evaluate a run": lambda: command(["evaluate", str(out), str(data)]),
        "export-hf": lambda: command(["export-hf", str(checkpoint), str(tmp_path / "hf")]),
        "generate": lambda: command(["generate", str(checkpoint), "--prompt", "a"]),
        "report": lambda: command(["report", str(out), "--out", str(tmp_path / "page.html")]),
        "resume": lambda: run(data, out),
    }
    for way, call in ways.items():
        with watch():
            code = call()
        assert code != 0, way
        assert not sprung.exists(), way
        assert not [found for found in watch.found if not found.startswith("torch.distributed.")], way
        if not listed and not there:
            assert name not in watch.opened, way


def test_a_good_checkpoint_unpickles_nothing(checkpoint: Path, data: Path, watch: Watch) -> None:
    with watch(), model_at(checkpoint):
        pass
    assert watch.found == set()
    assert {COMPLETE_NAME, INDEX_NAME, STATE_NAME} <= watch.opened


GRIDS: dict[str, tuple[list[int], list[tuple[list[int], list[int]]], bool]] = {
    "scalar": ([], [([], [])], True),
    "scalar twice": ([], [([], []), ([], [])], False),
    "empty": ([0, 4], [], True),
    "empty with a chunk": ([0, 4], [([0, 0], [0, 4])], False),
    "rows": ([5, 2], [([0, 0], [3, 2]), ([3, 0], [2, 2])], True),
    "a grid": ([2, 2], [([i, j], [1, 1]) for i in (0, 1) for j in (0, 1)], True),
    "three of four": ([2, 2], [([0, 0], [1, 1]), ([0, 1], [1, 1]), ([1, 0], [1, 1])], False),
    "no grid": ([2, 2], [([0, 0], [1, 2]), ([1, 0], [1, 1]), ([1, 1], [1, 1])], False),
    "beyond": ([5], [([0], [6])], False),
    "dimensions": ([4], [([0, 0], [4, 1])], False),
    "a row of nothing": ([4], [([0], [4]), ([4], [0])], False),
}


@pytest.mark.parametrize("what", GRIDS)
def test_chunks_cover_each_element_once(what: str) -> None:
    shape, places, good = GRIDS[what]
    chunks = [{"file": f"{n}.x", "offsets": place, "lengths": size} for n, (place, size) in enumerate(places)]
    index = Index.model_validate({"tensors": {"t": {"dtype": "F32", "shape": shape, "chunks": chunks}}})
    assert (index.tensors["t"].gaps() is None) == good
