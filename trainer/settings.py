"""What a recipe may say, one class a component. Free of torch: a finished run is recognised without importing it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from shared.model_settings import ModelSettings, Settings


class RunSettings(Settings):
    """Where, how long and on what."""

    out: Path
    """Folder of this run: checkpoints, metrics and at the end the model."""
    seed: int = 0
    """Decides initial parameters and the order of the data."""
    steps: int | None = Field(default=None, gt=0)
    """Length of the run in optimizer steps."""
    bytes: int | None = Field(default=None, gt=0)
    """Length in training targets (bytes of text, and one EOS a document). With both, the first reached ends it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    threads: int = Field(default=1, gt=0)
    """Threads of each rank on a CPU; sums depend on it, so it is set and recorded, not left to the machine (law 5)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of parameters and activations in forward and backward; masters, gradients' sums and logits are float32."""

    @model_validator(mode="after")
    def _has_length(self) -> "RunSettings":
        if self.steps is None and self.bytes is None:
            raise ValueError("give the length of the run, as steps or as bytes")
        return self


class DataSettings(Settings):
    """Which data, and how large a step is."""

    path: Path
    """Folder with the datasets train/ and validation/."""
    tokens: int = Field(gt=2)
    """T_max: tokens of a pack, the micro-batch of one rank."""
    patches: int | None = Field(default=None, gt=1)
    """P_max: patches of a pack; None sets it from the dataset's mean patch size."""
    packs: int = Field(gt=0)
    """G: packs of one optimizer step, over all ranks; the number of ranks must divide it."""
    lanes: int = Field(default=64, gt=0)
    """Documents that are read side by side, so that steps do not dwell on one that is longer than a pack."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of the bytes by subset; a subset not named keeps its natural share."""
    workers: int = Field(default=1, ge=0)
    """Loader processes of each rank; 0 loads in the rank itself."""


class StartSettings(Settings):
    """What the parameters are before the first step."""

    model: Path | None = None
    """A model folder whose parameters the run begins with; None draws them from the seed. A run that has a checkpoint
    goes on from that."""


class ParallelSettings(Settings):
    """How the model is spread and what is recomputed."""

    activation_checkpointing: Literal["none", "full"] = "none"
    """full: a block's activations are computed again in the backward pass instead of being kept."""
    keep_gathered: bool = False
    """Parameters stay whole from a step's first forward to its last backward: less traffic, and the memory of one whole
    copy on every rank. Otherwise each unit is gathered when it is needed."""
    compile: bool = False
    """Compile the blocks of windowed stacks: faster steps after half a minute; needs a C++ compiler on CPUs."""


class TableSettings(Settings):
    """Row-wise Adagrad for the n-gram tables (Duchi et al. 2011): a row's steps shrink with what it has learnt."""

    rate: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Learning rate of the tables, as a share of ``optimizer.lr``."""
    eps: float = Field(default=1e-10, gt=0)


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019), and row-wise Adagrad for the n-gram tables."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Of weight matrices; norms and embedding tables are never decayed."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    rates: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Share of the learning rate by parameter name or whole dotted beginning of it ("global_.blocks" = 0.1): the
    longest one that fits counts, 1 where none does. 0 freezes: neither gradients nor moments."""
    tables: TableSettings = TableSettings()

    @field_validator("rates", mode="before")
    @classmethod
    def _dotted(cls, rates: Any) -> Any:
        """Unquoted dots in TOML and on the command line make tables in tables: the same names."""
        return dict(_flat(rates)) if isinstance(rates, dict) else rates


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class ScheduleSettings(Settings):
    """Linear warm-up, then a cosine down to a floor."""

    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that is left at the end."""


class CheckpointSettings(Settings):
    """When state is saved; a signal saves it too."""

    every: int = Field(default=500, gt=0)
    """Steps."""
    keep: int = Field(default=2, gt=0)
    """How many of the newest stay."""


class MetricsSettings(Settings):
    """What is reported when."""

    log_every: int = Field(default=10, gt=0)
    """Steps from one line of metrics.jsonl to the next."""
    validate_every: int | None = Field(default=None, gt=0)
    """Steps from one pass over the validation split to the next; None: only at the end."""
    progress_seconds: float = Field(default=15.0, gt=0)
    """From one progress line to the next where there is no terminal."""


class TrainSettings(Settings):
    """A whole recipe."""

    run: RunSettings
    data: DataSettings
    model: ModelSettings
    optimizer: OptimizerSettings
    start: StartSettings = StartSettings()
    parallel: ParallelSettings = ParallelSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricsSettings = MetricsSettings()

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain JSON."""
        return self.model_dump(mode="json", by_alias=True)


FREE_KEYS = {
    "run": ("out", "device", "threads"),
    "data": ("path", "workers"),
}
"""Keys that a run may be continued with other values of: where it stands and how it is spread.

The length of the run is not among them: the learning rate at a step depends on it.
"""
FREE_SECTIONS = ("start", "parallel", "checkpoint", "metrics")
"""Sections of such keys only: where a start is found (its content counts: `RunIdentity.start`), how the same sums are
computed, what is saved and reported when."""


LATER_KEYS: dict[str, dict[str, Any]] = {"optimizer": {"rates": {}}}
"""Keys that came after the first runs, with the values that change nothing: those are left out, so that runs from
before stay what they are."""


IDLE_KEYS: dict[str, dict[str, tuple[str, ...]]] = {"entropy": {"optimizer": ("tables",)}}
"""Keys that say nothing about a kind of model."""


def decisive(settings: TrainSettings) -> dict[str, Any]:
    """The keys that decide what is learnt: part of a run's identity."""
    sections = {}
    idle = IDLE_KEYS.get(settings.model.kind, {})
    for section, values in settings.resolved().items():
        free, later = FREE_KEYS.get(section, ()) + idle.get(section, ()), LATER_KEYS.get(section, {})
        if section not in FREE_SECTIONS:
            sections[section] = {
                key: value
                for key, value in values.items()
                if key not in free and not (key in later and value == later[key])
            }
    return sections
