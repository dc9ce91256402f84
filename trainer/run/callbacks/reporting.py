"""Callbacks that tell of a run: metrics.jsonl and its like, and the line on the terminal."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from shared.io.display.quantities import quantity
from trainer.metrics.files import keep_lines_up_to
from trainer.metrics.formulas import measure, validation_metrics
from trainer.metrics.loggers import JsonLines, Loggers
from trainer.metrics.subset_score import SubsetScore, total_of
from trainer.node import processor
from trainer.provenance.run_folder import METRICS_NAME, STARTS_NAME
from trainer.run.callbacks.base import Callback
from trainer.run.job import Job

HIGH_WAIT = 0.02
"""Share of the time from which waiting for data is worth saying."""


class MetricsWriter(Callback):
    """Writes figures to metrics.jsonl, TensorBoard and Weights & Biases, and remembers starts; on the main rank."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._loggers: Loggers | None = None
        if job.world.is_main_rank:
            out, step = job.settings.run.out, job.state.step
            self._before, repeated = keep_lines_up_to(out / METRICS_NAME, step)
            self._loggers = Loggers(job.settings, step, job.line.log)
            self._remember_start(repeated)

    def _remember_start(self, repeated: int) -> None:
        job, device = self.job, self.job.world.device
        start = {
            "time": time.time(),
            "ranks": job.world.size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processor": processor(),
            "peak_flops": job.metrics.peak,
            "dtype": job.settings.run.dtype,
            "torch": torch.__version__,
            "repeated": repeated,
        }
        try:
            JsonLines(job.settings.run.out / STARTS_NAME).write(job.state.step, start)
        except OSError as error:
            job.line.log(f"{STARTS_NAME}: {error}")

    def on_run_start(self) -> None:
        self._started = time.perf_counter()

    def on_interval(self, metrics: Mapping[str, Any]) -> None:
        self._write(metrics)

    def on_validation(self, scores: Mapping[str, SubsetScore]) -> None:
        self._write(validation_metrics(scores, self.job.state.identity.is_causal))

    def on_phase_validation(self, phase: int, scores: Mapping[str, SubsetScore]) -> None:
        self._write({"phase_validation": {"phase": phase, **validation_metrics(scores)["validation"]}})

    def on_run_end(self) -> None:
        if self._loggers is not None:
            self._loggers.close()

    def _write(self, figures: Mapping[str, Any]) -> None:
        """With ``seconds`` of training, those before this start included."""
        if self._loggers is not None:
            seconds = self._before + time.perf_counter() - self._started
            self._loggers.write(self.job.state.step, {**figures, "seconds": seconds})


class ProgressLine(Callback):
    """Shows how far the run is, on the terminal of the main rank."""

    def on_run_start(self) -> None:
        self.job.line.begin(self.job.done())

    def on_interval(self, metrics: Mapping[str, Any]) -> None:
        if metrics:
            self.job.line.show(self.job.done(), *status(self.job.state.step, metrics))

    def on_validation(self, scores: Mapping[str, SubsetScore]) -> None:
        causal = self.job.state.identity.is_causal
        found = measure(total_of(scores), causal)
        words = f"validation {found:.4f} bits/byte" if causal else f"validation distillation loss {found:.4f}"
        self.job.line.log(f"step {self.job.state.step}: {words}")

    def on_phase_validation(self, phase: int, scores: Mapping[str, SubsetScore]) -> None:
        found = validation_metrics(scores)["validation"]
        self.job.line.log(
            f"step {self.job.state.step}: with the present patches of {found['bytes_per_patch']:.2f} bytes "
            f"{found['bits_per_byte']:.4f} bits/byte"
        )


def status(step: int, figures: Mapping[str, Any]) -> list[str]:
    """The pieces of the progress line, the most important first."""
    pieces = [f"step {step}"]
    if "bits_per_byte" in figures:
        pieces.append(f"{figures['bits_per_byte']:.3f} bits/byte")
    if "distillation_loss" in figures:
        pieces.append(f"distillation loss {figures['distillation_loss']:.3f}")
    pieces.append(f"{quantity(figures['bytes_per_second'])}B/s")
    if figures["skipped"]:
        pieces.append(f"{figures['skipped']} skipped")
    if not math.isnan(refused := figures.get("refused", math.nan)):
        pieces.append(f"{figures['bytes_per_patch']:.2f} bytes/patch, {refused:.1%} refused")
    if figures["data_wait"] >= HIGH_WAIT:
        pieces.append(f"data wait {figures['data_wait']:.0%}")
    pieces.append(f"{quantity(figures['flops_per_second'])}FLOP/s")
    if "utilisation" in figures:
        pieces.append(f"{figures['utilisation']['model']:.0%} MFU")
    pieces.append(f"{quantity(figures['memory']['held'])}B memory")
    return pieces
