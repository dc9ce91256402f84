"""Results as tables: a row a system, with means over seeds. Pure, and free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any

from trainer.experiments.results.results import Results, RunResult, System, Table

ALIKE = 0.02
"""Relative distance between the largest and the smallest budget of a table up to which its systems compare fairly."""


@dataclass(frozen=True)
class Row:
    """A system in one table: means over its runs, one for each seed."""

    system: str
    family: str
    seeds: int
    bits_per_byte: float
    """On the validation split."""
    spread: float | None
    """Standard deviation of the same over seeds; None with a single seed."""
    lowest: float
    """Bits per byte of the best seed."""
    highest: float
    parameters: int
    table_parameters: int
    """Those of n-gram tables among them."""
    useful_flops: float
    """Of training."""
    entropy_flops: float
    """Of the entropy model over the text trained on."""
    bytes: float
    """Of text trained on."""
    passes: float
    seconds: float
    """Of training."""
    flops_per_byte: float
    """At inference, on the validation split, without the entropy model."""
    entropy_flops_per_byte: float
    """The entropy model's."""
    bytes_per_patch: float | None
    patches_per_token: float | None
    """Patches for each token of the BPE tokenizer on the same text; None without patches or tokenizer."""
    speed_up: float | None
    """FLOPs a byte at inference of the flat byte model over those of this one; None without a flat byte model."""
    speed_up_whole: float | None
    """The same with the entropy model's FLOPs counted."""

    @property
    def whole_flops(self) -> float:
        """Of training, with the entropy model."""
        return self.useful_flops + self.entropy_flops

    @property
    def whole_flops_per_byte(self) -> float:
        """At inference, with the entropy model."""
        return self.flops_per_byte + self.entropy_flops_per_byte


def runs_of(results: Results, table: Table) -> dict[str, list[RunResult]]:
    """The runs of each system that has any in a table, by seed, in the order of the systems."""
    found: dict[str, list[RunResult]] = {system.name: [] for system in results.systems}
    for run in sorted(results.runs, key=lambda run: run.seed):
        if run.table == table:
            found[run.system].append(run)
    return {name: runs for name, runs in found.items() if runs}


def rows(results: Results, table: Table) -> list[Row]:
    """A row for each system that has a run in a table, the least bits per byte first."""
    by_system = runs_of(results, table)
    flat = flat_flops(results, table)
    made = [
        _row(system, by_system[system.name], flat, results) for system in results.systems if system.name in by_system
    ]
    return sorted(made, key=lambda row: row.bits_per_byte)


def flat_flops(results: Results, table: Table) -> float | None:
    """FLOPs a byte at inference of the flat byte model; None when a table has none."""
    by_system = runs_of(results, table)
    flat = [s.name for s in results.systems if s.family == "bytes" and s.ablates is None and s.name in by_system]
    return fmean(run.flops_per_byte for run in by_system[flat[0]]) if flat else None


MEANS = ("useful_flops", "entropy_flops", "bytes", "passes", "seconds", "flops_per_byte", "entropy_flops_per_byte")
"""Values of a row that are means of the runs' own."""


def _row(system: System, runs: Sequence[RunResult], flat: float | None, results: Results) -> Row:
    means: dict[str, Any] = {name: fmean(getattr(run, name) for run in runs) for name in MEANS}
    bits = [run.bits_per_byte for run in runs]
    sizes = [run.bytes_per_patch for run in runs if run.bytes_per_patch is not None]
    size = fmean(sizes) if sizes else None
    flops, entropy_flops = means["flops_per_byte"], means["entropy_flops_per_byte"]
    return Row(
        system=system.name,
        family=system.family,
        seeds=len(runs),
        bits_per_byte=fmean(bits),
        spread=stdev(bits) if len(bits) > 1 else None,
        lowest=min(bits),
        highest=max(bits),
        bytes_per_patch=size,
        patches_per_token=results.tokenizer.bytes_per_token / size if results.tokenizer and size else None,
        speed_up=flat / flops if flat else None,
        speed_up_whole=flat / (flops + entropy_flops) if flat else None,
        parameters=round(fmean(run.parameters for run in runs)),
        table_parameters=round(fmean(run.table_parameters for run in runs)),
        **means,
    )


def budget_spread(results: Results, table: Table) -> float:
    """How much more the largest budget of a table is than the smallest, as a share of it; 0 with at most one run."""
    flops = attrgetter("whole_flops" if results.entropy_counted else "useful_flops")
    budgets = [flops(run) if table == "flops" else run.bytes for run in results.runs if run.table == table]
    return max(budgets) / min(budgets) - 1 if budgets and min(budgets) > 0 else 0.0


def off_budget(results: Results, table: Table) -> list[tuple[RunResult, float]]:
    """Runs of a table that used more than ALIKE less or more than its budget, each with the share that they are off.

    A model that finds its patches is planned at its target size, and used what it found.
    """
    counted = attrgetter("whole_flops" if results.entropy_counted else "useful_flops")
    budget = results.budget_flops if table == "flops" else results.budget_bytes
    if not budget:
        return []
    runs = [run for run in results.runs if run.table == table]
    shares = [(counted(run) if table == "flops" else run.bytes) / budget - 1 for run in runs]
    return [(run, share) for run, share in zip(runs, shares) if abs(share) > ALIKE]


def subsets_of(results: Results) -> list[str]:
    """Names of all subsets that were scored, in the order of the first run that has each."""
    return list(dict.fromkeys(name for run in results.runs for name in run.bits_by_subset))


def subset_bits(results: Results, table: Table) -> dict[str, dict[str, float]]:
    """Bits per byte by system and subset, means over the seeds that have it."""
    return _by_subset(results, table, "bits_by_subset")


def subset_patch_sizes(results: Results, table: Table) -> dict[str, dict[str, float]]:
    """Bytes per patch by system and subset, the same; of systems that have patches."""
    found = _by_subset(results, table, "patch_size_by_subset")
    return {system: sizes for system, sizes in found.items() if sizes}


def _by_subset(results: Results, table: Table, field: str) -> dict[str, dict[str, float]]:
    """Means of a value of runs by system and subset, over the seeds that have it."""
    return {
        system: {
            name: fmean(getattr(run, field)[name] for run in runs if name in getattr(run, field))
            for name in subsets_of(results)
            if any(name in getattr(run, field) for run in runs)
        }
        for system, runs in runs_of(results, table).items()
    }
