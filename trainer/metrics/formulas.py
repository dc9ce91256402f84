"""From sums to the figures of a line: pure functions. docs/metrics.md has every figure with its unit and formula."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from trainer.data.packing.limits import PackLimits
from trainer.metrics.accumulator import Accumulator, RankSums
from trainer.metrics.subset_score import SubsetScore, bits_per_byte, total_of
from trainer.optim.step_timer import PARTS

ROUNDING = 1e-9
"""Sums of seconds and of counts in fp64 are exact to far less than this."""


class ShareError(ArithmeticError):
    """A share that cannot be true: below 0 or above 1."""


def share(part: float, whole: float, what: str) -> float:
    """``part`` / ``whole``, NaN where the whole is 0. Raises ShareError outside of 0 to 1: nothing is clamped."""
    found = part / whole if whole else math.nan
    if found < 0 or found > 1 + ROUNDING:
        raise ShareError(f"{what} is not a share: {part:.6g} of {whole:.6g}")
    return found


def interval_metrics(
    sums: Accumulator, ranks: Sequence[RankSums], limits: PackLimits, seconds: float, peak: float | None
) -> dict[str, Any]:
    """The figures of a line: what steps added up to in so many seconds, over all ranks.

    ``peak``: FLOPs per second of one rank's device at best; None: utilisation is left out. Raises ShareError when a
    share is impossible.
    """
    together = RankSums(*(sum(values) for values in zip(*(astuple(rank) for rank in ranks))))
    per_step = 1 / (sums.steps * len(ranks))
    figures: dict[str, Any] = {
        "grad_norm": sums.grad_norm,
        "grad_norm_by_part": sums.norms,
        "skipped": sums.skipped,
        "bytes_per_second": together.text / seconds,
        "token_fill": share(together.tokens, together.packs * limits.tokens, "token_fill"),
        "data_wait": share(together.waited, together.seconds, "data_wait"),
        "step_seconds": {"whole": seconds / sums.steps} | {part: getattr(together, part) * per_step for part in PARTS},
        "memory": {name: max(getattr(rank, name) for rank in ranks) for name in ("held", "reserved", "peak")},
        **compute(together, seconds, peak and peak * len(ranks)),
    }
    if sums.targets:
        loss = sums.nats / sums.targets
        if sums.terms:  # the loss includes the teacher's terms, so it gives no bits per byte
            by_term = {name: value / sums.targets for name, value in sums.terms.items()}
            figures |= {"loss": loss, "distillation_loss": loss, "distillation": by_term}
        else:
            figures |= {"loss": loss, "bits_per_byte": bits_per_byte(sums.nats, sums.target_bytes)}
    if limits.patches is not None:
        figures |= {
            "patches_per_second": together.own_patches / seconds,
            "bytes_per_patch": together.text / together.own_patches if together.own_patches else math.nan,
            "patch_fill": share(together.patches, together.patch_room, "patch_fill"),
        }
    if limits.credit is not None:
        figures["refused"] = share(together.refused, together.wanted, "refused")
    return figures | slowest(ranks)


def compute(together: RankSums, seconds: float, peak: float | None) -> dict[str, Any]:
    """FLOPs per byte and per second, and utilisation: shares of ``peak``, what all devices can do in a second.

    The entropy model's FLOPs are apart: they were spent when the data was made, once for all its passes. Raises
    ShareError when the devices would have done more than ``peak``: then the peak is wrong.
    """
    flops = {"useful": together.useful, "executed": together.executed}
    if together.scoring:
        flops["entropy_model"] = together.scoring
    found: dict[str, Any] = {
        "flops_per_second": together.useful / seconds,
        "flops_per_byte": {name: own / together.text if together.text else math.nan for name, own in flops.items()},
    }
    if peak:
        found["utilisation"] = {
            "model": share(together.useful, seconds * peak, "utilisation/model"),
            "hardware": share(together.executed, seconds * peak, "utilisation/hardware"),
        }
    return found


def sampled_metrics(sampled: Mapping[str, int], documents: Mapping[str, int]) -> dict[str, Any]:
    """Documents taken from each subset since the beginning of the run, and how many passes over the subset that is."""
    return {
        "sampled": dict(sampled),
        "passes": {name: count / documents[name] for name, count in sampled.items() if documents[name]},
    }


def slowest(ranks: Sequence[RankSums]) -> dict[str, Any]:
    """Which rank was busiest, and how much longer than ranks in the mean; nothing when there is one."""
    mean = sum(rank.busy for rank in ranks) / len(ranks)
    if len(ranks) == 1 or not mean:
        return {}
    number = max(range(len(ranks)), key=lambda rank: ranks[rank].busy)
    return {"slowest_rank": {"rank": number, "over_mean": ranks[number].busy / mean}}


def measure(score: SubsetScore, causal: bool) -> float:
    """Bits per byte, or nats a target of a model that does not predict text; NaN where there is none."""
    if causal:
        return score.bits_per_byte
    return score.nats / score.targets if score.targets else math.nan


def validation_metrics(scores: Mapping[str, SubsetScore], causal: bool = True) -> dict[str, Any]:
    """What a pass over the validation split found: in total and by subset.

    ``causal``: whether the model predicts text; else its cross-entropy is a distillation loss, nats a target.
    """
    whole = total_of(scores)
    figures: dict[str, Any] = {
        ("bits_per_byte" if causal else "distillation_loss"): measure(whole, causal),
        "subsets": {name: measure(score, causal) for name, score in scores.items()},
    }
    if whole.patches:
        figures["bytes_per_patch"] = whole.bytes_per_patch
        figures["bytes_per_patch_by_subset"] = {name: score.bytes_per_patch for name, score in scores.items()}
    return {"validation": figures}
