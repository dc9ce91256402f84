"""Where the seconds of steps go, by part, without making the device wait for the host."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "forward_backward", "update")
"""Waiting for packs; forward, backward, clipping and the sums over ranks; the optimizers."""


class StepTimer:
    """Seconds of an interval, and of its steps by part.

    On a CPU by the host's clock. On CUDA parts are timed by events in the stream, which are read once the device has
    passed them: the last part of the latest step may so be counted one reading later.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._last: float | torch.cuda.Event = self._now()
        self.restart()

    def restart(self) -> None:
        """An interval begins."""
        self._began, self._paused = time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of the speed of training: validation, saving."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def begin_step(self) -> None:
        """A step begins: what went before belongs to none of its parts."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """The time since the last mark was spent on ``part``."""
        now = self._now()
        if isinstance(now, float):
            assert isinstance(self._last, float)
            self._seconds[part] += now - self._last
        else:
            assert isinstance(self._last, torch.cuda.Event)
            self._pending.append((part, self._last, now))
        self._last = now

    def pop(self) -> dict[str, float]:
        """``seconds`` of the interval that ends here, pauses left out, and of its steps by part."""
        whole = time.perf_counter() - self._began - self._paused
        while self._pending and self._pending[0][2].query():
            part, begin, end = self._pending.popleft()
            self._seconds[part] += begin.elapsed_time(end) / 1000
        parts, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return {"seconds": whole, **parts}

    def _now(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
