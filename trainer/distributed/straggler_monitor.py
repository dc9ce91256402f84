"""Who keeps the others waiting: ranks say what they do, and when nothing moves for too long, the slowest is named.

A collective that waits does not know for whom. So each rank leaves what it does in the launcher's store every few
seconds, from a thread that goes on while the main thread hangs; reading all of it takes place only when nothing moves.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Thread

import torch.distributed as dist

BEAT_SECONDS = 5.0
BEATS_TO_REPORT = 3
"""Between two readings of everybody's heartbeats: a rank without a new one is silent."""
PARTS_OF_A_STEP = ("waiting for data", "computing", "validating", "saving")
"""What a rank can be doing in a step, in this order."""


@dataclass(frozen=True)
class Heartbeat:
    """The last that a rank has reported of itself."""

    beats: int
    step: int
    doing: str

    @property
    def place(self) -> tuple[int, int]:
        """How far it is."""
        return self.step, PARTS_OF_A_STEP.index(self.doing)


class StragglerMonitor:
    """This rank's heartbeats; the first two ranks also read those of all."""

    def __init__(self, store: dist.Store, rank: int, ranks: int, patience: float, log: Callable[[str], None]) -> None:
        """``log`` is called, once a standstill, when this rank has not moved for ``patience`` seconds."""
        self._store, self._rank, self._ranks, self._log = dist.PrefixStore("watch", store), rank, ranks, log
        self._patience, self._beat = patience, min(BEAT_SECONDS, patience / 8)
        self._step, self._doing, self._moved = 0, PARTS_OF_A_STEP[0], time.monotonic()
        self._armed = False
        self._closed = Event()
        if ranks > 1:
            Thread(target=self._run, name="watch", daemon=True).start()

    def report(self, step: int, doing: str) -> None:
        """The main thread is at this place now."""
        self._armed = self._armed or step > self._step > 0  # the first step may take as long as it takes
        self._step, self._doing, self._moved = step, doing, time.monotonic()

    def pause(self) -> None:
        """What follows may take as long as it takes."""
        self._armed = False

    def close(self) -> None:
        """Send no more heartbeats."""
        self._closed.set()

    def _run(self) -> None:
        beats, before, stuck = 0, None, 0.0
        while not self._closed.wait(self._beat):
            beats += 1
            try:
                self._store.set(f"{self._rank}", json.dumps([beats, self._step, self._doing]))
                if not self._late() or self._moved == stuck:
                    before = None
                elif before is None:
                    since, before = beats, self._heartbeats()
                elif beats - since >= BEATS_TO_REPORT:
                    after = self._heartbeats()
                    if self._rank == 0 or after[0].beats == before[0].beats:
                        self._log(standstill(before, after, self._patience))
                    stuck = self._moved  # logged once
            except RuntimeError:  # the store has gone: the launcher is ending
                return

    def _late(self) -> bool:
        return self._armed and self._rank < 2 and time.monotonic() - self._moved > self._patience

    def _heartbeats(self) -> list[Heartbeat]:
        found = self._store.multi_get([f"{rank}" for rank in range(self._ranks)])
        return [Heartbeat(*json.loads(content)) for content in found]


def standstill(before: Sequence[Heartbeat], after: Sequence[Heartbeat], seconds: float) -> str:
    """One line about ranks that do not move, from their heartbeats at two moments a few beats apart."""
    line = f"no step has ended for {seconds:g} s: "
    silent = [rank for rank, (old, new) in enumerate(zip(before, after)) if old.beats == new.beats]
    if silent:
        return line + f"no sign of life from {_named(silent)}"
    last = min(beat.place for beat in after)
    behind = [rank for rank, beat in enumerate(after) if beat.place == last]
    place = f"{after[behind[0]].doing} in step {after[behind[0]].step}"
    if len(behind) == len(after):
        return line + f"all ranks are {place}"
    return line + f"{_named(behind)} still {place}, the others wait"


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if ranks[8:] else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"
