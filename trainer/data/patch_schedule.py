"""A patch size that changes during a run: its phases, each with thresholds and a P_max of its own.

A document is cut with the thresholds of the phase in which a pack first took of it, and keeps them until it is used up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from shared.io.files.digests import differences, in_short
from shared.patching.grid import GRID
from shared.patching.settings import PatchingSettings
from shared.patching.sizes import PatchSizes, load_patch_sizes, without_thresholds
from shared.shards.manifest import DatasetIdentity, DatasetTotals, Manifest, SubsetTotals
from trainer.data.packing.limits import HEADROOM, PackLimits, pack_limits
from trainer.lr_schedule import measured
from trainer.settings import DataSettings, RunSettings
from trainer.settings.data import PatchPhase
from trainer.settings.learning import Length


@dataclass(frozen=True)
class Phase:
    """A part of a run."""

    at: Length
    """Where it begins."""
    patching: PatchingSettings
    size: float
    """Mean patch size in bytes: of the training split, as far as that is known without cutting it."""
    limits: PackLimits

    def __str__(self) -> str:
        theta = f"theta {self.patching.theta:.4f}" if not self.patching.thetas else "thetas by subset"
        return f"patches of {self.size:.2f} bytes ({theta} nats), at most {self.limits.patches:,} a pack"


@dataclass(frozen=True)
class PatchSchedule:
    """The phases of a run, the first of which begins with it."""

    phases: Sequence[Phase]
    run: RunSettings
    """Whose length shares are of."""

    @property
    def patchings(self) -> list[PatchingSettings]:
        """Of each phase."""
        return [phase.patching for phase in self.phases]

    def phase_after(self, step: int, targets: int) -> int:
        """The phase of the step that comes after ``step`` others with so many ``targets``: that which began last."""
        number = 0
        for later, phase in enumerate(self.phases):
            done, begin, _ = measured(phase.at, self.run, step, targets)
            if done >= begin:
                number = later
        return number


# ---- The phases that a recipe names, on the data that it names.


@dataclass(frozen=True)
class CutTotals:
    """Of documents as a phase cuts them, about."""

    patching: PatchingSettings
    totals: SubsetTotals


def totals_of(patching: PatchingSettings, totals: SubsetTotals, size: float) -> CutTotals:
    """The totals of documents whose patches have another mean size (bytes) than they are stored with."""
    return CutTotals(patching, replace(totals, patches=max(round(totals.bytes / size), totals.documents)))


def phases_of(settings: DataSettings, train: DatasetTotals, kept: Mapping[str, Manifest]) -> tuple[Phase, ...]:
    """The phases of a recipe; none where its patches stay as they are stored.

    Args:
        train: all training data together.
        kept: the manifest of each split by its folder. Their sidecars must decide for the thresholds of all phases.

    Raises ConfigError, in one line that names what does not fit.
    """
    if not settings.patch_schedule:
        return ()
    stored = train.identity.patching
    if not stored.needs_entropy:
        raise ConfigError(f"data.patch_schedule: the data is cut by the rule {stored.rule!r}, which has no threshold")
    for folder, manifest in kept.items():
        _require_kept(folder, manifest.identity, stored)
    table = None if settings.patch_sizes is None else _table(settings.patch_sizes, train)
    on_grid = any(manifest.identity.sidecar == "uint8" for manifest in kept.values())
    histogram = np.zeros(256, np.int64)
    for manifest in kept.values():
        if manifest.identity.split == "train" and manifest.entropy_histogram:
            histogram += manifest.entropy_histogram
    return tuple(
        _phase(number, phase, settings, train, table, on_grid, histogram)
        for number, phase in enumerate(settings.patch_schedule)
    )


def _require_kept(folder: str, identity: DatasetIdentity, stored: PatchingSettings) -> None:
    """Raise ConfigError unless a sidecar can say where patches of this rule begin."""
    if identity.sidecar == "none":
        raise ConfigError(
            f"data.patch_schedule: {folder} keeps no entropies; preprocess it with --sidecar uint8, or float32"
        )
    if identity.sidecar == "uint8" and stored.rule != "entropy":
        raise ConfigError(
            f"data.patch_schedule: {folder} keeps entropies as uint8, too coarse for rises, which the rule "
            f"{stored.rule!r} looks at; preprocess it with --sidecar float32"
        )


def _table(path: Path, train: DatasetTotals) -> PatchSizes:
    """The table, made for this rule and the entropy model of the data. Raises ConfigError."""
    table, identity = load_patch_sizes(path), train.identity
    ours = "none" if identity.entropy_model is None else identity.entropy_model.sha256
    if table.entropy_model != ours:
        raise ConfigError(
            f"data.patch_sizes {path} was made with the entropy model {table.entropy_model[:12]}, the data with "
            f"{ours[:12]}; calibrate --sizes on this data"
        )
    found = without_thresholds(table.patch_sizes[0].patching)
    if lines := differences(found, without_thresholds(identity.patching)):
        raise ConfigError(f"data.patch_sizes {path} is not of the rule that cut the data: {in_short(lines)}")
    for entry in table.patch_sizes:
        for name in sorted(entry.patching.thetas.keys() - train.subsets.keys())[:1]:
            raise ConfigError(f"data.patch_sizes {path} has a threshold for the subset {name!r}, the data has not")
    return table


def _phase(
    number: int,
    phase: PatchPhase,
    settings: DataSettings,
    train: DatasetTotals,
    table: PatchSizes | None,
    on_grid: bool,
    histogram: np.ndarray,
) -> Phase:
    """Raises ConfigError for a size that the table has not got, or a threshold that the sidecar cannot replay."""
    key, stored = f"data.patch_schedule.{number}", train.identity.patching
    if phase.size is not None:
        assert table is not None, "checked with the settings"
        entry = table.entry(phase.size)
        if entry is None:
            known = ", ".join(f"{one.size:g}" for one in table.patch_sizes)
            raise ConfigError(f"{key}.size is {phase.size:g}; {settings.patch_sizes} has {known}")
        patching, size = entry.patching, entry.mean_patch_size
    else:
        assert phase.theta is not None, "checked with the settings"
        patching, size = stored.with_theta(phase.theta, grid=False), _size(phase, settings, train, histogram)
    if on_grid and patching.on_grid() != patching.model_copy(update={"grid": True}):
        near = patching.on_grid().theta
        raise ConfigError(
            f"{key}.{phase.key}: theta {patching.theta} is not on the uint8 sidecar's grid; near is {near}"
        )
    if on_grid:
        patching = patching.on_grid()
    limits = pack_limits(totals_of(patching, train.totals, size), settings.tokens, phase.patches)
    return Phase(phase.at, patching, size, limits)


def _size(phase: PatchPhase, settings: DataSettings, train: DatasetTotals, histogram: np.ndarray) -> float:
    """About the mean patch size (bytes) that a threshold gives, from what is known without cutting anything."""
    if phase.patches is not None and train.identity.patching.rule != "entropy":
        return HEADROOM * settings.tokens / phase.patches
    if train.identity.patching.rule != "entropy":
        raise ConfigError(
            f"data.patch_schedule: how many patches a theta of the rule {train.identity.patching.rule!r} gives is not "
            "known; give patches beside it, or a size of a table"
        )
    assert phase.theta is not None
    below = int(np.searchsorted(GRID, np.float32(phase.theta), side="right"))  # values of the grid up to theta
    above = int(histogram[below:].sum())  # entropies above the last of these: those above theta, and few others
    size = train.totals.bytes / max(above, train.totals.documents, 1)
    # Entropies know no limits: patches are cut at the longest length wanted or not, and not before the shortest.
    return min(max(size, train.identity.patching.min_length), train.identity.patching.cut_length)
