"""`python -m trainer evaluate`: what a model scores on datasets, by subset and document, and what that costs."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import ConfigError
from shared.files import Output, add_overwrite
from shared.shards.dataset import Dataset, open_dataset
from shared.shards.manifest import MANIFEST_NAME
from shared.terminal import one_line
from trainer.data.splits import TRAIN_SPLIT, VALIDATION_SPLIT
from trainer.evaluation.noise import NOISES
from trainer.evaluation.patch_size import patch_size_warning
from trainer.observing.progress import Progress, clock, quantity

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.measured import Measured
    from trainer.evaluation.scores import Column

SECONDS_BETWEEN_LINES = 10.0
GENERATOR = "patchwork evaluate"
FIGURES = re.compile(rb'\{\n "generator": "patchwork evaluate",')
DOCUMENTS = re.compile(rb'\{"dataset": "(?:[^"\\]|\\.)*", "id": ')
"""How the files begin that are written, by which `shared.files.Output` knows them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of evaluate."""
    parser.add_argument("model", type=Path, help="model folder, or a run or checkpoint")
    parser.add_argument(
        "datasets",
        type=Path,
        nargs="+",
        metavar="dataset",
        help="datasets patched as the model learnt, or folders that hold train/ and validation/",
    )
    beside = parser.add_argument_group("what stands beside the model's figures")
    beside.add_argument(
        "--baselines",
        action="store_true",
        help="the entropy model's own figure, an order-2 byte model counted on the training split, and xz -9",
    )
    beside.add_argument("--train", type=Path, help="training split for the order-2 model, if it is not beside DATASET")
    beside.add_argument(
        "--beside",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("MODEL", "DATASET"),
        help="another model on the same documents, cut as it learnt (repeatable)",
    )
    beside.add_argument("--compression", action="store_true", help="gzip -9, zstd -19 and xz -9 on the same bytes")
    text = parser.add_argument_group("other texts")
    text.add_argument(
        "--noise",
        nargs="+",
        choices=("all", *NOISES),
        default=[],
        help="bits per byte of the documents with these noises, and of their halves after each other",
    )
    text.add_argument("--samples", type=int, metavar="N", help="write N texts, and say how much of them is UTF-8")
    text.add_argument(
        "--sample-bytes", type=int, default=256, metavar="N", help="bytes of such a text at most (default %(default)s)"
    )
    running = parser.add_argument_group("how it is computed, and what is written")
    running.add_argument(
        "--tokens", type=int, default=16384, help="tokens of a pack; longer documents are cut (default %(default)s)"
    )
    running.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")
    running.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    running.add_argument("--threads", type=int, help="CPU threads; the machine's default if not given")
    running.add_argument("--documents", type=Path, metavar="FILE.jsonl", help="write what each document scores")
    running.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    add_overwrite(running)


def run(arguments: argparse.Namespace) -> int:
    """Print a table for each dataset; returns the exit code."""
    if arguments.beside and len(arguments.datasets) > 1:
        raise ConfigError("--beside puts models on the documents of one dataset side by side; name one DATASET")
    for option in ("samples", "sample_bytes"):
        if (value := getattr(arguments, option)) is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')}: {value} is too small")
    documents = arguments.documents and Output(arguments.documents, DOCUMENTS, arguments.overwrite)
    json_file = arguments.json and Output(arguments.json, FIGURES, arguments.overwrite)
    datasets = [open_dataset(split_folder(path, VALIDATION_SPLIT)) for path in arguments.datasets]
    trains = [open_dataset(train_folder(arguments, path)) for path in arguments.datasets] if arguments.baselines else []

    import torch

    from trainer.checkpoints.model import model_at

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with model_at(arguments.model) as model:
        evaluator = Evaluator(arguments, model, torch.device(arguments.device), datasets)
        reports, records = [], []
        for number, dataset in enumerate(datasets):
            if len(datasets) > 1:
                print(one_line(f"{dataset.where}:"))
            found, figures = evaluator.scores(dataset, trains[number] if trains else None)
            if arguments.documents:
                records += [{"dataset": dataset.where, **record} for record in found.document_records()]
            if arguments.compression:
                figures["compression"] = evaluator.compression(found)
            if arguments.noise:
                figures["noise"] = evaluator.noise(dataset)
            if arguments.samples:
                figures["samples"] = evaluator.samples(dataset)
            reports.append(figures)
    if documents:
        documents.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    if json_file:
        content = {"generator": GENERATOR, "model": str(arguments.model), "datasets": reports}
        json_file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


class Evaluator:
    """Scores model folders as a command line asks for it, with a progress line."""

    def __init__(
        self, arguments: argparse.Namespace, model: Path, device: "torch.device", datasets: Sequence[Dataset]
    ) -> None:
        """``model``: the folder of the model that is evaluated. Raises ConfigError where it, or data, cannot be used as
        is asked for, before anything is scored."""
        self._arguments, self._model, self._device = arguments, model, device
        if arguments.noise:
            from trainer.evaluation.robustness import check_plain

            for dataset in datasets:
                check_plain(dataset)
        if arguments.samples:
            from trainer.generation.generator import Generator

            self._generator = Generator(model, device, arguments.threads)
        self._progress = Progress(silent=False, every_seconds=SECONDS_BETWEEN_LINES)

    def scores(self, dataset: Dataset, train: Dataset | None) -> "tuple[Measured, dict[str, Any]]":
        """The model on a dataset, printed beside what it is compared with."""
        from trainer.evaluation.scores import table

        found = self.measure(self._model, dataset)
        others = [self.measure_beside(dataset, *pair) for pair in self._arguments.beside]
        baselines = self.baselines(dataset, train) if train is not None else []
        print(table(found.scores, [*found.costs(), *baselines, *(column for one in others for column in one.beside())]))
        return found, report(found, baselines, others)

    def measure(self, folder: Path, dataset: Dataset) -> "Measured":
        """A model on a dataset."""
        from trainer.evaluation.measured import measure

        if warning := patch_size_warning(folder, dataset):
            print(warning, file=sys.stderr)
        text = dataset.manifest.totals.bytes
        self._progress.begin(0.0)
        tokens, dtype = self._arguments.tokens, self._arguments.dtype

        def heard(share: float) -> None:
            self._progress.show(share, f"{quantity(share * text)}B of {quantity(text)}B", dataset.where)

        began = time.monotonic()
        found = measure(folder, dataset, tokens, self._device, dtype, heard)
        seconds = time.monotonic() - began
        rate = quantity(text / max(seconds, 1e-9))
        self._progress.say(f"{dataset.where}: {quantity(text)}B scored in {clock(seconds)}, {rate}B/s")
        return found

    def measure_beside(self, dataset: Dataset, folder: Path, path: Path) -> "Measured":
        """Another model on another cutting of the same documents. Raises IdentityError where they are others."""
        from trainer.checkpoints.model import model_at
        from trainer.evaluation.measured import check_same_documents, model_name

        other = open_dataset(split_folder(path, VALIDATION_SPLIT))
        check_same_documents(dataset, other)
        with model_at(folder) as model:
            return replace(self.measure(model, other), name=model_name(folder))

    def baselines(self, dataset: Dataset, train: Dataset) -> "list[Column]":
        """What the model has to beat."""
        from trainer.evaluation.baselines import Order2Model, patcher_baseline, xz_baseline

        arguments = self._arguments
        own = patcher_baseline(self._model, dataset, arguments.tokens, self._device, arguments.dtype)
        return [*own, Order2Model(train).baseline(dataset), xz_baseline(dataset)]

    def compression(self, found: "Measured") -> dict[str, Any]:
        """Compressors on the same bytes, printed."""
        from trainer.evaluation.compression import compress, table
        from trainer.evaluation.scores import total_of

        compressed = compress(found.dataset)
        print(f"\n{table(compressed, total_of(found.scores).bits_per_byte)}")
        return {one.compressor: {"together": one.together, "alone": one.alone} for one in compressed}

    def noise(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Bits per byte of noised texts, printed."""
        from trainer.evaluation.robustness import robustness, table
        from trainer.evaluation.texts import TextScorer

        arguments = self._arguments
        noises = [noise for noise in NOISES if noise in arguments.noise or "all" in arguments.noise]
        scorer = TextScorer(self._model, self._device, arguments.dtype, arguments.tokens)
        self._progress.begin(0.0)
        found = robustness(scorer, dataset, noises, lambda share: self._progress.show(share, "noise"))
        self._progress.say(f"{len(noises)} noises on {dataset.where}")
        print(f"\n{table(found)}")
        return [asdict(one) for one in found]

    def samples(self, dataset: Dataset) -> dict[str, Any]:
        """Whether what the model writes is UTF-8, printed."""
        from trainer.evaluation.validity import prompts_from, validity

        arguments = self._arguments
        prompts = prompts_from(dataset, arguments.samples)
        self._progress.begin(0.0)
        found = validity(
            self._generator,
            prompts,
            arguments.sample_bytes,
            lambda done: self._progress.show(done / len(prompts), "samples"),
        )
        self._progress.say(f"{found.bytes:,} bytes written")
        print(f"\n{found}")
        return asdict(found)


