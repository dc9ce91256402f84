"""What an experiment found, as one file: systems, runs, and what pairs of systems say. Free of torch.

FOLDER/results.json is the record; tables, pictures and pages are made from it alone.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.settings import Settings
from shared.shards.manifest import Count
from trainer.provenance.json_records import PathInside, Value, expected, keep

RESULTS_NAME = "results.json"
Table = Literal["flops", "bytes"]
"""What all runs of a table have alike: useful training FLOPs, or bytes of text trained on."""
Family = Literal["bytes", "megabyte", "spacebyte", "hnet", "bpe", "blt"]
"""What a system is made of."""
Processors = Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=64)]
"""Names of processors, sorted, each once."""


class System(Settings):
    """One way to model text."""

    name: str
    """Unique and short: `blt-entropy-4.5`."""
    family: Family
    description: str
    """One sentence for the reader of a report."""
    patching: str | None = None
    """The rule with its threshold or stride in words; None for models without patches."""
    ablates: str | None = None
    """The system that this one differs from in one thing; None where it is no ablation."""


class Point(Settings):
    """A validation of a run under way."""

    step: Count
    bytes: Count
    """Of text trained on until then."""
    useful_flops: Value
    """Of training until then, the entropy model's left out."""
    seconds: Value
    """Of training until then, validations left out."""
    bits_per_byte: Value


class Scored(Settings):
    """What a model is and what it scores on a validation split."""

    parameters: Count
    table_parameters: Count
    """Those of n-gram tables among them: looked up, never multiplied."""
    bits_per_byte: Value
    """On the validation split, per byte of text whatever the units are."""
    bits_by_subset: dict[str, Value]
    patch_size_by_subset: dict[str, Value] = Field(default_factory=dict)
    """Bytes a patch, or a BPE token; empty for models of single bytes."""
    document_bits: tuple[Value, ...] = ()
    """Bits of each validation document, in the dataset's order, the same for all runs on it."""
    bytes_per_patch: Value | None
    """On the validation split, or bytes a BPE token; None for models of single bytes."""
    flops_per_byte: Value
    """Useful FLOPs of a forward pass over the validation split, a byte of it; without the entropy model."""
    entropy_flops_per_byte: Value
    """The entropy model's, a byte."""

    @property
    def dense_parameters(self) -> int:
        """Without those of tables."""
        return self.parameters - self.table_parameters


class EntropyModelMade(Settings):
    """What an entropy model took to make, and how fast it scores."""

    name: str
    counts: bool
    """Whether it counts; otherwise it is a transformer."""
    seconds: Value | None
    """To train it, without start and validations, or to count; None where that was interrupted."""
    bytes: Count
    """Of text that it learned from."""
    scored_bytes_per_second: Value
    """Of processor time, in one thread."""
    processors: Processors = ()


class RateTried(Settings):
    """A short run that tries a learning rate."""

    lr: Value
    bits_per_byte: Value
    folder: PathInside
    """The run's folder, relative to the experiment's."""
    useful_flops: Value
    entropy_flops: Value
    seconds: Value
    processors: Processors = ()


class RateSweep(Settings):
    """The learning rates that were tried for the systems of a family, with n-gram tables or without."""

    family: Family
    tables: bool
    system: str
    """On which they were tried."""
    seed: Count
    tried: tuple[RateTried, ...] = Field(min_length=1)
    """By rate, ascending."""

    @property
    def best(self) -> RateTried:
        """The one with the least bits per byte."""
        return min(self.tried, key=lambda one: one.bits_per_byte)

    @property
    def at_edge(self) -> bool:
        """Whether the best is the smallest or the largest that was tried: a better one may lie beyond."""
        return self.best in (self.tried[0], self.tried[-1])


class RunResult(Scored):
    """One system, one seed, one budget: one run and what it scored."""

    table: Table
    system: str
    seed: Count
    folder: PathInside
    """The run's folder, relative to the experiment's."""
    steps: Count
    bytes: Count
    """Of text trained on."""
    passes: Value
    """The same over the text of the training split."""
    useful_flops: Value
    """Of forward and backward over what documents ask for, counted from the packs that were trained on."""
    entropy_flops: Value
    """Of the entropy model's forward passes over the text trained on: what finding its patches costs. 0 without one."""
    seconds: Value
    """Of training, without start and validations."""
    lr: Value | None = None
    """Peak learning rate; None in records of before it was kept."""
    processors: Processors = ()
    """Names of those that it ran on: several where it was stopped and went on elsewhere."""
    curve: tuple[Point, ...] = ()

    @property
    def whole_flops(self) -> float:
        """Of training and of finding the patches of what was trained on."""
        return self.useful_flops + self.entropy_flops


class Comparison(Settings):
    """What pairs of runs with equal seeds say of two systems."""

    table: Table
    better: str
    """The system that is expected to be better."""
    worse: str
    differences: tuple[Value, ...]
    """Bits per byte of ``worse`` minus those of ``better``, a pair of seeds each."""
    mean: Value
    low: Value | None
    high: Value | None
    """Bounds of the confidence interval of the mean over seeds (Student's t); None with a single pair."""
    confidence: Value = Field(gt=0, lt=1)
    document_low: Value | None
    document_high: Value | None
    """Bounds of that over validation documents: a bootstrap that draws documents, seeds averaged; None with one."""
    processors: Processors = ()
    """Names of those that the pairs ran on: with several, some of a difference may be theirs."""

    @property
    def verdict(self) -> Literal["holds", "does not hold", "undecided"]:
        """Of the expected order, as the interval over seeds has it."""
        if self.low is None or self.high is None:
            return "undecided"
        return "holds" if self.low > 0 else "does not hold" if self.high < 0 else "undecided"


class Tokenizer(Settings):
    """The subword tokenizer of the BPE systems, trained on the training split alone."""

    vocabulary: Count
    sha256: str
    bytes_per_token: Value
    """On the validation split."""


class Results(Settings):
    """Everything that an experiment found."""

    title: str
    corpus: str
    """What was read, in words."""
    train_bytes: Count
    validation_bytes: Count
    document_bytes: tuple[int, ...] = ()
    """Bytes of text of each validation document, in the dataset's order."""
    budget_flops: Value
    """Useful training FLOPs of a run of the table at equal FLOPs."""
    entropy_counted: bool = False
    """Whether that budget counts what the entropy model spends on the text trained on; records of before it did not."""
    budget_bytes: Count | None = None
    """Bytes of a run of the table at equal bytes; None without one."""
    machine: str
    """Processor, threads a run, runs at a time, torch's version."""
    tokenizer: Tokenizer | None = None
    systems: tuple[System, ...]
    runs: tuple[RunResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    """Expected orders."""
    ranking: tuple[Comparison, ...] = ()
    """Each system with the next in its table."""
    rates: tuple[RateSweep, ...] = ()
    entropy_models: tuple[EntropyModelMade, ...] = ()

    @model_validator(mode="after")
    def _of_systems(self) -> "Results":
        names = {system.name for system in self.systems}
        if len(names) < len(self.systems):
            raise ValueError("systems: two have one name")
        used = [name for one in (*self.comparisons, *self.ranking) for name in (one.better, one.worse)]
        for named in [run.system for run in self.runs] + used:
            if named not in names:
                raise ValueError(f"{named!r} is none of the systems")
        return self


def load_results(folder: Path) -> Results:
    """The results in an experiment's folder. Raises ConfigError when there are none, or not such ones."""
    return expected(folder / RESULTS_NAME, Results, "make compare")


def save_results(results: Results, folder: Path) -> None:
    """Write the record in one step."""
    keep(results, folder / RESULTS_NAME)
