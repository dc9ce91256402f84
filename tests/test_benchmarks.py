"""Every benchmark runs: each once at its smallest size, whose figures say nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.distillation_examples import study_folder
from helpers.model_folders import entropy_model_folder
from helpers.pipeline_helpers import command, some_records, write_jsonl

FOLDER = Path(__file__).parent / "benchmarks"
SMALLEST = {
    "against_transformers": "--quick --bytes 64 --rounds 1",
    "chaos": "1 0.3",
    "corpus_scale": "1000 --runs 1 --of-a-shard 256",
    "counts": "--megabytes 0.3 --memory 384 --scored 20000 --distinct",
    "faults": "1",
    "generation": "--threads 1 --rounds 1 --bytes 8 --prompts 256",
    "inference": "--rows 2 --prompts 256 --bytes 4 --rounds 1 --weights float32 --peers",
    "loader": "1",
    "mixing": "1 2 4000 1000000",
    "model": "--documents 2 --tokens 4000 --repeats 1",
    "optimizers": "--steps 2 --lr 1e-3",
    "overhead": "1",
    "parallel": "--tokens 256 --rounds 1",
    "pipeline": "0.1 0.01",
    "planning": "--bytes 100000 --files 10 --texts 1000",
    "preprocessing": "0.1 --rounds 1",
    "routing": "--tokens 600 --rounds 1",
    "scoring": "--documents 2",
    "shards": "1",
    "streaming": "{dataset} --bytes 1000",
    "tables": "4000 1 --rows 2000",
    "train": "",
    "training_step": "--quick --bytes 64 --memory 256",
}
STUDIES = {
    "distillation": "{study} --bytes 12000 --share 0.4 --seeds 0 1",
    "distillation_inputs": "{study} --bytes 4000 --seeds 0 1",
    "in_sample": "{dataset} --folds 2 --least 1",
}
PROGRAMS = {f"bench_{name}": words for name, words in SMALLEST.items()}
PROGRAMS |= {f"study_{name}": words for name, words in STUDIES.items()}


def test_no_benchmark_is_left_out() -> None:
    assert sorted(PROGRAMS) == sorted(path.stem for path in FOLDER.glob("*_*.py") if path.stem != "training_example")


def scored(folder: Path) -> Path:
    """Both datasets of a run whose patches a model found."""
    lines, model, out = folder / "a.jsonl", entropy_model_folder(folder / "model"), folder / "out"
    write_jsonl(lines, some_records(40))
    options = ["--rule", "entropy", "--theta", 3.0, "--entropy-model", model, "--sidecar", "uint8"]
    made = command("preprocess", lines, "--out", out, *options, "--executor", "inline", "--workers", 1)
    assert made.returncode == 0, made.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    arguments = PROGRAMS[name]
    if "{dataset}" in arguments:
        arguments = arguments.format(dataset=scored(tmp_path))
    if "{study}" in arguments:
        arguments = arguments.format(study=study_folder(tmp_path / "study"))
    line = [sys.executable, str(FOLDER / f"{name}.py"), *arguments.split()]
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(line, cwd=FOLDER.parents[1], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