def split_folder(path: Path, split: str) -> Path:
    """The dataset at a path: itself, or the split of that name inside."""
    return path if (path / MANIFEST_NAME).exists() or not (path / split).is_dir() else path / split


def train_folder(arguments: argparse.Namespace, dataset: Path) -> Path:
    """Where the training split is. Raises ConfigError when it was not named and is not in its usual place."""
    if arguments.train:
        return split_folder(arguments.train, TRAIN_SPLIT)
    validation = split_folder(dataset, VALIDATION_SPLIT)
    beside = validation.parent / TRAIN_SPLIT
    if not (beside / MANIFEST_NAME).exists():
        raise ConfigError(f"--baselines needs the training split, and {beside} is not one; name it with --train")
    return beside


def report(found: "Measured", baselines: "list[Column]", others: "list[Measured]") -> dict[str, Any]:
    """The figures of one dataset as JSON: all, then by subset."""
    figures = found.figures()
    for name, own in [(None, figures["total"]), *figures["subsets"].items()]:
        values = {one.heading: one.total if name is None else one.by_subset.get(name) for one in baselines}
        own["baselines"] = {key: value for key, value in values.items() if value is not None and not isnan(value)}
    return {
        "dataset": found.dataset.where,
        "fingerprint": found.dataset.fingerprint,
        **figures,
        "beside": [
            {"model": other.name, "dataset": other.dataset.where, "fingerprint": other.dataset.fingerprint}
            | other.figures()
            for other in others
        ],
    }
