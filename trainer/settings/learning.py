"""Optimizers, the learning rate over a run, and which steps are not learnt from."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from trainer.settings.section import Section


class TableSettings(Section):
    """Row-wise Adagrad for the n-gram tables (Duchi et al. 2011): a row's steps shrink with what it has learnt."""

    rate: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Learning rate of the tables, as a share of ``optimizer.lr``."""
    eps: float = Field(default=1e-10, gt=0)


class OptimizerSettings(Section):
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


class ScheduleSettings(Section):
    """Linear warm-up, then a cosine down to a floor."""

    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that is left at the end."""


class GuardSettings(Section):
    """Steps whose loss or gradient norm is not finite, or a spike, are skipped; too many of them end the run."""

    free: ClassVar[tuple[str, ...]] = ("budget", "within")

    sigmas: float = Field(default=10.0, gt=0)
    """A spike is this many robust standard deviations (from the median absolute deviation, at least a tenth of the
    median) above the median of the last steps; inf: only figures that are not finite are skipped."""
    window: int = Field(default=128, gt=0)
    """Steps that the median is taken over; before there are so many nothing is a spike."""
    budget: int = Field(default=10, ge=0)
    """Steps that may be skipped of the last ``within``; one more ends the run. 0 ends it at the first."""
    within: int = Field(default=500, gt=0)
    """Steps."""
