"""Multiple choice, CUTE and texts to complete, from local files.

Example:
  python -m trainer tasks runs/stdlib/blt hellaswag.jsonl --limit 100
"""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.io.display.quantities import clock
from shared.io.display.terminal import show
from shared.io.files.outputs import add_overwrite, output_if_given
from trainer.commands.generate import unescaped
from trainer.commands.running import Running, add_model, add_scoring, add_subset, chosen_subset, running_model, whole
from trainer.evaluation.robustness.noise import NOISES
from trainer.evaluation.tasks.questions import NORMALIZATIONS
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

if TYPE_CHECKING:
    import numpy as np

    from trainer.evaluation.tasks.choosing import Noising, Score
    from trainer.evaluation.tasks.writing import Write

SECONDS_BETWEEN_LINES = 10.0
GENERATOR = "patchwork tasks"
FIGURES = re.compile(rb'\{\n "generator": "patchwork tasks",')
EXAMPLES = re.compile(rb'\{"task": "(?:[^"\\]|\\.)*", "question": 0, ')
"""How the files begin that are written, by which `shared.io.files.outputs.Output` knows them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of tasks."""
    add_model(parser)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="file", help="jsonl, parquet or arrow files of tasks, or folders of them"
    )
    parser.add_argument(
        "--shots", type=whole(0), default=0, metavar="K", help="solved questions of the task put before each"
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N questions of each task only")
    choosing = parser.add_argument_group("multiple choice")
    choosing.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        help="change the texts of HellaSwag's records as the harness does: no marks in brackets, double spaces and "
        "spaces at the ends, with the activity before (default: what is in the file is scored)",
    )
    choosing.add_argument(
        "--noise",
        nargs="+",
        choices=("all", *NOISES),
        default=[],
        help="again with these noises on the prompt, on the choices, and on both",
    )
    writing = parser.add_argument_group("texts to complete; the likeliest byte is always taken")
    writing.add_argument("--bytes", type=whole(1), default=256, metavar="N", help="bytes at most")
    writing.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help=r"end before this text (repeatable; default: \n); escapes as in generate",
    )
    writing.add_argument("--together", type=whole(1), default=16, metavar="N", help="prompts at once")
    add_subset(parser)
    add_scoring(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    parser.add_argument("--examples", type=Path, metavar="FILE.jsonl", help="write what came of each question")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables; returns the exit code."""
    from trainer.evaluation.tasks.opening import ChoiceTask, Shots, open_tasks
    from trainer.evaluation.tasks.report import example_lines, figures, tables
    from trainer.evaluation.tasks.running import Answering

    examples = output_if_given(arguments, "examples", EXAMPLES)
    json_file = output_if_given(arguments, "json", FIGURES)
    tasks = open_tasks(arguments.files, arguments.limit, arguments.normalize)
    plan = [(task, Shots(task, arguments.shots)) for task in tasks]
    choosing = any(isinstance(task, ChoiceTask) for task in tasks)
    writing = not all(isinstance(task, ChoiceTask) for task in tasks)
    noisings = chosen_noisings(arguments.noise)
    if noisings and not choosing:
        raise ConfigError("--noise is for multiple choice, and no file holds any")
    stop = tuple(unescaped(os.fsencode(text)) for text in arguments.stop or (r"\n",))
    settings = GenerateSettings(
        length=arguments.bytes, sampling=SamplingSettings(temperature=0), stop=stop, subset=arguments.subset
    )
    with running_model(arguments) as running:
        arguments.subset = chosen_subset(running.model, arguments.subset)
        score = open_score(arguments, running) if choosing else None
        write = open_write(running) if writing else None
        answering = Answering(score, arguments.tokens - 2, write, settings, arguments.together)
        progress = Progress(silent=False, every_seconds=SECONDS_BETWEEN_LINES)
        began = time.monotonic()
        results = answering.all(plan, noisings, progress)
    progress.log(f"{sum(len(task.questions) for task in tasks):,} questions in {clock(time.monotonic() - began)}")
    show(tables(results))
    if examples:
        examples.write("".join(f"{line}\n" for line in example_lines(results)))
    if json_file:
        content = {
            "generator": GENERATOR,
            "model": str(arguments.model),
            "shots": arguments.shots,
            "tasks": figures(results),
        }
        json_file.write(json.dumps(content, indent=1) + "\n")
    return 0


def open_score(arguments: argparse.Namespace, running: Running) -> "Score":
    """The model that tells choices apart."""
    from trainer.evaluation.texts import TextScorer

    scorer = TextScorer(running.model, running.device, arguments.dtype, arguments.tokens)

    def score(texts: Sequence[bytes], begins: Sequence[int]) -> "np.ndarray":
        subsets = None if arguments.subset is None else [arguments.subset] * len(texts)
        return scorer.score(texts, begins, end=False, subsets=subsets).nats

    return score


def open_write(running: Running) -> "Write":
    """The model that writes."""
    from trainer.generation.generator import Generator

    return Generator(running.model, running.device, running.threads).texts


def chosen_noisings(names: list[str]) -> "list[Noising]":
    """Each of the noises named on the prompt, on the choices, and on both."""
    from trainer.evaluation.tasks.choosing import PLACES, Noising

    return [Noising(noise, place) for noise in NOISES if noise in names or "all" in names for place in PLACES]
