"""A scaling study on a page: what was measured, what was fitted, and apart from both what is predicted. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.io.display.quantities import quantity
from trainer.drawing.axes import short
from trainer.drawing.chart import Curve, chart
from trainer.drawing.page import Markup, facts, header, listed, section, table
from trainer.experiments.scaling.record import Counted, Estimate, Frontier, IsoFlop, Scaling
from trainer.experiments.scaling.study import counted_in
from trainer.experiments.scaling.words import growth_rows, interval_ends, joint_rows

COUNTED_WORDS: dict[Counted, str] = {"model": "the model's FLOPs", "whole": "FLOPs with the entropy model's"}
PREDICTED = "Predicted from the fits, not measured; an interval knows of scatter alone, not of a curve that bends."


def scaling_content(scaling: Scaling, date: str) -> str:
    """What the page says, as markup."""
    runs = len(scaling.runs)
    about = [
        ("corpus", scaling.corpus),
        ("text", f"{quantity(scaling.train_bytes)}B to train on, {quantity(scaling.validation_bytes)}B of validation"),
        ("budgets", ", ".join(f"{quantity(budget)}FLOP" for budget in scaling.budgets)),
        ("runs", f"{runs} finished, seeds {', '.join(map(str, scaling.seeds))}"),
        ("intervals", f"{scaling.confidence:.0%}, from {scaling.replicates:,} replicates"),
        ("machine", scaling.machine),
        ("recorded", date),
    ]
    parts = [header(scaling.title, facts(about) + listed(scaling.without, "warnings"))]
    parts += [
        section(f"Growth, counted in {COUNTED_WORDS[counted]}", _growth(scaling, counted))
        for counted in counted_in(scaling.runs)
    ]
    parts.append(section("Joint fit", _joint(scaling), "E + A N^-a + B D^-b: N parameters without tables, D bytes."))
    return "".join(parts)


def _growth(scaling: Scaling, counted: Counted) -> str:
    frontiers = [one for one in scaling.frontiers if one.counted == counted]
    crossovers = [one.words for one in scaling.crossovers if one.counted == counted]
    profiles = [one for one in scaling.iso_flop if one.counted == counted]
    refused = [f"{one.family} at {_flop(one.budget_flops)}: {one.refusal}." for one in profiles if one.refusal]
    plots = frontier_plot(scaling, frontiers, counted) + prediction_plot(scaling, frontiers, counted)
    plots += "".join(iso_flop_plot(scaling, family, profiles, counted) for family in scaling.families)
    return "".join(
        (
            listed(crossovers, "findings"),
            f'<div class="charts">{plots}</div>',
            _optima(profiles),
            listed(refused, "note"),
            _fits(frontiers),
            _predictions(frontiers),
        )
    )


def frontier_plot(scaling: Scaling, frontiers: Sequence[Frontier], counted: Counted) -> str:
    """Bits per byte over training FLOPs: a dot a run, and the fitted lines with their bands."""
    curves = []
    for colour, family in enumerate(scaling.families):
        runs = sorted((one.cost(counted), one.result.bits_per_byte) for one in scaling.runs if one.family == family)
        curves.append(Curve(family, runs, colour, shape=colour, dots=True, line=False))
    curves += [replace(_fitted(scaling, line), listed=False) for line in frontiers]
    words = "Lower is better. Dots are runs of all sizes, lines are fitted through the best size of each budget."
    return chart("Bits per byte over budget", "measured", _cost(counted), curves, x_log=True, y_log=True, words=words)


def prediction_plot(scaling: Scaling, frontiers: Sequence[Frontier], counted: Counted) -> str:
    """The fitted lines and where they lead; empty where nothing is predicted."""
    curves = []
    for line in frontiers:
        if not line.predictions:
            continue
        fitted = _fitted(scaling, line)
        last = line.curve[-1]
        ahead = [(last.at, last.bits_per_byte), *((far.cost_flops, far.bits_per_byte) for far in line.predictions)]
        drawn_on = Curve(
            f"{line.family}, predicted",
            [(at, found.value) for at, found in ahead],
            fitted.colour,
            dash=2,
            shape=fitted.colour,
            dots=True,
            hollow=True,
            thin=True,
            band=[(at, *_ends(found)) for at, found in ahead],
        )
        curves += [fitted, drawn_on]
    words = "Dotted lines and hollow signs are drawn on from the fits: nobody has measured them."
    return chart("Predictions", "bits per byte", _cost(counted), curves, x_log=True, y_log=True, words=words)


def _fitted(scaling: Scaling, line: Frontier) -> Curve:
    return Curve(
        f"{line.family}, fitted",
        [(point.at, point.bits_per_byte.value) for point in line.curve],
        scaling.families.index(line.family),
        band=[(point.at, *_ends(point.bits_per_byte)) for point in line.curve],
    )


def _cost(counted: Counted) -> str:
    return f"training: {COUNTED_WORDS[counted]}"


def iso_flop_plot(scaling: Scaling, family: str, profiles: Sequence[IsoFlop], counted: Counted) -> str:
    """Bits per byte over size: a colour a budget, dots for runs, lines for parabolas, a hollow dot at their minimum."""
    own = [one for one in scaling.runs if one.family == family]
    if counted == "whole" and not any(one.result.entropy_flops for one in own):
        return ""
    curves = []
    for colour, budget in enumerate(scaling.budgets):
        runs = sorted((one.size_flops(counted), one.result.bits_per_byte) for one in own if one.budget_flops == budget)
        curves.append(Curve(_flop(budget), runs, colour, shape=colour, dots=True, line=False))
        for profile in profiles:
            if (profile.family, profile.budget_flops) != (family, budget):
                continue
            points = [(point.at, point.bits_per_byte.value) for point in profile.curve]
            band = [(point.at, *_ends(point.bits_per_byte)) for point in profile.curve]
            curves.append(Curve("fitted", points, colour, listed=False, band=band))
            if (best := profile.optimum) is not None:
                at = [(best.flops_per_byte.value, best.bits_per_byte.value)]
                curves.append(Curve("best size", at, colour, shape=1, dots=True, hollow=True, line=False, listed=False))
    words = (
        "Lower is better. A colour is a budget: dots are runs, lines are parabolas, a hollow diamond is the best size."
    )
    unit = f"size: FLOPs a byte, {COUNTED_WORDS[counted]}"
    return chart(f"Sizes of {family}", "bits per byte", unit, curves, x_log=True, from_zero=False, words=words)


def _optima(profiles: Sequence[IsoFlop]) -> str:
    lines = [
        [
            one.family,
            _flop(best.cost_flops),
            _estimate(best.bits_per_byte, ".4f"),
            Markup(f"{short(best.flops_per_byte.value)}{_between(best.flops_per_byte, short)}"),
            short(best.parameters),
            short(best.bytes),
            "–" if best.inside is None else f"{best.inside:.0%}",
        ]
        for one in profiles
        if (best := one.optimum) is not None
    ]
    heads = [
        "best size",
        "budget",
        "bits/byte",
        "FLOP/byte",
        "parameters",
        "bytes trained on",
        "inside the sizes tried",
    ]
    return table(heads, lines, "The best size of each family at each budget") if lines else ""


def _fits(frontiers: Sequence[Frontier]) -> str:
    lines = growth_rows(frontiers, _estimate, "–")
    heads = ["growth", "fit to budget C", "budgets", "exponent a", "floor E", "best size as C to the"]
    return table(heads, lines, "How bits per byte fall with the budget") if lines else ""


def _predictions(frontiers: Sequence[Frontier]) -> str:
    lines = [
        [
            line.family,
            _flop(far.cost_flops),
            _estimate(far.bits_per_byte, ".3f"),
            short(far.flops_per_byte.value),
        ]
        for line in frontiers
        for far in line.predictions
    ]
    if not lines:
        return ""
    heads = ["predicted", "budget", "bits/byte", "best FLOP/byte"]
    return f'<p class="note">{PREDICTED}</p>{table(heads, lines, "Predictions", "figures predicted")}'


def _joint(scaling: Scaling) -> str:
    lines = joint_rows(scaling.joint_fits)
    return table(["family", "floor E", "a (size)", "b (data)", "error"], lines, "Joint fits") if lines else ""


def _flop(value: float) -> str:
    return f"{short(value)} FLOP"


def _ends(found: Estimate) -> tuple[float, float]:
    """The interval; where an end is not known, the value itself."""
    return found.value if found.low is None else found.low, found.value if found.high is None else found.high


def _estimate(found: Estimate, form: str) -> str:
    return Markup(f"{found.value:{form}}{_between(found, lambda value: format(value, form))}")


def _between(found: Estimate, form: Callable[[float], str]) -> str:
    ends = interval_ends(found, form)
    return f' <span class="note">{" to ".join(ends)}</span>' if ends else ""
