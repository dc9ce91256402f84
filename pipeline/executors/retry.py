"""Which split is next, and what becomes of one that failed: the rules that all executors share. Pure: time is told.

The largest split comes first, so that at the end no worker waits long for a large one. An error of the split itself
is final, for it would come back everywhere; a transient one, and a worker that is lost, are tried again a bounded
number of times.
"""

import heapq
from collections import Counter
from dataclasses import replace

import numpy as np

from pipeline.splits.worker import Outcome
from shared.io.stores.transient_errors import ATTEMPTS

BACK_OFF_SECONDS = (2.0, 20.0)
"""Pause before the second and the third attempt after a transient error."""


class Queue:
    """The splits that are left: waiting, pausing after a transient error, or taken by a worker."""

    def __init__(self, numbers: np.ndarray, sizes: np.ndarray) -> None:
        """``numbers``: int64 [N], the splits to be done; ``sizes``: int64, bytes of all splits of the plan."""
        self._sizes = sizes
        self._order = numbers[np.lexsort((numbers, -sizes[numbers]))]
        self._next, self._left = 0, len(numbers)
        self._again: list[tuple[int, int]] = []
        """Those that were tried already, the largest first: few."""
        self._pausing: list[tuple[float, int]] = []
        self._failures, self._losses = Counter[int](), Counter[int]()

    @property
    def unfinished(self) -> int:
        """Splits without an outcome, those that workers have among them."""
        return self._left

    def pop(self, now: float) -> int | None:
        """The largest split that may be tried at ``now`` (seconds of a clock that does not go back)."""
        while self._pausing and self._pausing[0][0] <= now:
            self._wait(heapq.heappop(self._pausing)[1])
        first = int(self._order[self._next]) if self._next < len(self._order) else None
        if self._again and (first is None or self._again[0] < (-int(self._sizes[first]), first)):
            return heapq.heappop(self._again)[1]
        self._next += first is not None
        return first

    def pause(self, now: float) -> float | None:
        """Seconds until a split that pauses may be popped; None when none pauses."""
        return max(self._pausing[0][0] - now, 0.0) if self._pausing else None

    def ended(self, outcome: Outcome, now: float) -> Outcome | None:
        """A worker is through with a split. Returns what is final; None when it will be tried again."""
        if outcome.transient:
            self._failures[outcome.split] += 1
            failures = self._failures[outcome.split]
            if failures < ATTEMPTS:
                heapq.heappush(self._pausing, (now + BACK_OFF_SECONDS[failures - 1], outcome.split))
                return None
            outcome = replace(outcome, error=f"{outcome.error} ({ATTEMPTS} attempts)")
        self._left -= 1
        return outcome

    def lost(self, split: int, reason: str, trace: str = "") -> Outcome | None:
        """A worker was lost with a split. Returns the failure when that is final; None when it will be tried again."""
        self._losses[split] += 1
        if self._losses[split] < ATTEMPTS:
            self._wait(split)
            return None
        self._left -= 1
        return Outcome(split, error=f"its worker was lost {ATTEMPTS} times: {reason}", trace=trace)

    def _wait(self, split: int) -> None:
        heapq.heappush(self._again, (-int(self._sizes[split]), split))
