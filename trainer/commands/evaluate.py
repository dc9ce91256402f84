"""What a model scores on datasets, by subset and document, and what that costs.

Example:
  python -m trainer evaluate runs/stdlib/blt runs/stdlib/patched --baselines
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.io.display.progress import Progress
from shared.io.display.quantities import clock, quantity
from shared.io.display.terminal import show, show_lines
from shared.io.files.outputs import add_overwrite, output_if_given
from shared.model_folder.identity import load_settings
from shared.shards.dataset import Dataset
from shared.shards.manifest import MANIFEST_NAME
from shared.shards.open import open_dataset
from trainer.commands.running import (
    Running,
    add_as,
    add_model,
    add_scoring,
    add_subset,
    add_weights,
    chosen_subset,
    opened_model,
    running_model,
    whole,
)
from trainer.data.splits import TRAIN_SPLIT, VALIDATION_SPLIT
from trainer.evaluation.robustness.noise import NOISES
from trainer.evaluation.text_files import STDIN, is_text, read_texts
from trainer.provenance.identity import model_identity
from trainer.provenance.patch_size import patch_size_warning
from trainer.provenance.thresholds import one_threshold, patching_for

# What imports torch is imported where it is used: `--help` and errors in options answer at once.
if TYPE_CHECKING:
    from shared.patching.settings import PatchingSettings
    from shared.shards.in_memory import Documents
    from trainer.evaluation.report import Measured
    from trainer.evaluation.scores import Column

SECONDS_BETWEEN_LINES = 10.0
"""Of progress where there is no terminal: in a log file."""
GENERATOR = "patchwork evaluate"
FIGURES = re.compile(rb'\{\n "generator": "patchwork evaluate",')
DOCUMENTS = re.compile(rb'\{"dataset": "(?:[^"\\]|\\.)*", "id": ')
"""How the files begin that are written, by which `shared.io.files.outputs.Output` knows them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of evaluate."""
    add_model(parser)
    parser.add_argument(
        "datasets",
        type=Path,
        nargs="+",
        metavar="DATA",
        help="datasets cut into patches as the model was trained, or folders above train/ and validation/; or files of "
        "text, which the model cuts itself: .jsonl, .parquet and .arrow with a field `text`, any other file as one "
        "document, - for standard input",
    )
    patching = parser.add_argument_group("how the text is cut into patches")
    patching.add_argument(
        "--recut", action="store_true", help="cut the text of DATA with the model's own rule, however it was cut before"
    )
    add_as(patching)
    add_subset(patching)
    beside = parser.add_argument_group("what is shown beside the model's scores")
    beside.add_argument(
        "--baselines",
        action="store_true",
        help="the entropy model's own score, an order-2 byte model counted on the training split, and xz -9",
    )
    beside.add_argument("--train", type=Path, help="training split for the order-2 model, if it is not beside DATA")
    beside.add_argument(
        "--beside",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("MODEL", "DATA"),
        help="another model on the same documents, in a dataset cut as it was trained, or a file (repeatable)",
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
    text.add_argument("--samples", type=whole(1), metavar="N", help="write N texts, and say how much of them is UTF-8")
    text.add_argument("--sample-bytes", type=whole(1), default=256, metavar="N", help="bytes of such a text at most")
    running = parser.add_argument_group("how it is computed, and what is written")
    add_scoring(running)
    add_weights(running)
    running.add_argument("--documents", type=Path, metavar="FILE.jsonl", help="write what each document scores")
    running.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    add_overwrite(running)


def run(arguments: argparse.Namespace) -> int:
    """Print a table for each dataset; returns the exit code."""
    if arguments.beside and len(arguments.datasets) > 1:
        raise ConfigError("--beside puts models on the documents of one dataset side by side; name one DATASET")
    if arguments.weights != "float32" and arguments.dtype != "float32":
        raise ConfigError(f"--weights {arguments.weights} goes with --dtype float32, the precision between products")
    documents = output_if_given(arguments, "documents", DOCUMENTS)
    json_file = output_if_given(arguments, "json", FIGURES)
    read = cache(documents_at)  # each file once, since standard input can be read only once
    given = [read(path) for path in arguments.datasets]
    beside = [(model, read(path)) for model, path in arguments.beside]
    train_splits = (
        [open_dataset(train_folder(arguments, path)) for path in arguments.datasets] if arguments.baselines else []
    )

    with ExitStack() as stack:
        running = stack.enter_context(running_model(arguments))
        others = [(path, stack.enter_context(opened_model(path)), documents) for path, documents in beside]
        evaluator = Evaluator(arguments, running, given, others)
        reports, records = [], []
        for number, dataset in enumerate(evaluator.datasets):
            if len(evaluator.datasets) > 1:
                show_lines(f"{dataset.where}:")
            found, figures = evaluator.scores(dataset, train_splits[number] if train_splits else None)
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
        documents.write(b"".join(encoded(record) + b"\n" for record in records))
    if json_file:
        content = {"generator": GENERATOR, "model": str(arguments.model), "datasets": reports}
        json_file.write(encoded(content, indent=1) + b"\n")
    return 0


def encoded(value: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON in UTF-8. Bytes of names of files that are not UTF-8 are lone surrogates, which JSON has an escape for."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace")


class TextFile:
    """The documents of a file of text."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError, TaskError, OSError."""
        self.where = "standard input" if path == STDIN else str(path)
        self.rows = read_texts(path)


