"""A run in words: what came out, how fast, and what interrupted it. Free of torch."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from shared.io.display.quantities import clock, counted, quantity
from shared.io.display.tables import aligned
from trainer.metrics.files import values
from trainer.metrics.history import History

SUBSETS = 6
"""Subsets that the summary names."""


def summary(run: History) -> list[tuple[str, str]]:
    """Facts with their labels, the most important first; what was not logged is left out."""
    last = run.lines[-1]
    facts = [("run", _state(run))]
    trained = f"{counted(last['step'], 'step')}, {counted(last['targets'], 'target')} (bytes, and one EOS a document)"
    seconds = [value for value in values(run.lines, "seconds") if value is not None]
    facts.append(("trained", trained + (f"{_last_steps(run)} in {clock(seconds[-1])}" if seconds else "")))
    facts += _losses(run)
    if speed := _mean(run.lines, "bytes_per_second"):
        facts.append(("speed", f"{quantity(speed)}B/s in the mean"))
    if computation := _computation(run):
        facts.append(("computation", computation))
    facts += _memory(run)
    if (waited := _mean(run.lines, "data_wait")) is not None:
        facts.append(("waiting for data", f"{waited:.2%} of the time"))
    if subsets := _subsets(run):
        facts.append(("subsets", subsets))
    facts.append(("interruptions", _interruptions(run)))
    return facts


def _last_steps(run: History) -> str:
    """Which steps the figures are of, where those before were trained in another folder: a mirror has no figures."""
    before = run.starts[0]["step"] if run.starts else 0
    return f", the last {counted(run.lines[-1]['step'] - before, 'step')} (here)" if before else ""


def _subsets(run: History) -> str:
    """Documents taken from each of several subsets and the passes that they are, the most first."""
    if len(run.sampled) < 2:
        return ""
    most = sorted(run.sampled.items(), key=lambda item: -item[1][0])
    words = [f"{name} {counted(count, 'document')} ({passes:.2f} passes)" for name, (count, passes) in most[:SUBSETS]]
    rest = len(most) - len(words)
    return ", ".join(words) + (f", and {rest} more in metrics.jsonl" if rest else "")


def _state(run: History) -> str:
    if run.finished:
        return f"{run.folder}, done"
    share = "" if run.done is None else f" at {min(run.done, 1.0):.1%} of its length"
    return f"{run.folder}, not done{share}"


def _losses(run: History) -> list[tuple[str, str]]:
    """Bits per byte, and the loss of a run that distils, as far as there are such."""
    distils = any("distillation_loss" in line for line in run.lines)
    facts = []
    for label, key in (("bits per byte", "bits_per_byte"), ("distillation loss", "distillation_loss")):
        trained = [value for value in values(run.lines, key) if value is not None]
        words = [f"{trained[-1]:.4f} on the last training interval"] if trained else []
        if run.validations and key in run.validations[-1]["validation"]:
            words.insert(0, _validated(run.validations[-1]["validation"], key))
        if words or (key == "bits_per_byte" and not distils):
            facts.append((label, ", ".join(words) or "nothing trained"))
    return facts


def _validated(validation: dict[str, Any], key: str) -> str:
    subsets, total = validation.get("subsets", {}), validation[key]
    by_subset = ", ".join(f"{name} {value:.4f}" for name, value in subsets.items() if value is not None)
    more = f" ({by_subset})" if len(subsets) > 1 else ""
    return f"{'not finite' if total is None else f'{total:.4f}'} on validation{more}"


def _computation(run: History) -> str:
    """Useful FLOPs per second, and their share of the devices' peak, or why there is none."""
    flops = _mean(run.lines, "flops_per_second")
    return f"{quantity(flops)}FLOP/s useful in the mean; {_utilisation(run)}" if flops is not None else ""


def _utilisation(run: History) -> str:
    model, hardware = (_mean(run.lines, f"utilisation/{name}") for name in ("model", "hardware"))
    last = run.starts[-1] if run.starts else {}
    if run.peak_exceeded or (model is None and last.get("peak_flops")):
        return "no utilisation: the run computed more than its peak allows, so that peak is wrong (metrics.peak_flops)"
    if model is None or hardware is None:
        device = last.get("device", "this device")
        return f"no utilisation: no peak is listed for {device} (metrics.peak_flops sets one)"
    return f"{model:.1%} model FLOPs utilisation ({hardware:.1%} with padding and repeats)"


def _memory(run: History) -> list[tuple[str, str]]:
    peaks = [value for value in values(run.lines, "memory/peak") if value is not None]
    facts = [("memory", f"{quantity(max(peaks))}B at most on one rank")] if peaks else []
    if parts := memory_parts(run):
        words = ", ".join(f"{name.replace('_', ' ')} {quantity(size)}B" for name, size in parts.items())
        facts.append(("memory by part", f"{words} (dry run, the rank that needs most)"))
    return facts


def memory_parts(run: History) -> dict[str, int]:
    """Bytes by part of the rank that needs most, as the dry run found; empty without one."""
    ranks: list[dict[str, int]] = run.memory.get("ranks", [])
    most = max(ranks, key=lambda rank: rank.get("peak", 0), default={})
    return {name: size for name, size in most.items() if size and name != "peak"}


def _interruptions(run: History) -> str:
    resumes = run.resumes()
    skipped = int(sum(value or 0 for value in values(run.lines, "skipped")))
    if not resumes and not skipped:
        return "none; 0 steps skipped"
    repeated = sum(start.get("repeated", 0) for start in run.starts)
    words = f"resumed {len(resumes)} time{'s' * (len(resumes) != 1)}"
    if repeated:
        words += f", {repeated} logged steps done again"
    return f"{words}, {skipped} step{'s' * (skipped != 1)} skipped"


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    """The mean of a figure over lines, the first of a start left out where there are more: it warms up."""
    found = [value for value in values(lines, key) if value is not None]
    return fmean(found[1:] or found) if found else None


def in_words(facts: Sequence[tuple[str, str]]) -> str:
    """A line for each fact."""
    return aligned(facts[0], facts[1:], left=(0, 1))
