"""A run as its folder tells of it, whether it is under way, done or dead. Free of torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from shared.errors import ConfigError
from shared.io.files.json_reader import read_json
from shared.io.files.path_kinds import what_is
from trainer.metrics.files import MEMORY_NAME, figure, is_count, read_lines, values
from trainer.provenance.identity import IDENTITY_NAME, RESOLVED_NAME
from trainer.provenance.run_folder import METRICS_NAME, STARTS_NAME

Points = list[tuple[float, float]]


class _Start(TypedDict, total=False):
    step: Required[Annotated[int, Field(ge=0)]]
    ranks: int
    device: str
    dtype: str
    torch: str
    repeated: int
    processor: str
    peak_flops: float | None


class _Scores(TypedDict, total=False):
    bits_per_byte: float | None
    distillation_loss: float | None
    subsets: dict[str, float | None]


class _Validation(TypedDict):
    step: int
    validation: _Scores


class _Identity(TypedDict, total=False):
    data: dict[str, str]
    patching: dict[str, Any] | None
    entropy_model: dict[str, Any] | None
    start: Any


class _Length(TypedDict, total=False):
    steps: Annotated[int, Field(gt=0)] | None
    bytes: Annotated[int, Field(gt=0)] | None


class _Config(TypedDict, total=False):
    run: _Length


class _Memory(TypedDict, total=False):
    ranks: list[dict[str, int]]


class _Sampled(TypedDict):
    sampled: dict[str, int]
    passes: dict[str, float | None]


@dataclass(frozen=True)
class History:
    """What was logged, and what made the run."""

    folder: Path
    lines: list[dict[str, Any]]
    """Of intervals, in the order of steps."""
    validations: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved recipe."""
    identity: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    """What the dry run found."""
    peak_exceeded: bool = False
    """Whether a line had a utilisation above 1: its peak was wrong, and no line has one here."""

    @property
    def finished(self) -> bool:
        return (self.folder / "model" / IDENTITY_NAME).exists()

    @property
    def sampled(self) -> dict[str, tuple[int, float]]:
        """Documents taken from each subset and the passes over it that they are; empty where that was not logged."""
        found = _fitting(_Sampled, self.lines[-1], {"sampled": {}, "passes": {}})
        return {name: (count, found["passes"].get(name) or 0.0) for name, count in found["sampled"].items()}

    @property
    def done(self) -> float | None:
        """Share of the run behind; None when its length is not known."""
        run, last = _fitting(_Config, self.config, {}).get("run", {}), self.lines[-1]
        shares = [last["step"] / run["steps"]] if run.get("steps") else []
        shares += [last["targets"] / run["bytes"]] if run.get("bytes") else []
        return max(shares, default=None)

    def curve(self, key: str, x: str = "targets") -> Points:
        """(x, figure) of every line that has both; ``x`` is "targets" (bytes trained on) or "seconds"."""
        return pairs(values(self.lines, x), values(self.lines, key))

    def validation_curve(self, x: str = "targets", key: str = "bits_per_byte") -> Points:
        """(x, figure) of every pass over the validation split."""
        return pairs(
            [self.at_step(line["step"], x) for line in self.validations], values(self.validations, f"validation/{key}")
        )

    def at_step(self, step: int, x: str = "targets") -> float:
        """Where the run was after a step: the figure ``x`` of the last line up to it, 0 before the first."""
        last = bisect_right(self.lines, step, key=lambda line: line["step"])
        found = (figure(self.lines[number].get(x)) for number in range(last - 1, -1, -1))
        return next((value for value in found if value is not None), 0.0)

    def resumes(self) -> list[dict[str, Any]]:
        """Starts that went on with something."""
        return [start for start in self.starts if start["step"] > 0]


def pairs(xs: Sequence[float | None], ys: Sequence[float | None]) -> Points:
    """Those of which both are known."""
    return [(x, y) for x, y in zip(xs, ys) if x is not None and y is not None]


def load_history(folder: Path) -> History:
    """Read a run's folder. Raises ConfigError when nothing was ever logged there."""
    lines = sorted(read_lines(folder / METRICS_NAME), key=lambda line: line["step"])
    intervals = [line for line in lines if is_count(line.get("targets"))]
    if not intervals:
        found, empty = what_is(folder), f"is not a run folder with metrics: {METRICS_NAME} is missing or empty"
        raise ConfigError(f"{folder} {found if found == 'does not exist' else empty}")
    exceeded = any(_above_one(line.get("utilisation")) for line in intervals)
    if exceeded:
        intervals = [{key: value for key, value in line.items() if key != "utilisation"} for line in intervals]
    return History(
        folder,
        intervals,
        [line for line in (_fitting(_Validation, line, {}) for line in lines) if line],
        [start for start in (_fitting(_Start, line, {}) for line in read_lines(folder / STARTS_NAME)) if start],
        _object(folder / RESOLVED_NAME),
        _fitting(_Identity, _object(folder / IDENTITY_NAME), {}),
        _fitting(_Memory, _object(folder / MEMORY_NAME), {}),
        peak_exceeded=exceeded,
    )


_adapter = lru_cache(TypeAdapter)


def _fitting(schema: Any, value: Any, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The keys of a value that a schema names, ``otherwise`` when one has another type: a page shows what it can."""
    try:
        found: dict[str, Any] = _adapter(schema).validate_python(value)
    except ValidationError:
        return otherwise
    return found


def _above_one(utilisation: Any) -> bool:
    """Whether one of the shares of a line cannot be true, as of runs whose peak was measured on a CPU."""
    shares = utilisation.values() if isinstance(utilisation, dict) else ()
    return any(isinstance(value, (int, float)) and not 0 <= value <= 1 for value in shares)


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none."""
    try:
        found = read_json(path, finite=False)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
