"""What a run says of itself: figures of every interval and of validation, written, and shown in one line."""

import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.model_settings import AnyModelSettings, EntropyModelSettings
from shared.models.flops import (
    Recompute,
    Workload,
    executed_training_flops,
    executed_workload,
    forward_flops,
    training_flops,
    useful_workload,
)
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack
from trainer.distributed.world import World
from trainer.metrics.figures import ShareError, interval_figures, sampled_figures, validation_figures
from trainer.metrics.files import keep_lines_up_to
from trainer.metrics.peak import listed_peak
from trainer.metrics.profiling import Profiler
from trainer.metrics.sinks import JsonLines, Sinks, check_sinks
from trainer.metrics.subset_score import SubsetScore
from trainer.metrics.tally import RankSums, Tally
from trainer.optim.optimizer import Optimizers
from trainer.optim.step_timer import StepClock
from trainer.optim.train_step import StepResult
from trainer.provenance.run_folder import METRICS_NAME, STARTS_NAME
from trainer.settings import TrainSettings
from trainer.terminal import Progress, quantity

# ---- How much there was to compute: FLOPs of this rank's packs, useful and executed, and of the scoring before them.


@dataclass(frozen=True)
class Work:
    """FLOPs of some packs."""

    useful: float
    """Of training on what is real."""
    executed: float
    """Of training as it is computed: padding, whole tiles and recomputed blocks included."""
    scoring: float
    """Of the entropy model's forward pass over the same tokens, done once when the data was made; 0 without one."""


class WorkCounter:
    """Sums over packs; what a pack adds is a few sums over the lengths of its documents."""

    def __init__(
        self, model: AnyModelSettings, entropy_model: EntropyModelSettings | None, recompute: Recompute, tiled: bool
    ) -> None:
        """``tiled`` as in ``shared.models.flops.executed_workload``: whether attention computes whole tiles (CPUs)."""
        self._model, self._entropy_model, self._recompute, self._tiled = model, entropy_model, recompute, tiled
        self._useful, self._executed, self._scored = Workload(), Workload(), Workload()

    def count(self, packs: Sequence[Pack]) -> None:
        """Add packs of one rank."""
        for pack in packs:
            patches = np.zeros(0, np.int64)
            if pack.patches is not None and pack.subwords is None:
                patches = pack.patches.in_slice
            self._useful += useful_workload(self._model, pack.lengths, patches)
            self._executed += self._padded(pack)
            if self._entropy_model is not None:
                self._scored += useful_workload(self._entropy_model, pack.in_slice)

    def _padded(self, pack: Pack) -> Workload:
        batch = pack.batch
        if batch.patches is None:
            return executed_workload(self._model, batch.documents.lengths, tiled=self._tiled)
        return executed_workload(
            *(self._model, batch.documents.lengths, batch.patches.documents.lengths),
            tiled=self._tiled,
            of_decoder=batch.patches.of_decoder.numpy(),
        )

    def take(self) -> Work:
        """FLOPs since the last reading."""
        useful = training_flops(self._model, self._useful).total
        executed = executed_training_flops(self._model, self._executed, self._recompute).total
        scoring = 0 if self._entropy_model is None else forward_flops(self._entropy_model, self._scored).total
        self._useful, self._executed, self._scored = Workload(), Workload(), Workload()
        return Work(float(useful), float(executed), float(scoring))


# ---- How much memory this rank holds.


PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its GPU, or resident in the host where it computes on the CPU."""

    held: int
    """By tensors now; on a CPU all that is resident."""
    reserved: int
    """By torch's allocator on a GPU, free blocks included; 0 on a CPU."""
    peak: int
    """The most that was ever held."""


