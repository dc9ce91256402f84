"""A run under fire: its driver, its workers and the machines under it are killed at random until it is done."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers.pipeline_helpers import environment

Kill = Callable[[int], bool]
"""Given the driver's process: kill something, and say whether it was there."""


@dataclass
class Chaos:
    """Kills that are left, and those that have been."""

    kills: int
    victims: dict[str, Kill]
    seed: int = 0
    pause: tuple[float, float] = (0.5, 3.0)
    """Seconds from one kill to the next."""
    variables: dict[str, str] = field(default_factory=dict)
    program: str = "pipeline"
    """As `python -m` takes it."""
    done: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def finish(self, arguments: Sequence[object], log: Path, limit: float = 600) -> None:
        """Start the same command again and again, with kills as long as there are any, until it exits with 0 or 3.

        Raises AssertionError when a start ends in another way than by a kill or with splits that lost their workers.
        """
        deadline = time.monotonic() + limit
        while True:
            assert time.monotonic() < deadline, f"not done in {limit} s; see {log}"
            self.starts += 1
            code = self._start(arguments, log)
            if code in (0, 3):
                return
            assert code in (-signal.SIGKILL, 1), f"exit code {code}; {log.read_text()[-2000:]}"

    def _start(self, arguments: Sequence[object], log: Path) -> int:
        line = [sys.executable, "-m", self.program, *map(str, arguments)]
        with log.open("ab") as said:
            process = subprocess.Popen(line, env=environment() | self.variables, stdout=said, stderr=said)
            try:
                while sum(self.done.values()) < self.kills and process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(self._random.uniform(*self.pause))
                        break
                    self._kill(process.pid)
                return process.wait()
            finally:
                process.kill()
                process.wait()

    def _kill(self, driver: int) -> None:
        # In turn, the ones that are there: a node, say, may be starting anew.
        for kind in sorted(self.victims, key=lambda kind: (self.done[kind], kind)):
            if self.victims[kind](driver):
                self.done[kind] += 1
                return


def the_driver(driver: int) -> bool:
    return killed([driver])


def a_worker_process(driver: int) -> bool:
    """Of --executor inline --workers N: a process that the driver has spawned for itself."""
    spawned = [pid for pid, parent, line in processes() if parent == driver and b"multiprocessing.spawn" in line]
    return killed(spawned[:1])


def killed(pids: Iterable[int]) -> bool:
    """Kill processes; whether there was one."""
    count = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            count += 1
    return count > 0


def processes() -> list[tuple[int, int, bytes]]:
    """(process, parent, command line) of everything that runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found.append((int(entry.name), parent, (entry / "cmdline").read_bytes()))
    return found
