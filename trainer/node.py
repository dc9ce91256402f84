"""What the ranks of a node know of one another before they have met, from what torchrun tells them. Free of torch."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from shared.io.files.atomic import write_atomic

EVERY_SECONDS = 0.05


def first_of_node() -> bool:
    """Whether this process speaks for its node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def once_a_node(name: str, find: Callable[[], str], launch: Mapping[str, str] = os.environ) -> str:
    """What ``find`` returns: the node's first rank calls it, the others wait for its answer.

    It lies in the folder of this attempt, which torchrun makes and removes. Where nothing has launched several ranks
    every process asks for itself. A first rank that fails says why, and torchrun ends those who wait.
    """
    error_file = launch.get("TORCHELASTIC_ERROR_FILE")  # LOGS/attempt_0/RANK/error.json
    if not error_file or launch.get("LOCAL_WORLD_SIZE", "1") == "1":
        return find()
    answer = Path(error_file).parent.parent / f"{name}.answer"
    if launch.get("LOCAL_RANK") == "0":
        write_atomic(answer, find())
    while not answer.exists():
        time.sleep(EVERY_SECONDS)
    return answer.read_text()


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = ()
    names = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
