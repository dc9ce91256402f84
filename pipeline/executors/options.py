"""Options of commands that say who does the work."""

import argparse

from pipeline.options import add_options, settings_of
from pipeline.settings import ExecutorSettings, PipelineError, ScoringSettings

_OPTIONS: dict[str, tuple[str | None, str]] = {
    "executor": (None, "inline does the same without Ray"),
    "workers": (
        "N",
        "at most so many (default: CPUs / threads, or GPUs; on a cluster all that it has and gets)",
    ),
    "min_workers": ("N", "ask a cluster for so many at once (default: what it has room for)"),
    "gpus_per_worker": ("F", "share of a GPU for each worker, at most 1 (default: 1)"),
    "ray_address": (
        "ADDR",
        "cluster to join, 'auto' on one of its machines (default: RAY_ADDRESS, else one is made here)",
    ),
}


def add_executor_arguments(parser: argparse.ArgumentParser, scores: bool = True) -> None:
    """All keys of ExecutorSettings. ``scores``: whether workers may run an entropy model, on a GPU."""
    group = parser.add_argument_group("work (nothing here changes a byte)")
    described = {key: text for key, text in _OPTIONS.items() if scores or key != "gpus_per_worker"}
    add_options(group, ExecutorSettings, described)


def executor_of(arguments: argparse.Namespace, scoring: ScoringSettings | None) -> ExecutorSettings:
    """Who does the work. Raises PipelineError for an option that would be without effect."""
    settings = settings_of(arguments, ExecutorSettings)
    if settings.executor != "ray":
        for option in ("ray_address", "min_workers", "gpus_per_worker"):
            if getattr(settings, option) is not None:
                raise PipelineError(f"--{option.replace('_', '-')} is for --executor ray")
    if settings.min_workers is not None and settings.min_workers > (settings.workers or settings.min_workers):
        raise PipelineError(f"--min-workers {settings.min_workers} is more than --workers {settings.workers}")
    if settings.gpus_per_worker is not None and (scoring is None or scoring.device == "cpu"):
        raise PipelineError("--gpus-per-worker is for an entropy model on --device auto or cuda; leave it out")
    return settings
