"""Tasks of the language model evaluation harness, an optional package.

Example:
  python -m trainer lm-eval runs/stdlib/blt --tasks arc_easy --limit 100
"""

import argparse
import json
import re
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.terminal import show
from shared.io.files.outputs import add_overwrite, output_if_given
from trainer.commands.running import add_model, add_scoring, add_subset, chosen_subset, running_model, whole

GENERATOR = "patchwork lm-eval"
FIGURES = re.compile(rb'\{\n "generator": "patchwork lm-eval",')
"""How the file begins that is written, by which `shared.io.files.outputs.Output` knows it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of lm-eval."""
    add_model(parser)
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="tasks of the harness, * for any letters"
    )
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="a folder of task files of your own")
    parser.add_argument("--shots", type=int, metavar="K", help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N questions of each task only")
    parser.add_argument("--together", type=whole(1), default=16, metavar="N", help="prompts at once")
    add_subset(parser)
    add_scoring(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the harness's results to this file too")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the harness's own table; returns the exit code."""
    from trainer.evaluation.lm_eval import harness_model, harness_module

    json_file = output_if_given(arguments, "json", FIGURES)
    include = None if arguments.include is None else str(arguments.include)
    manager = harness_module("tasks").TaskManager(include_path=include)
    for name in arguments.tasks:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"--tasks: the harness knows no task {name}; `lm-eval ls tasks` lists those that it knows"
            )
    with running_model(arguments) as running:
        options = {name: getattr(arguments, name) for name in ("dtype", "tokens", "together")}
        options["subset"] = chosen_subset(running.model, arguments.subset)
        found = harness_module("evaluator").simple_evaluate(
            model=harness_model(running.model, device=running.device, threads=running.threads, **options),
            tasks=manager.match_tasks(arguments.tasks),
            num_fewshot=arguments.shots,
            limit=arguments.limit,
            task_manager=manager,
            log_samples=False,
        )
    show(harness_module("utils").make_table(found))
    if json_file:
        json_file.write(json.dumps({"generator": GENERATOR, **found["results"]}, indent=1, default=str) + "\n")
    return 0