def memory(device: torch.device) -> Memory:
    """What this rank holds now, and at most so far."""
    if device.type == "cuda":
        return Memory(
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
            torch.cuda.max_memory_allocated(device),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:  # not on Linux
        held = peak
    return Memory(held, 0, peak)


HIGH_WAIT = 0.02
"""Share of the time from which waiting for data is worth saying."""


class Reporter:
    """Counts steps on every rank; the first rank writes and speaks."""

    def __init__(
        self,
        settings: TrainSettings,
        world: World,
        limits: PackLimits,
        entropy_model: EntropyModelSettings | None,
        documents: Mapping[str, int],
        line: Progress,
        resumed_step: int,
    ) -> None:
        """``entropy_model``: what scored the data. ``documents``: how many each training subset holds.

        Raises ConfigError for a sink whose package is missing.
        """
        check_sinks(settings)
        self.clock = StepClock(world.device)
        self.profiler = Profiler(settings.metrics.profile, settings.run.out, world, line.say)
        self._world, self._limits, self._line, self._documents = world, limits, line, documents
        self._work = WorkCounter(
            *(settings.model, entropy_model, settings.parallel.activation_checkpointing),
            tiled=world.device.type == "cpu",
        )
        self._peak = settings.metrics.peak_flops or listed_peak(world.device, settings.run.dtype)
        self._before = 0.0
        """Seconds of training before this start."""
        self._sinks: Sinks | None = None
        if world.is_main_rank:
            out = settings.run.out
            self._before, repeated = keep_lines_up_to(out / METRICS_NAME, resumed_step)
            self._sinks = Sinks(settings, resumed_step, line.say)
            self._remember_start(settings, resumed_step, repeated)
        self._restart()
        self._started = time.perf_counter()

    def _remember_start(self, settings: TrainSettings, step: int, repeated: int) -> None:
        device = self._world.device
        start = {
            "time": time.time(),
            "ranks": self._world.size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "peak_flops": self._peak,
            "dtype": settings.run.dtype,
            "torch": torch.__version__,
            "repeated": repeated,
        }
        try:
            JsonLines(settings.run.out / STARTS_NAME).write(step, start)
        except OSError as error:
            self._line.say(f"{STARTS_NAME}: {error}")

    def _restart(self) -> None:
        self._tally, self._aside, self._began = Tally(), 0.0, time.perf_counter()

    def begin(self, done: float) -> None:
        """The first step follows."""
        self._restart()
        self._started = self._began
        self._line.begin(done)

    def count(self, packs: Sequence[Pack], result: StepResult, lr: float, waited: float, busy: float) -> None:
        """Add a step: this rank's packs, what the step found, the seconds that it waited for packs and was busy."""
        self._tally.count(packs, result)
        self._tally.lr = lr
        self._work.count(packs)
        self._tally.own.waited += waited
        self._tally.own.busy += busy

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is no part of the speed of training: validation, saving."""
        began = time.perf_counter()
        yield
        self._aside += time.perf_counter() - began

    def interval(self, step: int, targets: int, sampled: Mapping[str, int], done: float, optimizer: Optimizers) -> None:
        """Write what has been summed, show the progress line, and begin a new sum; every rank takes part.

        ``sampled``: documents taken from each subset since the beginning of the run.
        """
        seconds = time.perf_counter() - self._began - self._aside
        own = self._tally.own
        own.seconds = seconds
        for source in (self.clock.take(), vars(self._work.take()), vars(memory(self._world.device))):
            for name, value in source.items():
                setattr(own, name, float(value))
        ranks = [RankSums(*row) for row in self._world.table(own.values())]
        if self._sinks is not None:
            figures = self._figures(ranks, seconds)
            figures |= learning_rates(self._tally.lr, optimizer) | {"targets": targets, "seconds": self._seconds()}
            figures |= sampled_figures(sampled, self._documents)
            self._sinks.write(step, figures)
            self._line.show(done, *status(step, figures))
        self.profiler.look(step)
        self._restart()

    def _figures(self, ranks: Sequence[RankSums], seconds: float) -> dict[str, Any]:
        """The figures of the interval; a peak that the devices exceed is wrong and is not used again."""
        try:
            return interval_figures(self._tally, ranks, self._limits, seconds, self._peak)
        except ShareError:
            # Without a peak the same sums raise again when it is another share that is impossible.
            figures = interval_figures(self._tally, ranks, self._limits, seconds, None)
            self._line.say(
                f"utilisation is left out from here on: this run computes more than {self._peak:.4g} FLOP/s per "
                "device, so that peak is too low; set metrics.peak_flops"
            )
            self._peak = None
            return figures

    def validation(self, step: int, scores: Mapping[str, SubsetScore]) -> None:
        """Write and say what a pass over the validation split found, by subset and in total."""
        figures = validation_figures(scores)
        if self._sinks is not None:
            self._sinks.write(step, figures | {"seconds": self._seconds()})
        self._line.say(f"step {step}: validation {figures['validation']['bits_per_byte']:.4f} bits/byte")

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def close(self) -> None:
        """Flush what is still open."""
        self.profiler.close()
        if self._sinks is not None:
            self._sinks.close()


def learning_rates(lr: float, optimizer: Optimizers) -> dict[str, Any]:
    """``lr``, and the rates by optimizer and share of it where parameters learn at several."""
    rates = {}
    for part in optimizer.parts:
        for group in part.param_groups:
            rates[f"{type(part).__name__} x{group['lr'] / lr if lr else 0:.3g}"] = group["lr"]
    return {"lr": lr} | ({"lr_by_group": rates} if len(rates) > 1 else {})


def status(step: int, figures: Mapping[str, Any]) -> list[str]:
    """The pieces of the progress line, the most important first."""
    pieces = [f"step {step}"]
    if "bits_per_byte" in figures:
        pieces.append(f"{figures['bits_per_byte']:.3f} bits/byte")
    pieces.append(f"{quantity(figures['bytes_per_second'])}B/s")
    if figures["skipped"]:
        pieces.append(f"{figures['skipped']} skipped")
    if figures["data_wait"] >= HIGH_WAIT:
        pieces.append(f"data wait {figures['data_wait']:.0%}")
    pieces.append(f"{quantity(figures['flops_per_second'])}FLOP/s")
    if "utilisation" in figures:
        pieces.append(f"{figures['utilisation']['model']:.0%} MFU")
    pieces.append(f"{quantity(figures['memory']['held'])}B memory")
    return pieces
