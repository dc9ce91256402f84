"""What the tests of recut, merge, split and convert share: runs of a small entropy model, and comparing folders."""

from pathlib import Path

import torch

from helpers.pipeline_helpers import preprocess, some_records, write_jsonl
from pipeline.__main__ import main
from pipeline.rewriting.rewrite import REQUEST_FILE
from shared.io.files.digests import file_sha256
from shared.model_folder.files import build_model, save_model
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise

SCORED = ("--executor", "inline", "--workers", "1", "--stream-length", "512", "--threads", "1", "--split-bytes", "2500")


REWRITING = {"recut", "merge", "split", "convert"}


def run(*arguments: object) -> int:
    """A command; with one process if it says nothing of them."""
    one = ("--workers", "1") if arguments[0] in REWRITING and "--workers" not in arguments else ()
    return main([*map(str, arguments), *one])


def make_place(folder: Path) -> Path:
    """A folder with a corpus and an entropy model whose entropies are spread from 0 to 3.5 nats."""
    folder.mkdir(exist_ok=True)
    records = some_records(50, words=12)
    for record in records[::3]:  # characters of several bytes
        record["text"] = record["text"].replace("x", "é한")
    write_jsonl(folder / "a.jsonl", records)
    settings = EntropyModelSettings(width=32, layers=2, heads=2, window=64, feed_forward=64)
    model = build_model(settings)
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    save_model(model, settings, folder / "model")
    return folder


def scored(place: Path, out: Path, *options: object) -> Path:
    """A run of the corpus that keeps entropies."""
    fixed = ("--entropy-model", place / "model", "--validation-fraction", "0.3", "--meta", *SCORED)
    assert preprocess(place / "a.jsonl", "--out", out, *fixed, *options) == 0
    return out


def files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a result, but for the record of the command."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != REQUEST_FILE)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in found}


def sides(out: Path) -> dict[str, str]:
    """The same of train/ and validation/ alone: what a run and a result have in common."""
    return {f"{name}/{path}": sha for name in ("train", "validation") for path, sha in files(out / name).items()}
