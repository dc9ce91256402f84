"""The entropy models of an experiment: trained by recipes or counted, once, on the training split alone."""

import time
from collections.abc import Iterable, Iterator
from itertools import cycle, takewhile
from pathlib import Path

import numpy as np

from pipeline.counting.build import count
from pipeline.read.formats.datasets import documents_at
from pipeline.records import chunks_of
from pipeline.scoring.entropies import documents_of
from pipeline.scoring.load_scorer import load_scorer
from pipeline.scoring.options import scoring_of
from pipeline.settings import ExecutorSettings, ReadSettings, ScoringSettings
from shared.counts.settings import CountingSettings
from shared.io.display.progress import Progress
from shared.shards.open import open_dataset
from shared.vocabulary import document_tokens
from trainer.checkpoints.model import MODEL_FOLDER
from trainer.data.splits import TRAIN_SPLIT
from trainer.errors import TrainingError
from trainer.experiments.results.records import processors_of, spent
from trainer.experiments.results.results import EntropyModelMade
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Experiment
from trainer.metrics.history import load_history
from trainer.node import processor
from trainer.provenance.json_records import keep, kept

MADE_NAME = "made.json"
"""Beside the model: what it took."""
SCORED_SECONDS = 2.0
"""Of processor time, in which is measured how fast a model scores."""
SCORED_BYTES = 2**20
"""Of text for that, which is scored again when time is left."""


def entropy_model_folder(experiment: Experiment, name: str, out: Path) -> Path:
    """Where the model of this name is, or will be."""
    folder = out / "entropy" / name
    return folder if experiment.entropy_models[name].counts is not None else folder / MODEL_FOLDER


def make_entropy_models(
    experiment: Experiment, names: Iterable[str], out: Path, jobs: int, line: Progress
) -> tuple[EntropyModelMade, ...]:
    """Make these models from OUT/corpus, or finish them; what is there is left as it is.

    Raises TrainingError when one cannot be made.
    """
    names = list(names)
    if not names:
        return ()
    line.log(f"== entropy models -> {out / 'entropy'}: {', '.join(names)}")
    recipes = [name for name in names if experiment.entropy_models[name].counts is None]
    runs = [
        Run(f"entropy/{name}", experiment.entropy_recipe(name, out / "corpus", out / "entropy" / name), score=False)
        for name in recipes
    ]
    if failed := run_all(runs, jobs, line) if runs else {}:
        raise TrainingError(f"no entropies without {', '.join(failed)}")
    return tuple(_made(experiment, name, out, jobs) for name in names)


def _made(experiment: Experiment, name: str, out: Path, jobs: int) -> EntropyModelMade:
    """What a model took: as it is on record, or found out now. One that counts is made here."""
    counts, folder = experiment.entropy_models[name].counts, out / "entropy" / name
    known = kept(folder / MADE_NAME, EntropyModelMade)
    if counts is not None:
        seconds, learned = _count(counts, out, folder, jobs)
        processors: tuple[str, ...] = (processor(),)
    else:
        history = load_history(folder)
        last = spent(history)[-1]
        seconds, learned, processors = last.seconds, last.bytes, processors_of(history)
    if known is not None:
        return known
    made = EntropyModelMade(
        name=name,
        counts=counts is not None,
        seconds=seconds,
        bytes=learned,
        scored_bytes_per_second=_speed(entropy_model_folder(experiment, name, out), out),
        processors=processors,
    )
    keep(made, folder / MADE_NAME)
    return made


def _count(counts: CountingSettings, out: Path, folder: Path, jobs: int) -> tuple[float | None, int]:
    """Count the training split; seconds, None if it was done before, and bytes. Raises TrainingError."""
    began = time.monotonic()
    workers = ExecutorSettings(executor="inline", workers=jobs)
    report = count([out / "corpus"], folder.resolve(), counts, ReadSettings(), workers)
    if report.making is None:
        raise TrainingError(f"{folder} could not be counted: {'; '.join(error for _, error in report.failures)}")
    return (time.monotonic() - began if report.made else None), report.making.bytes


def _speed(model: Path, out: Path) -> float:
    """Bytes of the training split that a model scores in a second of processor time, in one thread."""
    scorer, _ = load_scorer(model, scoring_of(model, ScoringSettings()))
    documents = list(_first_documents(out / "corpus" / TRAIN_SPLIT))
    for _ in scorer.score(documents[:1]):  # what the first call alone takes
        pass
    began = time.process_time()
    some = takewhile(lambda _: time.process_time() - began < SCORED_SECONDS, cycle(documents))
    scored = sum(len(entropies) - 1 for entropies in scorer.score(some))
    return scored / (time.process_time() - began)


def _first_documents(folder: Path) -> Iterator[np.ndarray]:
    """int16 [n + 2] each: tokens of documents of a dataset, until they have SCORED_BYTES."""
    documents, size = documents_of(open_dataset(folder)), 0
    for record in documents_at(documents.dataset, documents.starts, documents.stops):
        text = b"".join(chunks_of(record.text))
        yield document_tokens(text)
        size += len(text)
        if size >= SCORED_BYTES:
            return
