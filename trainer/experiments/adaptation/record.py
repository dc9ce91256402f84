"""What adapting a model to new text gave, as one file: scores before and after, on new text and on old. Free of torch.

FOLDER/adaptation.json is the record; the table is made from it alone.
"""

from pathlib import Path
from typing import Literal

from shared.settings import Settings
from shared.shards.manifest import Count
from trainer.experiments.results.results import Processors
from trainer.provenance.json_records import PathInside, Value, expected, keep

ADAPTATION_NAME = "adaptation.json"
SCORES_NAME = "scores.json"
"""Beside a run: what its model scored."""
OLD = "old"
"""Name of the text that the base was trained on."""
Boundaries = Literal["own", "base"]
"""Whose entropy model finds the patches of a run: one of the new text, or the base's."""


class TextScore(Settings):
    """What a model scored on the held-out documents of a text, cut by the model itself."""

    documents: str
    """Digest of the ids of the documents, in order: those with equal ones can be compared document by document."""
    document_bits: tuple[Value, ...]
    document_bytes: tuple[int, ...]
    bits_per_byte: Value
    """All targets, EOS included, a byte of text."""
    bytes_per_patch: Value


class RunScores(Settings):
    """What the model of a run scored."""

    run: str
    """Digest of the run's identity."""
    texts: dict[str, TextScore]
    """By the name of the text."""


class Trained(Settings):
    """A run, and what it took."""

    folder: PathInside
    """Relative to the experiment's."""
    seed: Count
    lr: Value
    """Peak learning rate."""
    parameters: Count
    trained_parameters: Count
    """Those of them that learn."""
    bytes: Count
    """Of text trained on."""
    passes: Value
    """The same over the text of the training split."""
    useful_flops: Value
    """Of forward and backward over what documents ask for, the entropy model's left out; frozen parameters have no
    gradients to compute."""
    seconds: Value
    """Of training, without start and validations."""
    processors: Processors = ()


class AdaptedRun(Trained):
    """A run that began with the base."""

    text: str
    """Name of the new text."""
    system: str
    boundaries: Boundaries
    new: TextScore
    old: TextScore


class NewText(Settings):
    """A text that the base was not trained on."""

    name: str
    train_bytes: Count
    entropy_model_seconds: Value | None
    """To make its own entropy model; None where that was interrupted."""
    before: TextScore
    """The base's."""


class Adaptation(Settings):
    """Everything that was found."""

    corpus: str
    """What old text is, in words."""
    machine: str
    """Processor, threads a run, runs at a time, torch's version."""
    train_bytes: Count
    """Of old text."""
    base: Trained
    before: TextScore
    """The base's on old text."""
    texts: tuple[NewText, ...] = ()
    runs: tuple[AdaptedRun, ...] = ()


def load_adaptation(folder: Path) -> Adaptation:
    """The record in a folder. Raises ConfigError when there is none, or not such a one."""
    return expected(folder / ADAPTATION_NAME, Adaptation, "python -m trainer adaptation")


def save_adaptation(adaptation: Adaptation, folder: Path) -> None:
    """Write the record in one step."""
    keep(adaptation, folder / ADAPTATION_NAME)
