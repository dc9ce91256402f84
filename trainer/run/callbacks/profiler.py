"""Traces of a few steps, and of the memory of a GPU, when someone asks for them. Failures are logged, no more.

What concerns CUDA is written from torch's documentation and has not run.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.metrics.accumulator import StepRecord
from trainer.run.callbacks.base import Callback
from trainer.run.job import Job

FOLDER = "profile"
REQUEST_NAME = "profile.request"
"""Touching it in the run's folder asks for a trace; touching it again asks again."""
MOST_EVENTS = 100_000
"""Allocations that a memory snapshot looks back on."""


class Profiler(Callback):
    """Writes RUN/profile/step-N-rank-R.trace.json.gz, on the ranks that the settings name."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        settings, world = job.settings.metrics.profile, job.world
        self._settings, self._out, self._world, self._log = settings, job.settings.run.out, world, job.line.log
        self._chosen = world.rank in settings.ranks
        self._answered = self._request()
        self._running: profile | None = None
        self._first = self._last = 0
        """Steps of the trace under way."""
        if self._chosen and settings.memory and world.device.type == "cuda":
            self._record_memory()

    def on_run_start(self) -> None:
        """Begin the trace of the first step, if it is asked for."""
        self._begin_at(self.job.state.step + 1)

    def on_step_end(self, step: StepRecord) -> None:
        """End the trace of this step, or begin that of the next."""
        if self._running is not None and step.number >= self._last:
            self._finish()
        self._begin_at(step.number + 1)

    def on_interval(self, metrics: Mapping[str, Any]) -> None:
        """Has anyone asked for a trace?"""
        if self._chosen and self._running is None and (request := self._request()) != self._answered:
            self._answered = request
            if request is not None:
                self._begin(self.job.state.step + 1)

    def on_run_end(self) -> None:
        """A trace of fewer steps is one too."""
        if self._running is not None:
            self._finish()

    def _request(self) -> int | None:
        """When the request was last touched, in ns; None without one."""
        try:
            return os.stat(self._out / REQUEST_NAME).st_mtime_ns
        except OSError:
            return None

    def _begin_at(self, step: int) -> None:
        if self._chosen and self._running is None and step == self._settings.at:
            self._begin(step)

    def _begin(self, step: int) -> None:
        self._first, self._last = step, step + self._settings.steps - 1
        cuda = [ProfilerActivity.CUDA] if self._world.device.type == "cuda" else []
        running = profile(activities=[ProfilerActivity.CPU, *cuda])
        try:
            running.start()
        except Exception as error:
            self._log(f"no trace of step {step}: {error}")
        else:
            self._running = running

    def _finish(self) -> None:
        assert self._running is not None
        running, self._running = self._running, None
        name = f"step-{self._first:08d}-rank-{self._world.rank}"
        path = self._out / FOLDER / f"{name}.trace.json.gz"
        unfinished = path.with_name(f"{name}.unfinished.json.gz")
        try:
            running.stop()
            path.parent.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(unfinished))
            unfinished.rename(path)
            if self._settings.memory and self._world.device.type == "cuda":
                self._dump_memory(name)
        except Exception as error:
            self._log(f"{path}: {error}; the run goes on without the trace")
        else:
            self._log(f"trace of steps {self._first} to {self._last}: {path}; open it at ui.perfetto.dev")

    def _record_memory(self) -> None:
        """Remember allocations from here on, and write them when there is no more memory."""
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)

        def out_of_memory(device: int, wanted: int, held: int, free: int) -> None:
            self._dump_memory(f"out-of-memory-rank-{self._world.rank}")

        torch._C._cuda_attach_out_of_memory_observer(out_of_memory)  # type: ignore[attr-defined]  # CUDA builds have it

    def _dump_memory(self, name: str) -> None:
        path = self._out / FOLDER / f"{name}.memory.pickle"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        except Exception as error:
            self._log(f"{path}: {error}")
        else:
            self._log(f"memory snapshot: {path}; open it at pytorch.org/memory_viz")
