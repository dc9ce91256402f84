"""A plan in words: a line for each question, wrapped under its label."""

import math
import textwrap
from collections.abc import Iterator, Mapping

from shared.layers.devices import GIB, MIB
from trainer.memory.parts import ON_HOST
from trainer.planning.fitting import warning
from trainer.planning.plan import Plan

WIDTH = 112
"""Columns; a recipe has room for them in its comment."""
INDENT = 14
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
    yield "parameters", f"{amount(sum(plan.parameters.values()))}: {listed(plan.parameters)}"
    packs = f"{counted(data.packs, 'pack')} of {data.tokens:,} bytes"
    if plan.patch_size:
        packs += f" and at most {plan.patches:,} patches, {plan.patch_size:.2f} bytes a patch"
    yield "a step", f"{packs}: {amount(plan.step_bytes, 'B')}"
    yield "ranks", _ranks(plan)
    yield "memory", _memory(plan)
    forward = sum(plan.forward.values())
    yield "FLOPs a byte", f"forward {amount(forward)}: {listed(plan.forward)}"
    if plan.paper and plan.entropy:
        found_by = f"{plan.entropy / forward:.0%}" if plan.entropy_known else "with the paper's entropy model"
        yield (
            "",
            f"by the paper's accounting {amount(plan.paper)}; finding patches {amount(plan.entropy)} more, {found_by}",
        )
    yield "", f"training {amount(plan.training)} useful, {amount(plan.executed)} executed"
    yield "the run", f"{counted(plan.steps, 'step')}, {amount(plan.bytes, 'B')}, {plan.flops:.2e} FLOPs{_time(plan)}"


def _ranks(plan: Plan) -> str:
    asked, parallel = plan.settings.plan, plan.settings.parallel
    copies = asked.ranks // (parallel.shard or asked.ranks)
    device = plan.device.name if plan.device else "CPU"
    words = [
        f"{asked.ranks} x {device}",
        f"{counted(plan.settings.data.packs // asked.ranks, 'pack')} each",
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
    on_host = ON_HOST if plan.settings.parallel.offload else ()
    words = [
        f"{part.replace('_', ' ')} {size / unit:.2f}{' on the host' * (part in on_host)}"
        for part, size in plan.memory.items()
    ]
    of = f" of {plan.device.memory / unit:g}" if plan.device else ""
    return f"{plan.device_memory / unit:.2f}{of} {name} a rank: {', '.join(words)}"


def _time(plan: Plan) -> str:
    if plan.device is None or plan.seconds is None:
        return ""
    asked, hours = plan.settings.plan, plan.seconds / 3600
    peak = amount(plan.device.peak(plan.settings.run.dtype), "FLOP/s")
    return (
        f"; at {asked.utilisation:.0%} of {peak} {duration(plan.seconds)}, {grouped(hours * asked.ranks)} GPU-hours, "
        f"{amount(plan.bytes / plan.seconds, 'B/s')}"
    )


def listed(counts: Mapping[str, float]) -> str:
    """Parts and amounts, those that are nothing left out."""
    return ", ".join(f"{part.replace('_', ' ')} {amount(count)}" for part, count in counts.items() if count)


def counted(count: int, thing: str) -> str:
    """1 pack, 2 packs."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """In the unit that one would use: 94 seconds, 25.1 hours, 21.1 days, 2.8 years."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{grouped(seconds / size)} {unit}"
    return f"{grouped(seconds)} seconds"


def grouped(value: float) -> str:
    """Three digits, or all before the point: 0.213, 10.5, 2,250."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def amount(value: float, unit: str = "") -> str:
    """Three digits of a number with k, M, G, T or P and its unit: 4.53 G, 812 MB."""
    rounded = float(f"{value:.3g}")
    power = next((power for power in PREFIXES if rounded >= 10**power), 0)
    scaled = rounded / 10**power
    digits = 2 - math.floor(math.log10(scaled)) if scaled else 0
    return f"{scaled:.{max(digits, 0)}f} {PREFIXES[power]}{unit}".rstrip()
