"""What all commands that run a model have in common: which model, on which device, with how many threads."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.io.files.path_kinds import model_folder_at, what_is
from shared.model_folder.identity import WEIGHTS_FILE, load_settings
from trainer.provenance.identity import IDENTITY_NAME, MOST_THREADS, model_identity
from trainer.provenance.thresholds import default_note, known_subset

# ---- How many cores this process may use: its affinity, and the quota of its control group. Free of torch.


GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores(groups: Path = GROUPS, own_group: Path = OWN_GROUP) -> int:
    """At least 1. A container with a quota of half a machine's time has half of its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(groups, own_group)]))


def _quotas(groups: Path, own_group: Path) -> list[int]:
    """Cores, rounded up, that each control group above this process may use; none where none is limited."""
    try:
        line = next(line for line in own_group.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group = groups / line.removeprefix("0::").lstrip("/")
    found = []
    for folder in (group, *group.parents):
        if folder != groups and groups not in folder.parents:
            break
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(-(-int(quota) // int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue  # not limited, or not a group of this kind
    return found


def whole(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """The type of an option that takes whole numbers of this range."""

    def whole_number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            bound = f"small: at least {least}" if value < least else f"large: at most {most}"
            raise argparse.ArgumentTypeError(f"{value} is too {bound}")
        return value

    whole_number.__name__ = "whole number"  # as argparse calls it in errors
    return whole_number


def finite(text: str) -> float:
    """The type of an option that takes any number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, as `opened_model` takes it."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, run or checkpoint")


def add_running(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--device and --threads."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument(
        "--threads",
        type=whole(1, MOST_THREADS),  # with more than any processor has torch would end the process without a word
        metavar="N",
        help="of the processor (default: as many as the model was trained with, at most as many as there are cores)",
    )


def add_weights(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--weights."""
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="format of the model's matrices on a processor: smaller ones are read faster, and rounded (default: "
        "float32)",
    )


def add_scoring(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--tokens and --dtype of a pass over packs, --device and --threads."""
    parser.add_argument(
        "--tokens", type=whole(3), default=16384, help="tokens of a pack; longer documents are cut, tasks must fit"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the pass")
    add_running(parser)


def add_subset(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--subset."""
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="whose patching threshold to use, where subsets have their own (default: the default threshold)",
    )


def add_as(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--as."""
    parser.add_argument(
        "--as",
        dest="as_name",
        metavar="NAME",
        help="whose thresholds to use, of a model trained on several: the dataset of this name in its recipe (default: "
        "the one that it is, or that it was cut as)",
    )


@contextmanager
def opened_model(path: Path) -> Iterator[Path]:
    """The model folder that a model folder, a run or a checkpoint stands for. Raises what `model_at` raises."""
    inside = model_folder_at(path)
    if (inside / WEIGHTS_FILE).is_file():  # the usual case needs neither torch nor the run's data
        load_settings(inside)
        yield inside
        return
    from trainer.checkpoints.model import model_at

    with model_at(path) as folder:
        load_settings(folder)
        yield folder


@contextmanager
def opened_token_model(path: Path) -> Iterator[Path]:
    """A folder of transformers as it is, or what `opened_model` makes of a path of ours."""
    if what_is(path) in ("is a run", "is a checkpoint of a run"):
        with opened_model(path) as folder:
            yield folder
    else:
        yield path


@dataclass(frozen=True)
class Running:
    """A model folder, and what it runs on."""

    model: Path
    device: str
    threads: int


@contextmanager
def running_model(arguments: argparse.Namespace) -> Iterator[Running]:
    """The model that a command line names, on the device that it names; torch uses as many threads as it says.

    Raises what `opened_model` and `device_named` raise.
    """
    with opened_model(arguments.model) as model:
        import torch

        device, threads = device_named(arguments.device), threads_for(model, arguments.threads)
        torch.set_num_threads(threads)
        LOG.debug("%d threads", threads)
        yield Running(model, device, threads)


def device_named(name: str) -> str:
    """cpu or cuda. Raises ConfigError when cuda is asked for and there is none."""
    if name == "cpu":
        return name
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("--device: torch sees no CUDA device; use cpu or auto")
    LOG.debug("device %s", "cuda" if available else "cpu")
    return "cuda" if available else "cpu"


def threads_for(model: Path, wanted: int | None) -> int:
    """Threads of the processor: as wanted, else those of the training run, at most as many as there are cores.

    Sums depend on them in the last bits, so the default is the model's and not the machine's; the model folder of an
    entropy model alone does not say, and gets one.
    """
    if wanted is not None:
        return wanted
    if not (model / IDENTITY_NAME).exists():
        return 1
    return min(model_identity(model).numerics.threads, usable_cores())


def chosen_subset(model: Path, subset: str | None, theta: float | None = None) -> str | None:
    """The key of a subset among the model's thresholds; a line on standard error where they differ and none was chosen.

    Raises ConfigError for a subset without a threshold of its own.
    """
    if not (model / IDENTITY_NAME).exists():
        return subset
    recorded = model_identity(model).patching
    if subset is not None:
        return known_subset(recorded, subset)
    if theta is None and (note := default_note(recorded)):
        LOG.info("%s", note)
    return None
