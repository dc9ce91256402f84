"""Optimizers, the learning rate over a run, and which steps are not trained on."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from shared.settings import Settings, Unit
from trainer.settings.section import Count, Section, Steps


class TableSettings(Section):
    """Row-wise Adagrad for the n-gram tables (Duchi et al. 2011): a row's steps shrink with what it has learned."""

    rate: float = Field(default=20.0, gt=0)
    """Learning rate of the tables, as a share of ``optimizer.lr``."""
    eps: float = Field(default=1e-10, gt=0)
    """Added to the root of a row's mean square, so that a division by zero cannot be."""


class MuonSettings(Section):
    """Muon (Jordan et al. 2024) for matrices from activations to activations."""

    rate: float = Field(default=1.0, gt=0)
    """Learning rate of these matrices, as a share of ``optimizer.lr``. An update has the root mean square that AdamW's
    usually have, so that 1 is where to begin."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Share of the running sum of gradients that a step leaves."""
    nesterov: bool = True
    """Look one step of momentum ahead."""
    steps: Annotated[int, Unit("iterations")] = Field(default=5, gt=0, le=100)
    """Length of the iteration that brings singular values near 1."""


Shares = dict[str, Annotated[float, Field(ge=0)]]
"""Values by pattern of parameter names: trainer/optim/name_patterns.py."""


Momentum = Annotated[float, Field(ge=0, lt=1)]
"""Share of a running mean that a step leaves."""


class OptimizerSettings(Section):
    """AdamW (Loshchilov & Hutter 2019), Muon on request, and row-wise Adagrad for the n-gram tables."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """What a step leaves of the running means of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square, so that a division by zero cannot be."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of weight matrices, times the learning rate; norms and embedding tables are never decayed."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    matrices: Literal["adamw", "muon"] = "adamw"
    """What matrices from activations to activations learn by: those of blocks, of cross-attention, and projections."""
    rates: Shares = Field(default_factory=dict)
    """Share of the learning rate by parameter name, whole dotted beginning of it, or pattern ("global_.blocks" = 0.1,
    "*.blocks.*.qkv" = 0.5): the most specific one that fits counts, 1 where none does. 0 freezes: neither gradients nor
    moments."""
    decay: Shares = Field(default_factory=dict)
    """Share of ``weight_decay`` of weight matrices, in the same way."""
    tables: TableSettings = TableSettings()
    muon: MuonSettings = MuonSettings()

    def identity_dict(self) -> dict[str, Any]:
        """Without how Muon learns where it does not."""
        values = super().identity_dict()
        if self.matrices != "muon":
            del values["muon"]
        return values

    @field_validator("rates", "decay", mode="before")
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


class InSteps(Settings):
    """A length in optimizer steps."""

    steps: Steps


class InBytes(Settings):
    """A length in training targets, as ``run.bytes``."""

    bytes: Count


Length = Annotated[float, Field(ge=0, lt=1)] | InSteps | InBytes
"""A share of the run, or {steps = N}, or {bytes = N}."""


class ScheduleSettings(Section):
    """The learning rate over a run: linear warm-up, then what `kind` says.

    cosine: down to the floor from the end of the warm-up to that of the run. constant: the peak to the end. wsd
    (warm-up, stable, decay; Hu et al. 2024): the peak, then down to the floor over the last part of the run.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup: Length = 0.05
    """Over which the rate rises from 0 to the peak: a share of the run, or {steps = N}, or {bytes = N}. With a share a
    prolonged run is another run; with steps or bytes, and a kind other than cosine, it is not."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that is left at the end."""
    decay: Length = 0.2
    """Of wsd: the last part of the run, in the same way."""
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt"
    """How the rate falls in the decay of wsd. sqrt is 1 - sqrt(t), which Haegele et al. 2024 (section 3) found best."""

    def identity_dict(self) -> dict[str, Any]:
        """Without the keys that say nothing about this kind."""
        idle = {"cosine": ("decay", "shape"), "wsd": (), "constant": ("decay", "shape", "floor")}[self.kind]
        return {key: value for key, value in super().identity_dict().items() if key not in idle}


class GuardSettings(Section):
    """Steps whose loss or gradient norm is not finite, or a spike, are skipped; too many of them end the run."""

    excluded_from_identity: ClassVar[tuple[str, ...]] = ("budget", "within")

    sigmas: Annotated[float, Unit("standard deviations")] = Field(default=10.0, ge=0)
    """A spike is this many robust standard deviations (from the median absolute deviation, at least a tenth of the
    median) above the median of the last steps; 0: only figures that are not finite are skipped."""
    window: Annotated[int, Unit("steps")] = Field(default=128, gt=0, le=10**6)
    """Over which the median is taken; before there are so many nothing is a spike."""
    budget: Annotated[int, Unit("steps")] = Field(default=10, ge=0, le=10**6)
    """How many may be skipped of the last ``within``; one more ends the run. 0 ends it at the first."""
    within: Annotated[int, Unit("steps")] = Field(default=500, gt=0, le=10**6)
    """Of which ``budget`` may be skipped: the last so many."""
