"""Safetensors files read and written one tensor at a time: the bytes of the library's own writer, in bounded memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from shared.errors import ModelFileError
from shared.model_folder.tensors import INDEX_FILE, TensorFolder, write_sharded, write_tensors


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(7, 5),
        "a": torch.randn(3),
        "scalar": torch.randn(()),
        "empty": torch.zeros(0, 4),
        "ä": torch.randn(2, 3, 4),
    }


def plan_of(state: dict[str, Tensor], dtype: torch.dtype | None = None) -> list:
    return [(name, tuple(tensor.shape), dtype or tensor.dtype) for name, tensor in state.items()]


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_has_the_bytes_of_the_librarys_own_writer(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    state = tensors()
    write_tensors(tmp_path / "ours", plan_of(state), state.__getitem__, metadata)
    safetensors.torch.save_file(state, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_are_converted_to_the_planned_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    state = tensors()
    write_tensors(tmp_path / "file.safetensors", plan_of(state, dtype), state.__getitem__)
    folder = TensorFolder(tmp_path / "file.safetensors")
    assert folder.names() == sorted(state)
    for name, tensor in state.items():
        assert (folder.shape(name), folder.dtype(name)) == (tuple(tensor.shape), dtype)
        assert torch.equal(folder.read(name), tensor.to(dtype))


def test_views_and_blocks_of_rows_are_written_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.model_folder.tensors.BLOCK_BYTES", 64)
    whole = torch.randn(40, 12)
    made = {"rows": whole.split([3, 0, 30, 7]), "transposed": whole.T, "every second": whole[:, ::2], "flat": whole}
    wanted = {name: torch.cat(list(part)) if isinstance(part, tuple) else part for name, part in made.items()}
    write_tensors(tmp_path / "model.safetensors", plan_of(wanted), made.__getitem__)
    folder = TensorFolder(tmp_path)
    assert all(torch.equal(folder.read(name), wanted[name]) for name in wanted)
    assert torch.equal(folder.read("flat", slice(5, 9)), whole[5:9])


def test_shards_are_filled_in_the_order_of_the_plan_and_read_as_one(tmp_path: Path) -> None:
    state = tensors()
    files = write_sharded(tmp_path, plan_of(state), state.__getitem__, shard_bytes=160)
    assert [path.name for path in files] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    assert [name for name, place in index["weight_map"].items() if "00002-of" in place] == ["ä"]
    folder = TensorFolder(tmp_path)
    assert folder.files() == files
    assert all(torch.equal(folder.read(name), tensor) for name, tensor in state.items())


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    state = tensors()
    assert write_sharded(tmp_path, plan_of(state), state.__getitem__, 1 << 20) == [tmp_path / "model.safetensors"]
    assert not (tmp_path / INDEX_FILE).exists()


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    state = tensors()
    with pytest.raises(KeyError):
        write_tensors(tmp_path / "model.safetensors", [*plan_of(state), ("x", (1,), torch.float32)], state.__getitem__)
    assert list(tmp_path.iterdir()) == []


def sharded(folder: Path) -> None:
    state = tensors()
    write_sharded(folder, plan_of(state), state.__getitem__, shard_bytes=160)


def edit_index(folder: Path, edit) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    edit(index)
    (folder / INDEX_FILE).write_text(json.dumps(index))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
DAMAGE = {
    "a cut shard": (lambda folder: cut(folder / SECOND), "00002.*not a whole safetensors"),
    "a missing shard": (lambda folder: (folder / FIRST).unlink(), "00001.* is missing"),
    "an index that is no JSON": (lambda folder: (folder / INDEX_FILE).write_text("{"), "index.json is not an index"),
    "an index without places": (lambda folder: edit_index(folder, dict.clear), "index.json is not an index"),
    "an index that points elsewhere": (
        lambda folder: edit_index(folder, lambda index: index["weight_map"].update(a="../a.safetensors")),
        "index.json is not an index",
    ),
    "an index that is wrong": (
        lambda folder: edit_index(folder, lambda index: index["weight_map"].update(z=FIRST)),
        "tensor z is in model-00001",
    ),
    "no weights": (lambda folder: (folder / INDEX_FILE).unlink(), "neither model.safetensors nor"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    sharded(tmp_path)
    do, words = DAMAGE[damage]
    do(tmp_path)
    with pytest.raises(ModelFileError, match=words) as caught:
        TensorFolder(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    with pytest.raises(ModelFileError, match=re.escape(f"{tmp_path}: tensor c ")):
        TensorFolder(tmp_path).read("c")
    with pytest.raises(ModelFileError, match="there is no such file"):
        TensorFolder(tmp_path / "x.safetensors")


COPY = """
import sys
import torch
from shared.model_folder.tensors import TensorFolder, write_tensors

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10

source = TensorFolder(sys.argv[1])
before, peak = anonymous(), 0

def produce(name):
    global peak
    for start in range(0, source.shape(name)[0], 1 << 16):
        yield source.read(name, slice(start, start + (1 << 16)))
        peak = max(peak, anonymous())

write_tensors(sys.argv[2], [(n, source.shape(n), torch.bfloat16) for n in source.names()], produce)
print(peak - before)
"""


@pytest.mark.drill
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_file_is_copied_in_a_fraction_of_its_size(tmp_path: Path) -> None:
    table = torch.zeros(1 << 20, 32)
    safetensors.torch.save_file({"table": table}, tmp_path / "in.safetensors")
    files = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    done = subprocess.run([sys.executable, "-c", COPY, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64, f"{done.stdout} MB for a table of 128 MB"
    assert TensorFolder(files[1]).dtype("table") == torch.bfloat16