UncutData = Dataset | TextFile
"""What is named on the command line, before it is cut into patches for a model."""


def documents_at(path: Path) -> UncutData:
    """A dataset, or texts. Raises ConfigError, TaskError, DatasetError, OSError."""
    return TextFile(path) if is_text(path) else open_dataset(split_folder(path, VALIDATION_SPLIT))


class Evaluator:
    """Scores model folders as a command line asks for it, with a progress line."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        running: Running,
        given: Sequence[UncutData],
        others: Sequence[tuple[Path, Path, UncutData]],
    ) -> None:
        """Everything is opened and checked here, before anything is scored.

        Args:
            running: the model that is evaluated.
            given: datasets, or texts that are cut here.
            others: models beside it, each as it was named, as a model folder, and with its documents.

        Raises ConfigError, IdentityError where models or data cannot be used as is asked for.
        """
        import torch

        from trainer.evaluation.report import check_same_documents, model_name

        self._arguments, self._model, self._device = arguments, running.model, torch.device(running.device)
        if arguments.noise:
            from trainer.evaluation.robustness.under_noise import check_plain

            for uncut in given:
                if isinstance(uncut, Dataset):
                    check_plain(uncut)
        self.datasets = [self._cut(self._model, uncut) for uncut in given]
        self._others = [(model_name(path), folder, self._cut(folder, uncut)) for path, folder, uncut in others]
        for _, _, documents in self._others:
            check_same_documents(self.datasets[0], documents)
        if arguments.samples:
            from trainer.generation.generator import Generator

            self._generator = Generator(self._model, self._device, running.threads)
        self._progress = Progress(silent=False, every_seconds=SECONDS_BETWEEN_LINES)

    def _cut(self, folder: Path, given: UncutData) -> "Documents":
        """Documents as the model in a folder reads them. Raises ConfigError, IdentityError where it does not."""
        from trainer.evaluation.compatibility import check_fits, cut_again, recut_dataset

        name = self._arguments.as_name if folder == self._model else None
        if isinstance(given, Dataset):
            if self._arguments.recut:
                return recut_dataset(folder, given, self._device, name)
            check_fits(folder, given, name)
            return given
        patching = None
        if load_settings(folder).reads != "bytes":
            trained = model_identity(folder).patching
            # A model beside may cut all text alike: it has no subset to choose.
            subset = self._arguments.subset if folder == self._model or trained.thetas else None
            patching = one_threshold(trained, subset)
            chosen_subset(folder, subset)
        return cut_again(folder, given.rows, self._device, given.where, patching=patching)

    def _patching(self, dataset: "Documents") -> "PatchingSettings | None":
        """The model's rule with thresholds under the names of a dataset's subsets; None where it needs none."""
        if load_settings(self._model).reads == "bytes":
            return None
        if not isinstance(dataset, Dataset):
            return dataset.patching
        identity = model_identity(self._model)
        return patching_for(identity, dataset, self._arguments.as_name)

    def scores(self, dataset: "Documents", train: Dataset | None) -> "tuple[Measured, dict[str, Any]]":
        """The model on a dataset, printed beside what it is compared with."""
        from trainer.evaluation.scores import table

        found = self.measure(self._model, dataset)
        others = [replace(self.measure(folder, documents), name=name) for name, folder, documents in self._others]
        baselines = self.baselines(dataset, train) if train is not None else []
        show(table(found.scores, [*found.costs(), *baselines, *(column for one in others for column in one.beside())]))
        return found, report(found, baselines, others)

    def measure(self, folder: Path, dataset: "Documents") -> "Measured":
        """A model on a dataset."""
        from trainer.evaluation.compatibility import patching_from_entropies
        from trainer.evaluation.report import measure

        name = self._arguments.as_name if folder == self._model else None
        stored = isinstance(dataset, Dataset) and patching_from_entropies(folder, dataset, name) is None
        if stored and isinstance(dataset, Dataset) and (warning := patch_size_warning(folder, dataset)):
            LOG.info("%s", warning)
        text = dataset.totals.bytes
        self._progress.begin(0.0)
        tokens, dtype, weights = self._arguments.tokens, self._arguments.dtype, self._arguments.weights

        def on_progress(share: float) -> None:
            self._progress.show(share, f"{quantity(share * text)}B of {quantity(text)}B", dataset.where)

        began = time.monotonic()
        found = measure(folder, dataset, tokens, self._device, dtype, on_progress, name, weights)
        seconds = time.monotonic() - began
        rate = quantity(text / max(seconds, 1e-9))
        self._progress.log(f"{dataset.where}: {quantity(text)}B scored in {clock(seconds)}, {rate}B/s")
        return found

    def baselines(self, dataset: "Documents", train: Dataset) -> "list[Column]":
        """What the model has to beat."""
        from trainer.evaluation.baselines.order_2 import Order2Model, entropy_model_baseline, xz_baseline

        arguments = self._arguments
        entropy_model = entropy_model_baseline(self._model, dataset, arguments.tokens, self._device, arguments.dtype)
        return [*entropy_model, Order2Model(train).baseline(dataset), xz_baseline(dataset)]

    def compression(self, found: "Measured") -> dict[str, Any]:
        """Compressors on the same bytes, printed."""
        from trainer.evaluation.baselines.compressors import compress, table
        from trainer.metrics.subset_score import total_of

        compressed = compress(found.dataset)
        show(f"\n{table(compressed, total_of(found.scores).bits_per_byte)}")
        return {one.compressor: {"together": one.together, "alone": one.alone} for one in compressed}

    def noise(self, dataset: "Documents") -> list[dict[str, Any]]:
        """Bits per byte of noised texts, printed."""
        from trainer.evaluation.robustness.under_noise import robustness, table
        from trainer.evaluation.texts import TextScorer

        arguments = self._arguments
        noises = [noise for noise in NOISES if noise in arguments.noise or "all" in arguments.noise]
        scorer = TextScorer(self._model, self._device, arguments.dtype, arguments.tokens, self._patching(dataset))
        self._progress.begin(0.0)
        found = robustness(scorer, dataset, noises, lambda share: self._progress.show(share, "noise"))
        self._progress.log(f"{len(noises)} noises on {dataset.where}")
        show(f"\n{table(found)}")
        return [asdict(one) for one in found]

    def samples(self, dataset: "Documents") -> dict[str, Any]:
        """Whether what the model writes is UTF-8, printed."""
        from trainer.evaluation.robustness.utf8_validity import prompts_from, validity

        arguments = self._arguments
        prompts = prompts_from(dataset, arguments.samples)
        self._progress.begin(0.0)
        found = validity(
            self._generator,
            prompts,
            arguments.sample_bytes,
            lambda done: self._progress.show(done / len(prompts), "samples"),
            self._patching(dataset),
        )
        self._progress.log(f"{found.bytes:,} bytes written")
        show(f"\n{found}")
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
    """The scores of one dataset as JSON: all, then by subset."""
    figures = found.figures()
    for name, scores in [(None, figures["total"]), *figures["subsets"].items()]:
        values = {one.heading: one.total if name is None else one.by_subset.get(name) for one in baselines}
        scores["baselines"] = {  # JSON has no NaN
            key: value for key, value in values.items() if value is not None and not isnan(value)
        }
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
