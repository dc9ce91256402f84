"""A plan in words: a line for each question, wrapped under its label, and what would make it fit. Free of torch."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.io.display.quantities import counted, duration, grouped
from shared.layers.devices import GIB, MIB
from trainer.memory.estimate import estimate
from trainer.memory.parts import SELDOM, STATE
from trainer.planning.plan import Plan, PlannedPhase
from trainer.planning.teacher import TeacherPlan
from trainer.settings import TrainSettings
from trainer.settings.recipe import UNNAMED_TEACHER

WIDTH = 112
"""Columns; a recipe has room for them in its comment."""
INDENT = 14
MUCH = 0.05
"""Of the time of everything else, that a head in fp32 takes: it is named then."""
CLOSE = 0.05
"""How far apart patch sizes are that are said both."""
PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: ""}
"""By power of ten."""


def report(plan: Plan) -> str:
    """The lines of `--plan`."""
    lines = [_wrapped(label, text) for label, text in _entries(plan)]
    if words := warning(plan):
        lines.append(_wrapped("warning", words))
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=label.ljust(INDENT),
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entries(plan: Plan) -> Iterator[tuple[str, str]]:
    data = plan.settings.data
    whole = sum(plan.parameters.values())
    yield "parameters", f"{amount(whole)}: {listed(plan.parameters)}"
    if plan.trained < whole:
        yield "", f"trains {amount(plan.trained)} of them, {plan.trained / whole:.1%}"
    packs = f"{counted(data.packs, 'pack')} of {data.tokens:,} bytes"
    if plan.phases:
        packs += ", with patches by phase"
    elif plan.patch_size:
        packs += f" and at most {plan.patches:,} patches, {plan.patch_size:.2f} bytes a patch"
    yield "a step", f"{packs}: {amount(plan.step_bytes, 'B')}"
    yield "ranks", _ranks(plan)
    yield "memory", _memory(plan)
    forward = sum(plan.forward.values())
    yield "FLOPs a byte", f"forward {amount(forward)}: {listed(plan.forward)}"
    if plan.paper:
        words = f"by the paper's accounting {amount(plan.paper)}"
        if plan.entropy:
            found_by = f"{plan.entropy / forward:.0%}" if plan.entropy_known else "with the paper's entropy model"
            words += f"; finding patches {amount(plan.entropy)} more, {found_by}"
        yield "", words
    yield "", f"training {amount(plan.training)} useful, {amount(plan.executed)} executed"
    for number, phase in enumerate(plan.phases, 1):
        yield (
            "" if number > 1 else "phases",
            f"{number}: {phase.share:.0%} of the run, {phase.patch_size:.2f} bytes a patch{_begun(phase)}, at most "
            f"{phase.patches:,} in a pack; training {amount(phase.training)} a byte, "
            f"{phase.training * phase.share * plan.bytes:.2e} FLOPs",
        )
    speed = f", {amount(plan.bytes / plan.seconds, 'B/s')}" if plan.seconds else ""
    time = _time(plan, plan.seconds, plan.settings.run.dtype, plan.head)
    yield "the run", f"{counted(plan.steps, 'step')}, {amount(plan.bytes, 'B')}, {plan.flops:.2e} FLOPs{time}{speed}"
    if plan.teacher:
        yield from _teacher(plan, plan.teacher)
    elif (wanted := plan.settings.distillation) and wanted.probabilities:
        named = wanted.teacher is not None and wanted.teacher.name != UNNAMED_TEACHER
        missing = f"{wanted.teacher} does not exist; " if named else ""
        words = f"not counted: {missing}--distillation.teacher names its folder, in which config.json is enough"
        yield "the teacher", words


def _teacher(plan: Plan, teacher: TeacherPlan) -> Iterator[tuple[str, str]]:
    words = f"{amount(teacher.forward)} FLOPs a byte in windows of {teacher.context:,} tokens"
    if teacher.model:
        words = f"{teacher.model.name}, {amount(teacher.model.parameters)} parameters; {words}"
    time = _time(plan, plan.teacher_seconds, teacher.precision, teacher.head)
    yield "the teacher", f"{words}: once over {amount(teacher.bytes, 'B')} of text, {teacher.flops:.2e} FLOPs{time}"
    made = "there" if teacher.found else "to be made"
    yield (
        "targets",
        f"{teacher.target_bytes} bytes a byte of text, the {counted(teacher.top, 'most probable symbol')} in "
        f"{teacher.dtype}: {amount(teacher.stored, 'B')} on disk, {made}",
    )
    both = plan.flops + teacher.flops
    words = f"{both:.2e} FLOPs, {teacher.flops / both:.0%} of them the teacher's"
    if plan.seconds is not None and plan.teacher_seconds is not None:
        seconds = plan.seconds + plan.teacher_seconds
        words += f"; {duration(seconds)}, {grouped(seconds / 3600 * plan.settings.plan.ranks)} GPU-hours"
    yield "both", words


def _begun(phase: PlannedPhase) -> str:
    """What documents that begin in the phase have, where those that go on from before it make a difference."""
    apart = abs(phase.patch_size / phase.size - 1) > CLOSE
    return f" ({phase.size:.2f} of documents that begin in it)" if apart else ""


def _ranks(plan: Plan) -> str:
    options, parallel = plan.settings.plan, plan.settings.parallel
    copies = options.ranks // (parallel.shard or options.ranks)
    device = plan.device.name if plan.device else "CPU"
    words = [
        f"{options.ranks} x {device}",
        f"{counted(plan.settings.data.packs // options.ranks, 'pack')} each",
        f"{copies} copies of the model" if copies > 1 else "one copy of the model",
    ]
    if parallel.keep_gathered:
        words.append("whole during a step")
    if parallel.activation_checkpointing != "none":
        words.append(f"{parallel.activation_checkpointing} recomputing")
    if parallel.offload:
        words.append("state on the host")
    return ", ".join([*words, plan.settings.run.dtype])


def _memory(plan: Plan) -> str:
    """In GiB, of small models in MiB."""
    unit, name = (GIB, "GiB") if plan.device_memory >= GIB else (MIB, "MiB")
    on_host = STATE if plan.settings.parallel.offload else ()
    words = [
        f"{part.replace('_', ' ')} {size / unit:.2f}{' on the host' * (part in on_host)}"
        for part, size in plan.memory.parts().items()
        if size or part not in SELDOM
    ]
    of = f" of {plan.device.memory / unit:g}" if plan.device else ""
    return f"{plan.device_memory / unit:.2f}{of} {name} a rank: {', '.join(words)}"


def _time(plan: Plan, seconds: float | None, dtype: str, head: float) -> str:
    """Of so many seconds of computing in ``dtype``, with the ``head``, a share of the FLOPs, in fp32."""
    if plan.device is None or seconds is None:
        return ""
    options = plan.settings.plan
    device_hours, peak = grouped(seconds / 3600 * options.ranks), amount(plan.device.peak(dtype), "FLOP/s")
    if dtype != "float32" and head / plan.device.peak("float32") > MUCH / plan.device.peak(dtype):
        peak += f" (head {amount(plan.device.peak('float32'))})"
    return f"; at {options.utilisation:.0%} of {peak} {duration(seconds)}, {device_hours} GPU-hours"


def listed(counts: Mapping[str, float]) -> str:
    """Parts and amounts, those that are nothing left out."""
    return ", ".join(f"{part.replace('_', ' ')} {amount(count)}" for part, count in counts.items() if count)


def amount(value: float, unit: str = "") -> str:
    """Three digits of a number with k, M, G, T or P and its unit: 4.53 G, 812 MB."""
    rounded = float(f"{value:.3g}")
    power = next((power for power in PREFIXES if rounded >= 10**power), 0)
    scaled = rounded / 10**power
    digits = 2 - math.floor(math.log10(scaled)) if scaled else 0
    return f"{scaled:.{max(digits, 0)}f} {PREFIXES[power]}{unit}".rstrip()


# ---- Whether a plan fits on its device, and which settings would make it fit.


ROOM = 0.9
"""Share of a device's memory that a plan may fill: the runtime and gaps between tensors need the rest."""
LEAST_TOKENS = 1024


