"""A run as its folder tells of it, whether it is under way, done or dead. Free of torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.config import ConfigError
from shared.found import what_is
from shared.json_reader import read_json
from trainer.identity import IDENTITY_NAME, RESOLVED_NAME
from trainer.observing.files import MEMORY_NAME, METRICS_NAME, STARTS_NAME, read_lines, values

Points = list[tuple[float, float]]


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
    def done(self) -> float | None:
        """Share of the run behind; None when its length is not known."""
        run, last = self.config.get("run", {}), self.lines[-1]
        shares = [last["step"] / run["steps"]] if run.get("steps") else []
        shares += [last["targets"] / run["bytes"]] if run.get("bytes") else []
        return max(shares, default=None)

    def curve(self, key: str, x: str = "targets") -> Points:
        """(x, figure) of every line that has both; ``x`` is "targets" (bytes learnt) or "seconds"."""
        return pairs(values(self.lines, x), values(self.lines, key))

    def validation_curve(self, x: str = "targets") -> Points:
        """(x, bits per byte) of every pass over the validation split."""
        return pairs(
            [self.at_step(line["step"], x) for line in self.validations],
            values(self.validations, "validation/bits_per_byte"),
        )

    def at_step(self, step: int, x: str = "targets") -> float:
        """Where the run was after a step: the figure ``x`` of the last line up to it, 0 before the first."""
        last = bisect_right(self.lines, step, key=lambda line: line["step"])
        found = (self.lines[number].get(x) for number in range(last - 1, -1, -1))
        return float(next((value for value in found if value is not None), 0.0))

    def resumes(self) -> list[dict[str, Any]]:
        """Starts that went on with something."""
        return [start for start in self.starts if start["step"] > 0]


def pairs(xs: Sequence[float | None], ys: Sequence[float | None]) -> Points:
    """Those of which both are known."""
    return [(x, y) for x, y in zip(xs, ys) if x is not None and y is not None]


def load_history(folder: Path) -> History:
    """Read a run's folder. Raises ConfigError when nothing was ever logged there."""
    lines = sorted(read_lines(folder / METRICS_NAME), key=lambda line: line["step"])
    intervals = [line for line in lines if isinstance(line.get("targets"), int)]
    if not intervals:
        found = what_is(folder)
        why = found if found == "does not exist" else f"is no run with figures: {METRICS_NAME} is missing or empty"
        raise ConfigError(f"{folder} {why}")
    exceeded = any(_above_one(line.get("utilisation")) for line in intervals)
    if exceeded:
        intervals = [{key: value for key, value in line.items() if key != "utilisation"} for line in intervals]
    config, identity, memory = (_object(folder / name) for name in (RESOLVED_NAME, IDENTITY_NAME, MEMORY_NAME))
    return History(
        folder,
        intervals,
        [line for line in lines if isinstance(line.get("validation"), dict)],
        read_lines(folder / STARTS_NAME),
        config,
        identity,
        memory,
        peak_exceeded=exceeded,
    )


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
