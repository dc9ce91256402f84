"""What a scaling study found, for a terminal. Pure."""

from collections.abc import Callable, Sequence
from statistics import fmean

from shared.io.display.tables import aligned
from trainer.experiments.scaling.record import Counted, Estimate, Frontier, IsoFlop, JointFit, Scaling
from trainer.experiments.scaling.study import counted_in

COUNTED_WORDS: dict[Counted, str] = {
    "model": "FLOPs of the models alone",
    "whole": "FLOPs with those of the entropy model",
}


def in_words(scaling: Scaling) -> str:
    """Everything measured, then everything fitted, then what is only predicted."""
    parts = [measured(scaling)]
    for counted in counted_in(scaling.runs):
        frontiers = [found for found in scaling.frontiers if found.counted == counted]
        parts.append(f"{COUNTED_WORDS[counted]}; in brackets {scaling.confidence:.0%} intervals")
        parts.append(optima([found for found in scaling.iso_flop if found.counted == counted]))
        if frontiers:
            parts.append(growth(frontiers))
            parts.append(predictions(frontiers))
        parts += [found.words for found in scaling.crossovers if found.counted == counted]
    if scaling.joint_fits:
        parts.append(joint(scaling.joint_fits))
    parts += scaling.without
    return "\n\n".join(part for part in parts if part)


def measured(scaling: Scaling) -> str:
    """Bits per byte of each size at each budget, means over seeds, the fewest of a family and budget marked."""
    rows = []
    for family in scaling.families:
        own = [run for run in scaling.runs if run.family == family]
        names = sorted(
            {run.size for run in own}, key=lambda name: min(c.size_flops("model") for c in own if c.size == name)
        )
        means = {
            (name, budget): fmean(bits)
            for name in names
            for budget in scaling.budgets
            if (bits := [c.result.bits_per_byte for c in own if (c.size, c.budget_flops) == (name, budget)])
        }
        for name in names:
            first = next(run for run in own if run.size == name)
            row = [
                f"{family} {name}",
                _millions(first.result.dense_parameters),
                f"{first.size_flops('model') / 1e6:.3g}",
                f"{first.result.entropy_flops_per_byte / 1e6:.3g}" if first.result.entropy_flops_per_byte else "",
            ]
            for budget in scaling.budgets:
                mean = means.get((name, budget))
                best = min((value for (_, other), value in means.items() if other == budget), default=None)
                row.append("-" if mean is None else f"{mean:.4f}{'*' if mean == best else ' '}")
            rows.append(row)
    head = ["measured", "parameters", "MFLOP/byte", "entropy", *(f"{budget:.3g} " for budget in scaling.budgets)]
    return aligned(head, rows) + "\nbits per byte of validation text by budget in useful training FLOPs; * the fewest"


def optima(found: Sequence[IsoFlop]) -> str:
    """The best size of each family at each budget, or why there is none."""
    rows, refused = [], []
    for profile in found:
        best = profile.optimum
        if best is None:
            refused.append(f"{profile.family} at {profile.budget_flops:.3g} FLOPs: {profile.refusal}.")
            continue
        inside = "" if best.inside is None else f"{best.inside:.0%}"
        rows.append(
            [
                profile.family,
                f"{best.cost_flops:.3g}",
                _estimate(best.bits_per_byte, ".4f"),
                _estimate(_in_millions(best.flops_per_byte), ".3g"),
                _millions(best.parameters),
                f"{best.bytes / 1e6:.3g}",
                inside,
            ]
        )
    head = ["best size", "FLOPs", "bits per byte", "MFLOP/byte", "parameters", "MB trained on", "in grid"]
    return "\n".join([*([aligned(head, rows)] if rows else []), *refused])


def growth(frontiers: Sequence[Frontier]) -> str:
    """How bits and best size grow with the budget."""
    heads = ["growth", "fit", "budgets", "exponent a", "floor E", "best size ~ C^"]
    return aligned(heads, growth_rows(frontiers, _estimate, ""))


def growth_rows(frontiers: Sequence[Frontier], estimate: Callable[[Estimate, str], str], none: str) -> list[list[str]]:
    """Family, fit, budgets, exponent, floor (``none`` for a line) and exponent of the best size of each."""
    return [
        [
            line.family,
            "E + A C^-a" if line.form == "floor" else "A C^-a",
            str(line.budgets),
            estimate(line.exponent, ".3f"),
            none if line.floor is None else estimate(line.floor, ".3f"),
            estimate(line.size_exponent, ".3f"),
        ]
        for line in frontiers
    ]


def predictions(frontiers: Sequence[Frontier]) -> str:
    """What lies beyond the data, labelled as predicted."""
    rows = [
        [
            line.family,
            f"{far.cost_flops:.3g}",
            _estimate(far.bits_per_byte, ".3f"),
            _estimate(_in_millions(far.flops_per_byte), ".3g"),
        ]
        for line in frontiers
        for far in line.predictions
    ]
    if not rows:
        return ""
    note = "predicted from the fits, not measured; the interval knows of scatter alone, not of a curve that bends"
    return aligned(["PREDICTED", "FLOPs", "bits per byte", "MFLOP/byte"], rows) + f"\n{note}"


def joint(fits: Sequence[JointFit]) -> str:
    """Both exponents of each family."""
    return aligned(["E + A N^-a + B D^-b", "E", "a (size)", "b (data)", "error"], joint_rows(fits))


def joint_rows(fits: Sequence[JointFit]) -> list[list[str]]:
    """Family, floor, both exponents and error of each."""
    exact = [[f"{value:.3f}" for value in (fit.floor, fit.size_exponent, fit.data_exponent)] for fit in fits]
    return [[fit.family, *values, f"{fit.error:.2%}"] for fit, values in zip(fits, exact)]


def _estimate(found: Estimate, form: str) -> str:
    ends = interval_ends(found, lambda value: format(value, form))
    return f"{found.value:{form}} [{', '.join(ends)}]" if ends else f"{found.value:{form}}"


def interval_ends(found: Estimate, form: Callable[[float], str]) -> list[str]:
    """Both ends of an interval, one that is not known as a question mark; none where neither is known."""
    if found.low is None and found.high is None:
        return []
    return ["?" if end is None else form(end) for end in (found.low, found.high)]


def _in_millions(found: Estimate) -> Estimate:
    return Estimate(**{name: value and value / 1e6 for name, value in found.model_dump().items()})


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} M"