@dataclass(frozen=True)
class Change:
    """One option that saves memory."""

    section: str
    key: str
    value: Any

    def __str__(self) -> str:
        return f"--{self.section}.{self.key} {str(self.value).lower()}"

    def apply(self, settings: TrainSettings) -> TrainSettings:
        """The settings with it."""
        section = getattr(settings, self.section).model_copy(update={self.key: self.value})
        return settings.model_copy(update={self.section: section})


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
            options = list(map(str, changes))
            if ranks != plan.settings.plan.ranks:
                options.append(f"--plan.ranks {ranks}")
            size = _device_memory(plan, _applied(plan.settings, changes), ranks)
            return f"{need}; {size / 2**30:.1f} GiB with {' '.join(options)}"
    return f"{need}; no options make it fit on any number of ranks that divides data.packs, {plan.settings.data.packs}"


def _that_fit(plan: Plan, ranks: int) -> list[Change] | None:
    """As few options as it takes, those that cost the least speed first; None where all of them are not enough."""
    chosen: list[Change] = []
    for change in _changes(plan.settings):
        if _fits(plan, chosen, ranks):
            break
        chosen = [other for other in chosen if other.key != change.key] + [change]
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
        yield Change("parallel", "keep_gathered", False)
    for kind in {"none": ("selective", "full"), "selective": ("full",), "full": ()}[parallel.activation_checkpointing]:
        yield Change("parallel", "activation_checkpointing", kind)
    if not parallel.offload:
        yield Change("parallel", "offload", True)
    tokens = settings.data.tokens // 2
    while tokens >= LEAST_TOKENS:
        yield Change("data", "tokens", tokens)
        tokens //= 2


def _applied(settings: TrainSettings, changes: Sequence[Change]) -> TrainSettings:
    for change in changes:
        settings = change.apply(settings)
    return settings


def _fits(plan: Plan, changes: Sequence[Change], ranks: int) -> bool:
    assert plan.device is not None
    return _device_memory(plan, _applied(plan.settings, changes), ranks) <= ROOM * plan.device.memory


def _device_memory(plan: Plan, settings: TrainSettings, ranks: int) -> int:
    """Bytes of a rank on its device."""
    patches = -(-plan.patches * settings.data.tokens // plan.settings.data.tokens)
    found = estimate(settings, ranks, patches, tiled=False, teacher=plan.memory.teacher)
    return found.on_device(settings.parallel.offload)


def _numbers_of_ranks(plan: Plan) -> Iterator[int]:
    """Those of the plan, then more: each divides the packs of a step and is a multiple of a copy's ranks."""
    packs, copy = plan.settings.data.packs, plan.settings.parallel.shard or 1
    for ranks in range(plan.settings.plan.ranks, packs + 1):
        if packs % ranks == 0 and ranks % copy == 0:
            yield ranks
