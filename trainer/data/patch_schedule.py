"""A patch size that changes during a run: its phases, each with thresholds and a P_max of its own.

A document is cut with the thresholds of the phase in which a pack first took of it, and keeps them until it is used up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from shared.io.files.digests import differences, in_short
from shared.patching.settings import PatchingSettings
from shared.patching.sizes import PatchSizes, load_patch_sizes, without_thresholds
from shared.shards.manifest import DatasetIdentity, DatasetTotals, Manifest, SubsetTotals
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.data.recut_lengths import RecutLengths
from trainer.data.source import ScoredSource
from trainer.data.splits import prefixed
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
    """Mean patch size in bytes: what the table was made with, or that of a sample of the training split."""
    limits: PackLimits

    def __str__(self) -> str:
        theta = "thetas by subset" if self.patching.thetas else f"theta {self.patching.theta:.4f} nats"
        return f"patches of {self.size:.2f} bytes ({theta}), at most {self.limits.patches:,} a pack"


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

    @property
    def unreached(self) -> str | None:
        """A warning if the run ends before its last phase begins; None if it does not, or if that is not known."""
        _, begin, whole = measured(self.phases[-1].at, self.run, 0, 0)
        if whole is None or begin < whole:
            return None
        return (
            f"the run ends before phase {len(self.phases)} of data.patch_schedule begins, but validation and the saved "
            "model use its thresholds; make the run longer or remove the phase"
        )

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
    patches = max(round(totals.bytes / size), totals.documents)
    return CutTotals(patching, replace(totals, patches=min(patches, totals.tokens)))


def phases_of(
    settings: DataSettings,
    train: DatasetTotals,
    kept: Mapping[str, Manifest],
    opened: Callable[[], ScoredSource],
) -> tuple[Phase, ...]:
    """The phases of a recipe; none where its patches stay as they are stored.

    Args:
        train: all training data together.
        kept: the manifest of each split by its folder. Their sidecars must decide for the thresholds of all phases.
        opened: opens all training data, which is read where a phase names a theta.

    Raises ConfigError, in one line that names what does not fit.
    """
    if not settings.patch_schedule:
        return ()
    stored = train.identity.patching
    if not stored.needs_entropy:
        raise ConfigError(f"data.patch_schedule: the data is cut by the rule {stored.rule!r}, which has no threshold")
    for folder, manifest in kept.items():
        _require_kept(folder, manifest.identity, stored)
    table = None if settings.patch_sizes is None else _table(settings.patch_sizes, train, tuple(settings.datasets))
    on_grid = any(manifest.identity.sidecar == "uint8" for manifest in kept.values())
    named = settings.patch_schedule
    cut = [_patching(number, phase, settings, train, table, on_grid) for number, phase in enumerate(named)]
    sampled = [patching for patching, size in cut if size is None]
    sizes = iter(sampled_sizes(opened(), sampled) if sampled else ())
    return tuple(
        _phase(phase, patching, next(sizes) if size is None else size, settings, train)
        for phase, (patching, size) in zip(named, cut)
    )


def _phase(
    phase: PatchPhase, patching: PatchingSettings, size: float, settings: DataSettings, train: DatasetTotals
) -> Phase:
    limits = pack_limits(totals_of(patching, train.totals, size), settings.tokens, phase.patches)
    return Phase(phase.at, patching, size, limits)


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


def _table(path: Path, train: DatasetTotals, datasets: tuple[str, ...]) -> PatchSizes:
    """The table, made for this rule and the entropy model of the data, with thresholds under the names of its subsets.

    datasets: the names of several. Raises ConfigError.
    """
    table, identity = load_patch_sizes(path), train.identity
    ours = "none" if identity.entropy_model is None else identity.entropy_model.sha256
    if table.entropy_model != ours:
        raise ConfigError(
            f"data.patch_sizes {path} was made with the entropy model {table.entropy_model[:12]}, the data with "
            f"{ours[:12]}; calibrate --sizes on this data"
        )
    found = without_thresholds(table.patch_sizes[0].patching)
    if lines := differences(found, without_thresholds(identity.patching)):
        raise ConfigError(
            f"data.patch_sizes {path} is not of the rule that cut the data: {in_short(lines)}; calibrate --sizes on "
            "this data, with its rule and lengths"
        )
    entries = []
    for entry in table.patch_sizes:
        named = {name: _subsets_named(name, train, datasets) for name in entry.patching.thetas}
        for name in sorted(name for name, found in named.items() if not found)[:1]:
            known = in_short(sorted(train.subsets), ", ")
            raise ConfigError(f"data.patch_sizes {path} has a threshold for the subset {name!r}; the data has {known}")
        # Names of one dataset's subset come last, so that they count before those of all datasets.
        in_order = sorted(named, key=lambda name: name in train.subsets)
        thetas = {subset: entry.patching.thetas[name] for name in in_order for subset in named[name]}
        patching = entry.patching.model_copy(update={"thetas": dict(sorted(thetas.items()))})
        entries.append(entry.model_copy(update={"patching": patching}))
    return table.model_copy(update={"patch_sizes": tuple(entries)})


def _subsets_named(name: str, train: DatasetTotals, datasets: tuple[str, ...]) -> list[str]:
    """The subsets that a name in a table means: of several datasets the one NAME/subset, or that of each of them."""
    if name in train.subsets:
        return [name]
    return [subset for subset in (prefixed(dataset, name) for dataset in datasets) if subset in train.subsets]


def _patching(
    number: int,
    phase: PatchPhase,
    settings: DataSettings,
    train: DatasetTotals,
    table: PatchSizes | None,
    on_grid: bool,
) -> tuple[PatchingSettings, float | None]:
    """The thresholds of a phase, and the mean patch size (bytes) where the table knows it.

    Raises ConfigError for a size that the table has not got, or a threshold that the sidecar cannot replay.
    """
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
        patching, size = stored.with_theta(phase.theta, grid=False), None
    if on_grid and patching.on_grid() != patching.model_copy(update={"grid": True}):
        near = patching.on_grid().theta
        raise ConfigError(
            f"{key}.{phase.key}: theta {patching.theta} is not on the uint8 sidecar's grid; near is {near}"
        )
    return patching.on_grid() if on_grid else patching, size


# ---- How large the patches of a threshold are, of documents that are cut with it.


SAMPLE_RUNS = 64
SAMPLE_BYTES = 2**22
"""About, of all of them together."""


def sampled_sizes(source: ScoredSource, patchings: Sequence[PatchingSettings]) -> list[float]:
    """Mean patch sizes (bytes) of documents spread evenly over the data; of all of it, where it is small.

    Always the same documents, since P_max follows from this. At most SAMPLE_RUNS record batches are read, and of a
    document of several rows the first one is cut. Raises DatasetError.
    """
    recut = RecutLengths(source, patchings)
    text, patches = np.zeros(len(patchings)), np.zeros(len(patchings))
    for shard, rows, tokens in _sampled_rows(source):
        for phase in range(len(patchings)):
            found = recut.counted(phase, shard, rows)
            text[phase] += tokens * (found.bytes / found.tokens)
            patches[phase] += tokens * (found.patches / found.tokens)
    return [float(size) for size in text / np.maximum(patches, 1)]


def _sampled_rows(source: ScoredSource) -> Iterator[tuple[int, np.ndarray, int]]:
    """Shard, first rows of documents (int64 [K], of one record batch), and tokens of all documents they stand for."""
    runs = [source.runs(code) for code in range(len(source.subset_names))]
    ends = np.cumsum([len(own) for own in runs])
    count = min(SAMPLE_RUNS, int(ends[-1]))
    for number in ((2 * np.arange(count) + 1) * int(ends[-1]) // (2 * count)).tolist():
        code = int(ends.searchsorted(number, side="right"))
        own, place = runs[code], number - int(ends[code]) + len(runs[code])
        shard, first, tokens = own.first_shard + int(own.shard[place]), int(own.row[place]), int(own.tokens[place])
        rows = first + np.flatnonzero(source.shard_index(shard).part[first : first + int(own.rows[place])] == 0)
        wanted = min(max(SAMPLE_BYTES // count * len(rows) // tokens, 1), len(rows))
        yield shard, rows[(2 * np.arange(wanted) + 1) * len(rows) // (2 * wanted)], tokens
