"""A model whose patches a count-based entropy model found: planned, trained, resumed, scored and written with."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.counted_models import counted_folder
from helpers.pipeline_helpers import preprocess, some_records, write_jsonl
from helpers.tiny_runs import run
from safetensors.torch import load_file, save_file

from shared.model_folder.identity import model_sha256
from shared.shards.open import open_dataset
from trainer.__main__ import main
from trainer.generation.generator import Generator
from trainer.generation.settings import GenerateSettings


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a trained model, its data and its entropy model."""
    folder = tmp_path_factory.mktemp("counted")
    records = some_records(80, words=12)
    write_jsonl(folder / "a.jsonl", records)
    counted_folder(folder / "counts", [record["text"].encode() for record in records[::2]], 4)
    options = ("--entropy-model", folder / "counts", "--rule", "entropy", "--theta", 0.8, "--executor", "inline")
    cut = ("--max-length", 64, "--validation-fraction", 0.2)
    assert preprocess(folder / "a.jsonl", "--out", folder / "data", *options, *cut) == 0
    assert run(folder / "data", folder / "run") == 0
    return folder


def test_a_run_carries_it(place) -> None:
    model = place / "run" / "model"
    assert model_sha256(model / "entropy_model") == model_sha256(place / "counts")
    identity = json.loads((model / "identity.json").read_text())
    assert identity["entropy_model"] == {"sha256": model_sha256(place / "counts"), "numerics": None}


def test_a_plan_counts_no_flops_for_it(place, capsys) -> None:
    assert run(place / "data", place / "plan", "--plan") == 0
    assert "finding patches" not in capsys.readouterr().out


def test_boundaries_found_while_writing_are_those_of_the_data(place) -> None:
    generator = Generator(place / "run" / "model")
    rows = list(open_dataset(place / "data" / "validation").rows())[:6]
    settings = GenerateSettings(length=4)
    starts: dict[int, list[bool]] = {number: [] for number in range(len(rows))}
    alone = [generator.texts([row.text], settings)[0] for row in rows]
    for number, piece in generator.write_batch([row.text for row in rows], settings):
        if piece.from_prompt:
            starts[number].append(piece.starts)
    for number, row in enumerate(rows):
        inside = np.zeros(len(row.text) + 2, bool)
        inside[np.cumsum(row.patch_lengths.astype(int))[:-1]] = True
        assert starts[number] == inside[1:-1].tolist()
    assert generator.texts([row.text for row in rows], settings) == alone


def test_it_is_scored_on_its_data_and_on_text(place, tmp_path, capsys) -> None:
    model, data = str(place / "run" / "model"), str(place / "data")
    assert main(["evaluate", model, data, "--baselines", "--json", str(tmp_path / "a.json")]) == 0
    total = capsys.readouterr().out.splitlines()[3].split()
    assert total[0] == "total"
    assert "0.000" in total[4:]  # MFLOPs a byte to find patches
    (tmp_path / "t.txt").write_text("w1x2 w3x4 " * 20)
    assert main(["evaluate", model, str(tmp_path / "t.txt")]) == 0


def test_rows_that_are_drafted_and_joined_are_as_alone(place) -> None:
    """Drafts are read before they are kept, and rows end at different times."""
    generator = Generator(place / "run" / "model")
    prompts = [row.text[: 20 + 7 * n] for n, row in enumerate(open_dataset(place / "data" / "validation").rows())][:5]
    alone = [generator.texts([prompt], GenerateSettings(length=24))[0] for prompt in prompts]
    assert generator.texts(prompts, GenerateSettings(length=24)) == alone
    assert generator.texts(prompts, GenerateSettings(length=24, draft=4)) == alone


def test_it_answers_tasks(place, tmp_path, capsys) -> None:
    task = tmp_path / "next.jsonl"
    task.write_text('{"context": "w1x2 w3", "choices": ["x4 w5", "%$"], "answer": 0}\n' * 3)
    assert main(["tasks", str(place / "run" / "model"), str(task), "--device", "cpu"]) == 0
    assert "next" in capsys.readouterr().out


def test_a_dataset_that_another_table_has_cut_is_refused(place, tmp_path, capsys) -> None:
    counted_folder(tmp_path / "counts", [b"another text"], 2)
    options = ("--entropy-model", tmp_path / "counts", "--rule", "entropy", "--theta", 0.8, "--executor", "inline")
    assert preprocess(place / "a.jsonl", "--out", tmp_path / "data", *options, "--max-length", 64) == 0
    model = place / "run" / "model"
    capsys.readouterr()
    assert main(["evaluate", str(model), str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert f"entropy model {model_sha256(tmp_path / 'counts')[:12]}, not {model_sha256(place / 'counts')[:12]}" in said
    assert "--dtype" not in said  # of the command that cuts it so
    assert main(["evaluate", str(model), str(tmp_path / "data"), "--recut"]) == 0


def test_it_is_not_trained(place, capsys) -> None:
    capsys.readouterr()
    assert run(place / "data", place / "untrained", model={"kind": "counts", "order": 3}) == 2
    said = capsys.readouterr().err
    assert "python -m pipeline count" in said
    assert len(said.strip().splitlines()) == 1


def test_what_needs_a_network_refuses_it_in_a_line(place, tmp_path, capsys) -> None:
    counts = str(place / "counts")
    for line in (
        ["generate", counts, "--prompt", "a"],
        ["evaluate", counts, str(place / "data")],
        ["export-hf", counts, str(tmp_path / "out")],
    ):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert "is an entropy model that counts" in error or "identity.json" in error, error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_model_whose_patches_it_finds_takes_its_table_along_and_comes_back(place, tmp_path, capsys) -> None:
    model = place / "run" / "model"
    assert main(["export-hf", str(model), str(tmp_path / "hf")]) == 0
    assert "an entropy model that counts" in capsys.readouterr().out
    assert main(["import-hf", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    assert "entropy model that counts, contexts of up to" in capsys.readouterr().out
    for name in ("model.safetensors", "entropy_model/model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("name", ["keys", "entropies", "root"])
def test_a_table_that_was_cut_there_is_refused_by_its_tensor(place, tmp_path, capsys, name) -> None:
    assert main(["export-hf", str(place / "run" / "model"), str(tmp_path / "hf")]) == 0
    path = tmp_path / "hf/model.safetensors"
    tensors = load_file(path)
    theirs = f"model.count_table.{name}"
    tensors[theirs] = tensors[theirs][:-1].clone() if name != "root" else torch.zeros(2, dtype=torch.int32)
    save_file(tensors, path)
    assert main(["import-hf", str(tmp_path / "hf"), str(tmp_path / "back")]) == 2
    assert re.search(r"model\.count_table\.(entropies|root) is \[\d+\], not \[\d+\]", capsys.readouterr().err)
    assert not (tmp_path / "back").exists()
