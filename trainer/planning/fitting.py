"""Whether a plan fits on its device, and which settings would make it fit. Free of torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.memory.estimated import memory_by_part
from trainer.memory.parts import ON_HOST
from trainer.planning.plan import Plan
from trainer.settings import TrainSettings

ROOM = 0.9
"""Share of a device's memory that a plan may fill: the runtime and gaps between tensors need the rest."""
LEAST_TOKENS = 1024


@dataclass(frozen=True)
class Change:
    """One option that saves memory."""

    option: str
    value: str
    apply: Callable[[TrainSettings], TrainSettings]


def warning(plan: Plan) -> str | None:
    """A line when a rank does not fit on its device: how much it needs, and the options with which it would fit."""
    if plan.device is None or plan.device_memory <= ROOM * plan.device.memory:
        return None
    need = (
        f"a rank needs {plan.device_memory / 2**30:.1f} GiB and should need at most {ROOM:.0%} of the "
        f"{plan.device.gib:g} GiB of a {plan.device.name}"
    )
    for ranks in _numbers_of_ranks(plan):
        changes = _that_fit(plan, ranks)
        if changes is not None:
            options = [f"--{change.option} {change.value}" for change in changes]
            if ranks != plan.settings.plan.ranks:
                options.append(f"--plan.ranks {ranks}")
            size = _memory(plan, _applied(plan.settings, changes), ranks)
            return f"{need}; {size / 2**30:.1f} GiB with {' '.join(options)}"
    return f"{need}; no options make it fit on any number of ranks that divides data.packs, {plan.settings.data.packs}"


def _that_fit(plan: Plan, ranks: int) -> list[Change] | None:
    """As few options as it takes, those that cost the least speed first; None where all of them are not enough."""
    chosen: list[Change] = []
    for change in _changes(plan.settings):
        if _fits(plan, chosen, ranks):
            break
        chosen = [other for other in chosen if other.option != change.option] + [change]
    if not _fits(plan, chosen, ranks):
        return None
    for change in tuple(chosen):
        without = [other for other in chosen if other is not change]
        if _fits(plan, without, ranks):
            chosen = without
    return chosen


def _changes(settings: TrainSettings) -> Iterator[Change]:
    """Options that save memory, in the order in which they are tried."""
    parallel = settings.parallel
    if parallel.keep_gathered:
        yield _parallel("keep_gathered", False)
    for kind in {"none": ("selective", "full"), "selective": ("full",), "full": ()}[parallel.activation_checkpointing]:
        yield _parallel("activation_checkpointing", kind)
    if not parallel.offload:
        yield _parallel("offload", True)
    tokens = settings.data.tokens // 2
    while tokens >= LEAST_TOKENS:
        yield Change(
            "data.tokens",
            str(tokens),
            # A default binds the value of this round; mypy cannot infer a lambda with one.
            lambda settings, tokens=tokens: settings.model_copy(  # type: ignore[misc]
                update={"data": settings.data.model_copy(update={"tokens": tokens})}
            ),
        )
        tokens //= 2


def _parallel(name: str, value: Any) -> Change:
    def apply(settings: TrainSettings) -> TrainSettings:
        return settings.model_copy(update={"parallel": settings.parallel.model_copy(update={name: value})})

    return Change(f"parallel.{name}", str(value).lower(), apply)


def _applied(settings: TrainSettings, changes: Sequence[Change]) -> TrainSettings:
    for change in changes:
        settings = change.apply(settings)
    return settings


def _fits(plan: Plan, changes: Sequence[Change], ranks: int) -> bool:
    assert plan.device is not None
    return _memory(plan, _applied(plan.settings, changes), ranks) <= ROOM * plan.device.memory


def _memory(plan: Plan, settings: TrainSettings, ranks: int) -> int:
    """Bytes of a rank on its device."""
    patches = -(-plan.patches * settings.data.tokens // plan.settings.data.tokens)
    on_host = ON_HOST if settings.parallel.offload else ()
    parts = memory_by_part(settings, ranks, patches, tiled=False)
    return sum(size for part, size in parts.items() if part not in on_host)


def _numbers_of_ranks(plan: Plan) -> Iterator[int]:
    """Those of the plan, then more: each divides the packs of a step and is a multiple of a copy's ranks."""
    packs, copy = plan.settings.data.packs, plan.settings.parallel.shard or 1
    for ranks in range(plan.settings.plan.ranks, packs + 1):
        if packs % ranks == 0 and ranks % copy == 0:
            yield ranks
