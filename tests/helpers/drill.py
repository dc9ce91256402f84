"""A run under fire: ranks, launcher, loader workers and whole machines are killed until it is done all the same."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers.tiny_runs import STATIC, quiet_environment, tiny_data, tiny_recipe, toml, torchrun
from shared.io.programs.child_processes import has_ended
from trainer.provenance.checkpoint_folders import COMPLETE_NAME, is_complete, step_folders

ROOT = Path(__file__).parents[2]
RESTARTS = 1000


def children(process: int) -> list[int]:
    """Processes that a process has started, in order; none when it has ended."""
    try:
        return sorted(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except OSError:
        return []


def descendants(process: int) -> list[int]:
    """Children, and theirs."""
    own = children(process)
    return own + [other for child in own for other in descendants(child)]


def rank_processes(launcher: int) -> list[int]:
    """The ranks that torchrun has started."""
    return [child for child in children(launcher) if b"main.py" in command_line(child)]


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def killed(processes: Iterable[int]) -> bool:
    """Kill processes; whether there was one."""
    count = 0
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            count += 1
    return count > 0


@dataclass
class Kill:
    """One that is planned."""

    victim: str
    step: int
    """Not before this step has been logged."""
    saving: bool
    """Only while a checkpoint is being written."""


@dataclass
class Drill:
    """The same command again and again, as a supervisor would give it, with kills in between."""

    recipe: Path
    out: Path
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    inside_saves: int = 0
    seen: set[int] = field(default_factory=set)
    """Every process there has been."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._victims: dict[str, Callable[[int], list[int]]] = {
            "rank": lambda launcher: self._one(rank_processes(launcher)),
            "launcher": lambda launcher: [launcher],
            "loader worker": lambda launcher: self._one(
                [
                    process
                    for rank in rank_processes(launcher)
                    for process in set(descendants(rank)) - set(children(rank))
                ]
            ),
            "machine": lambda launcher: [launcher, *rank_processes(launcher)],
            "machine, then a byte of a checkpoint": lambda launcher: [launcher, *rank_processes(launcher)],
        }

    @property
    def victims(self) -> list[str]:
        return list(self._victims)

    def plan(self, victims: Sequence[str], first: int, last: int) -> list[Kill]:
        """Kills at random steps, in order, every second one inside a save."""
        steps = sorted(self._random.randrange(first, last) for _ in victims)
        return [Kill(victim, step, number % 2 == 0) for number, (victim, step) in enumerate(zip(victims, steps))]

    def finish(self, plan: Sequence[Kill], log: Path, limit: float) -> None:
        """Start the run until it is done; AssertionError when a start ends in another way than by a kill."""
        left, deadline = list(plan), time.monotonic() + limit
        while True:
            self.starts += 1
            with log.open("ab") as said:
                command = torchrun(
                    "--max-restarts", str(RESTARTS), "trainer/main.py", self.recipe, "--run.out", self.out
                )
                launcher = subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stdout=said, stderr=said)
                try:
                    while launcher.poll() is None:
                        assert time.monotonic() < deadline, f"not done in {limit} s; see {log}"
                        if left and self._strike(left[0], launcher.pid):
                            del left[0]
                        time.sleep(0.001 if left and left[0].saving else 0.02)
                finally:
                    killed([*rank_processes(launcher.pid), launcher.pid])
                    code = launcher.wait()
            if code == 0:
                assert not left, f"done before {len(left)} kills; see {log}"
                return
            assert code == -signal.SIGKILL, f"exit code {code}; {log.read_text()[-2000:]}"

    def _strike(self, kill: Kill, launcher: int) -> bool:
        """Kill if it is time; whether it was."""
        ranks = rank_processes(launcher)
        self.seen |= {launcher, *ranks, *(worker for rank in ranks for worker in descendants(rank))}
        if logged_step(self.out) < kill.step:
            return False
        unfinished = self._unfinished()
        if kill.saving and not unfinished:
            return False
        if not killed(self._victims[kill.victim](launcher)):
            return False
        self.done[kill.victim] += 1
        # What was being written just before and is not complete now was hit in the middle.
        self.inside_saves += bool(unfinished & self._unfinished())
        if "byte" in kill.victim:
            flip_a_byte(self.out, self._random)
        return True

    def _unfinished(self) -> set[Path]:
        return {path for path in step_folders(self.out / "checkpoints") if not is_complete(path)}

    def _one(self, processes: list[int]) -> list[int]:
        return self._random.sample(processes, min(1, len(processes)))

    def left_behind(self, patience: float = 5.0) -> list[int]:
        """Processes of the run that are still there."""
        deadline = time.monotonic() + patience
        while (there := [process for process in self.seen if not has_ended(process)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return there

    def set_aside(self) -> int:
        """Checkpoints that were found damaged."""
        return len(list((self.out / "checkpoints").glob("damaged-*")))


def logged_step(out: Path) -> int:
    """The step of the last whole line of metrics, while the run may be writing one; 0 before any."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def flip_a_byte(out: Path, chooser: random.Random) -> None:
    """Damage one file of the newest checkpoint."""
    newest = [path for path in step_folders(out / "checkpoints") if is_complete(path)][-1]
    file = chooser.choice(sorted(path for path in newest.iterdir() if path.name != COMPLETE_NAME))
    content = bytearray(file.read_bytes())
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    file.write_bytes(content)


def drill_recipe(folder: Path, steps: int, every: int) -> Path:
    """A small model with many short steps and many checkpoints."""
    data = tiny_data(folder / "data", STATIC)
    values = tiny_recipe(
        *(data, folder / "unused"),
        run={"steps": steps},
        data={"tokens": 128, "workers": 1},
        checkpoint={"every": every, "keep": 3},
    )
    path = folder / "recipe.toml"
    path.write_text(toml(values))
    return path


def quiet_run(recipe: Path, out: Path) -> None:
    """The run that nobody disturbs."""
    command = torchrun("trainer/main.py", recipe, "--run.out", out)
    done = subprocess.run(
        command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def weights(out: Path) -> bytes:
    """The final model, as bytes."""
    return (out / "model" / "model.safetensors").read_bytes()
