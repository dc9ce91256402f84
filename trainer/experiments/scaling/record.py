"""How systems grow, as one file: runs of several sizes at several budgets, and what is fitted to them. Free of torch.

FOLDER/scaling.json is the record; tables, pictures and pages are made from it alone. What was measured are ``runs``;
all else is computed from them, and a `Prediction` is the only value that lies outside what was tried.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.settings import Settings
from shared.shards.manifest import Count
from trainer.experiments.results.results import RunResult
from trainer.provenance.json_records import expected, keep

SCALING_NAME = "scaling.json"
Counted = Literal["model", "whole"]
"""Whose FLOPs are counted: those of the model; or also those of the entropy model that finds its patches."""
COUNTED: tuple[Counted, ...] = ("model", "whole")


class Estimate(Settings):
    """A fitted value with the bounds of its confidence interval."""

    value: float
    low: float | None = None
    """None where there are too few runs to say, or where the interval has no such end."""
    high: float | None = None


class BandPoint(Settings):
    """A point of a fitted curve, with the band around it."""

    at: float
    """Where: FLOPs a byte, or FLOPs of training."""
    bits_per_byte: Estimate


class GridRun(Settings):
    """One run of the grid."""

    family: str
    size: str
    """Its name in the grid, unique in its family; sizes are listed from small to large."""
    budget_flops: float
    """Useful training FLOPs that it was given, the entropy model's left out."""
    result: RunResult

    def size_flops(self, counted: Counted) -> float:
        """Forward FLOPs a byte of validation text."""
        extra = self.result.entropy_flops_per_byte if counted == "whole" else 0.0
        return self.result.flops_per_byte + extra

    def cost(self, counted: Counted) -> float:
        """FLOPs of training."""
        return self.result.useful_flops + (self.result.entropy_flops if counted == "whole" else 0.0)


class Optimum(Settings):
    """The size that has the fewest bits at a budget, where the fitted parabola has its minimum."""

    flops_per_byte: Estimate
    """Forward, of the best size."""
    bits_per_byte: Estimate
    cost_flops: float
    """Of training at that size. More than the budget where the entropy model's are counted too."""
    parameters: float
    """Without those of tables, between the sizes tried as a power of the FLOPs a byte; bytes likewise."""
    bytes: float
    """Of text trained on."""
    inside: float | None
    """Share of the bootstrap's minima that are inside the sizes tried; None where there is no bootstrap."""


class IsoFlop(Settings):
    """Bits per byte against size at one budget: a parabola in the logarithm of the FLOPs a byte."""

    family: str
    counted: Counted
    budget_flops: float
    curve: tuple[BandPoint, ...] = ()
    """Over the sizes tried; empty where there are too few for a parabola."""
    optimum: Optimum | None = None
    refusal: str | None = None
    """Why there is no optimum, in words; None where there is one."""


class Prediction(Settings):
    """What the fits say beyond the budgets that were tried. Nobody has measured it."""

    cost_flops: float
    bits_per_byte: Estimate
    flops_per_byte: Estimate
    """Forward, of the best size."""


class Frontier(Settings):
    """The fewest bits per byte against training FLOPs C, through the optima of a family."""

    family: str
    counted: Counted
    form: Literal["line", "floor"]
    """line: A C^-a, a straight line between logarithms; floor: E + A C^-a, with four budgets or more."""
    budgets: Count
    """Optima that it goes through."""
    exponent: Estimate
    """a."""
    factor: float
    """A."""
    floor: Estimate | None
    """E; None for a line."""
    size_exponent: Estimate
    """s of the best size N = k C^s, in FLOPs a byte."""
    size_factor: float
    """k."""
    curve: tuple[BandPoint, ...]
    """Between the first and the last optimum."""
    predictions: tuple[Prediction, ...] = ()


class Crossover(Settings):
    """Where the frontiers of two families meet."""

    family: str
    against: str
    counted: Counted
    verdict: Literal["crosses", "none within the data", "undecided"]
    budget_flops: Estimate | None
    """Where the fitted curves meet first; None where they do not, up to 10,000 times the largest budget."""
    extrapolated: bool
    """Whether that is beyond the budgets tried, and so a prediction."""
    words: str
    """The same as one sentence."""


class JointFit(Settings):
    """L(N, D) = E + A N^-a + B D^-b through all runs of a family (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3).

    N are parameters without those of tables, D bytes of text trained on.
    """

    family: str
    floor: float
    """E, bits per byte."""
    size_factor: float
    """A."""
    size_exponent: float
    """a."""
    data_factor: float
    """B."""
    data_exponent: float
    """b."""
    error: float
    """Root of the mean squared difference of logarithms of bits, measured and fitted."""


class Scaling(Settings):
    """Everything that a scaling study found."""

    title: str
    corpus: str
    """What was read, in words."""
    machine: str
    """Processor, threads a run, runs at a time, torch's version."""
    train_bytes: Count
    validation_bytes: Count
    budgets: tuple[float, ...]
    """Useful training FLOPs, ascending."""
    families: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str
    """The family that the others' crossovers are with."""
    confidence: float = Field(gt=0, lt=1)
    """Of all intervals and bands."""
    replicates: Count
    """Of the bootstrap."""
    runs: tuple[GridRun, ...] = ()
    iso_flop: tuple[IsoFlop, ...] = ()
    frontiers: tuple[Frontier, ...] = ()
    crossovers: tuple[Crossover, ...] = ()
    joint_fits: tuple[JointFit, ...] = ()
    without: tuple[str, ...] = ()
    """What could not be fitted, a sentence each."""


def load_scaling(folder: Path) -> Scaling:
    """The study in a folder. Raises ConfigError when there is none, or not such a one."""
    return expected(folder / SCALING_NAME, Scaling, "make scaling")


def save_scaling(scaling: Scaling, folder: Path) -> None:
    """Write the record in one step."""
    keep(scaling, folder / SCALING_NAME)
