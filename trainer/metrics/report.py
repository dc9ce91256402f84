"""Runs as one page for a browser: curves, facts, identity and recipe. Nothing is fetched, no script. Free of torch."""

import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.drawing.chart import Curve, Mark, chart
from trainer.drawing.page import drawn_page, facts, header, section
from trainer.metrics.history import History, Points
from trainer.metrics.summary import summary

BYTES, TIME = ("targets", "bytes trained on"), ("seconds", "seconds of training")
"""What may be on the x axis: a key of the lines, and its label."""

DISTILLATION = "distillation_loss"
LOSSES = (("Bits per byte", "bits_per_byte"), ("Distillation loss, nats a target,", DISTILLATION))
"""Title and key of what is learned; the second of runs that distil alone."""
CHARTS: tuple[tuple[str, str, str, float], ...] = (
    ("Learning rate", "by optimizer and share", "lr_by_group", 1.0),
    ("Learning rate", "", "lr", 1.0),
    ("Gradient norm", "before clipping", "grad_norm", 1.0),
    ("Gradient norms by part", "before clipping", "grad_norm_by_part", 1.0),
    ("Speed", "bytes a second", "bytes_per_second", 1.0),
    ("Computation", "useful GFLOP/s", "flops_per_second", 1e-9),
    ("Utilisation", "% of what the devices can do", "utilisation", 100.0),
    ("Seconds of a step", "by part", "step_seconds", 1.0),
    ("Waiting for data", "% of the time", "data_wait", 100.0),
    ("Fill", "% of a pack that is real", "fill", 100.0),
    ("Patch size", "bytes", "bytes_per_patch", 1.0),
    ("Passes", "over each subset", "passes", 1.0),
    ("Memory", "bytes on the rank that has most", "memory", 1.0),
    ("Skipped steps", "an interval", "skipped", 1.0),
)
"""Title, unit, key of the lines (a table gives a curve an entry) and the factor to multiply by."""
FILLS = {"tokens": "token_fill", "patches": "patch_fill"}


def html(runs: Sequence[History]) -> str:
    """The page, whole."""
    return drawn_page(", ".join(short_names([run.folder for run in runs])), content(runs))


def content(runs: Sequence[History]) -> str:
    """What the page of runs says, as markup."""
    names = short_names([run.folder for run in runs])
    return "".join(
        (
            header(", ".join(names), _each(runs, names, summary)),
            section("Curves", f'<div class="charts">{"".join(charts(runs, names))}</div>'),
            section("Identity", _each(runs, names, identity_facts)),
            section("Recipe", _recipe(runs, names)),
        )
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names: list[str] = []
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[str]:
    """A chart for each metric that has values."""
    for title, key in LOSSES:
        if key == DISTILLATION and not any(run.curve(key) for run in runs):
            continue
        for x in (BYTES, TIME):
            curves = []
            for number, (run, name) in enumerate(zip(runs, names)):
                other, dash = (number, 1) if len(runs) > 1 else (1, 0)
                training, validation = _labels(name, ("training", "validation"), runs)
                curves.append(Curve(training, run.curve(key, x[0]), number))
                curves.append(Curve(validation, run.validation_curve(x[0], key), other, dash, dots=True))
            over = "bytes" if x is BYTES else "time"
            yield chart(f"{title} over {over}", "", x[1], curves, _marks(runs, names, x[0]))
    for title, unit, key, factor in CHARTS:
        if key == "lr" and any("lr_by_group" in run.lines[-1] for run in runs):
            continue
        if key == "skipped" and not any(y for run in runs for _, y in run.curve(key)):
            continue
        curves = [
            Curve(label, [(x, factor * y) for x, y in points], *style)
            for number, (run, name) in enumerate(zip(runs, names))
            for label, points, style in _entries(run, name, key, number, runs)
        ]
        yield chart(title, unit, BYTES[1], curves, _marks(runs, names, BYTES[0]))


def _entries(
    run: History, name: str, key: str, number: int, runs: Sequence[History]
) -> Iterator[tuple[str, Points, tuple[int, int]]]:
    """Label, points, and colour and dash of each curve of a metric: colours tell runs apart, if there are several."""
    if key == "fill":
        paths = FILLS
    else:
        parts = dict.fromkeys(part for line in run.lines if isinstance(line.get(key), dict) for part in line[key])
        paths = {part: f"{key}/{part}" for part in parts if not (key == "step_seconds" and part == "whole")} or {
            "": key
        }
    for entry, (part, path) in enumerate(paths.items()):
        points = run.curve(path)
        if part == "reserved" and not any(y for _, y in points):
            continue
        (label,) = _labels(name, (part.replace("_", " "),), runs)
        yield label or key.replace("_", " "), points, (number, entry) if len(runs) > 1 else (entry, 0)


def _labels(name: str, parts: Sequence[str], runs: Sequence[History]) -> list[str]:
    """A curve's parts, after the run's name where there are several runs."""
    return [f"{name} {part}".strip() if len(runs) > 1 else part for part in parts]


def _marks(runs: Sequence[History], names: Sequence[str], x: str) -> list[Mark]:
    """Where runs were resumed."""
    return [
        Mark(run.at_step(start["step"], x), f"{name} resumed after step {start['step']}", "resumed from a checkpoint")
        for run, name in zip(runs, names)
        for start in run.resumes()
    ]


def identity_facts(run: History) -> list[tuple[str, str]]:
    """What made the run: data, patching, the model to start from, the machines."""
    identity, found = run.identity, []
    for split, fingerprint in identity.get("data", {}).items():
        found.append((f"data, {split}", str(fingerprint)))
    if patching := identity.get("patching"):
        found.append(("patching", ", ".join(f"{key} {value}" for key, value in patching.items() if value is not None)))
    if entropy_model := identity.get("entropy_model"):
        found.append(("entropy model", str(entropy_model.get("sha256"))))
    if start := identity.get("start"):
        found.append(("starts from", str(start)))
    for start in run.starts:
        ranks = f"{start.get('ranks')} rank{'s' * (start.get('ranks') != 1)}"
        device = " of ".join(filter(None, (start.get("device"), start.get("processor"))))
        words = f"{ranks} on {device or None}, {start.get('dtype')}, torch {start.get('torch')}"
        found.append((f"from step {start['step']}", words))
    return found


def _each(runs: Sequence[History], names: Sequence[str], facts_of: Callable[[History], list[tuple[str, str]]]) -> str:
    """Facts of each run, below its name where there are several."""
    headings = [f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "" for name in names]
    return "".join(heading + facts(facts_of(run)) for heading, run in zip(headings, runs))


def _recipe(runs: Sequence[History], names: Sequence[str]) -> str:
    """Every key with its value in each run; of several runs those that differ first and the others folded away."""
    tables = [dict(_keys(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    differ = [key for key in keys if len({table.get(key, "") for table in tables}) > 1]
    same = [key for key in keys if key not in differ]

    def rows(chosen: Sequence[str], cells: Callable[[str], Sequence[str]]) -> str:
        return "".join(
            f"<tr><td>{escape(key)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(key))}</tr>"
            for key in chosen
        )

    text = ""
    if differ:
        heads = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = rows(differ, lambda key: [table.get(key, "") for table in tables])
        text = f'<div class="scrolls" id="differences"><table><tr><th>differs</th>{heads}</tr>{body}</table></div>'
    common = f'<div class="scrolls"><table>{rows(same, lambda key: [tables[0].get(key, "")])}</table></div>'
    opened = "" if differ else " open"
    return f'<div id="recipe">{text}<details{opened}><summary>{len(same)} keys</summary>{common}</details></div>'


def _keys(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)
