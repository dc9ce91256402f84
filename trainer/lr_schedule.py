"""How far a run is, and the learning rate there: pure functions, so that a resumed run cannot differ."""

import math
from collections.abc import Callable

from shared.errors import ConfigError
from trainer.settings import RunSettings, ScheduleSettings
from trainer.settings.learning import InBytes, InSteps, Length

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda fallen: 1.0 - fallen,
    "sqrt": lambda fallen: 1.0 - math.sqrt(fallen),
    "cosine": lambda fallen: 0.5 * (1.0 + math.cos(math.pi * fallen)),
}
"""From the peak, 1, at the beginning of a decay to the floor, 0, at its end."""


def progress(run: RunSettings, step: int, targets: int) -> float:
    """Share of the run that lies behind after ``step`` steps and ``targets`` training targets: 1 or more means done."""
    by_steps = step / run.steps if run.steps else 0.0
    by_bytes = targets / run.bytes if run.bytes else 0.0
    return max(by_steps, by_bytes)


def rate(schedule: ScheduleSettings, run: RunSettings, step: int, targets: int) -> float:
    """Share of the peak learning rate of the step that ends there: warm-up, then what the kind of schedule says."""
    warm = min(1.0, elapsed(schedule.warmup, run, step, targets))
    fallen = decayed(schedule, run, step, targets)
    if schedule.kind == "cosine" and warm < 1.0:
        return warm
    shape = SHAPES["cosine" if schedule.kind == "cosine" else schedule.shape]
    return min(warm, schedule.floor + (1.0 - schedule.floor) * shape(fallen)) if fallen > 0.0 else warm


def decayed(schedule: ScheduleSettings, run: RunSettings, step: int, targets: int) -> float:
    """Share of the decay that lies behind: 0 before it begins, 1 at the end of the run."""
    if schedule.kind == "constant":
        return 0.0
    length = schedule.warmup if schedule.kind == "cosine" else schedule.decay
    at, own, whole = measured(length, run, step, targets)
    assert whole is not None, "a decay has the unit of the run's length"
    begin = own if schedule.kind == "cosine" else whole - own
    return min(1.0, (at - begin) / (whole - begin)) if at > begin and whole > begin else 0.0


def decay_is_near(schedule: ScheduleSettings, run: RunSettings, step: int, targets: int, most: int) -> bool:
    """Whether the decay of wsd has not begun, but may with the next step, which has ``most`` targets at most."""
    if schedule.kind != "wsd" or decayed(schedule, run, step, targets) > 0.0:
        return False
    return decayed(schedule, run, step + 1, targets + most) > 0.0


def free_of_length(schedule: ScheduleSettings) -> bool:
    """Whether the rate before the decay is the same whatever the length of the run: then a run can be prolonged."""
    return schedule.kind != "cosine" and (isinstance(schedule.warmup, InSteps | InBytes) or schedule.warmup == 0.0)


def elapsed(length: Length, run: RunSettings, step: int, targets: int) -> float:
    """How many times a length fits into what lies behind."""
    at, own, _ = measured(length, run, step, targets)
    return at / own if own else 1.0


def measured(length: Length, run: RunSettings, step: int, targets: int) -> tuple[float, float, float | None]:
    """What lies behind, a length, and the length of the run, all in the unit of the length.

    Steps and bytes are whole numbers, so that what they bound begins with the very step.
    """
    if isinstance(length, InSteps):
        return step, length.steps, run.steps
    if isinstance(length, InBytes):
        return targets, length.bytes, run.bytes
    return progress(run, step, targets), length, 1.0


def share_of(length: Length, run: RunSettings) -> float | None:
    """A length as a share of the run; None when it has another unit than the run's length, or that has two."""
    if isinstance(length, InSteps):
        return length.steps / run.steps if run.steps and not run.bytes else None
    if isinstance(length, InBytes):
        return length.bytes / run.bytes if run.bytes and not run.steps else None
    return length


def check_schedule(schedule: ScheduleSettings, run: RunSettings) -> None:
    """Raise ConfigError for a schedule that cannot be kept over a run; its length in passes is one in bytes already."""
    key = {"cosine": "warmup", "wsd": "decay"}.get(schedule.kind)
    if key and share_of(getattr(schedule, key), run) is None:
        raise ConfigError(f"schedule.{key} must be a share of the run, or have the one unit that the run's length has")
    parts = {"warmup": schedule.warmup} | ({"decay": schedule.decay} if schedule.kind == "wsd" else {})
    whole = sum(share_of(part, run) or 0.0 for part in parts.values())
    if whole > 1.0 or (whole == 1.0 and schedule.kind == "cosine"):
        raise ConfigError(f"schedule.{' and schedule.'.join(parts)} take more than the run: {whole:.3g} of it")


def _bound(schedule: ScheduleSettings) -> str:
    if schedule.kind == "cosine":
        return "schedule.kind is 'cosine'"
    return f"schedule.warmup is a share of the run ({schedule.warmup:g})"


def may_go_on(schedule: ScheduleSettings, before: RunSettings, now: RunSettings, step: int, targets: int) -> str | None:
    """Why a run that is there cannot go on with another length; None when both lengths gave the same rates so far."""
    if not free_of_length(schedule):
        return (
            f"{_bound(schedule)}, so that the rate depends on the run's length from the first step on (only with "
            "schedule.kind 'constant' or 'wsd' and schedule.warmup in steps or bytes a run can be given another length)"
        )
    if any(decayed(schedule, run, step, targets) > 0.0 for run in (before, now)):
        return f"the rate has begun to decay by step {step}, and no checkpoint from before that is there"
    if progress(now, step, targets) >= 1.0:
        return f"it is past that length already, at step {step}"
    return None
