"""What a run says of itself: figures of every interval and of validation, written, and shown in one line."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from trainer.data.limits import PackLimits
from trainer.data.packs import Pack
from trainer.evaluation.scores import SubsetScore, total_of
from trainer.learning.step import StepResult
from trainer.observing.clock import StepClock
from trainer.observing.metrics import MetricsLog, peak_memory
from trainer.observing.progress import Progress, quantity
from trainer.observing.tally import RankSums, Tally, interval_figures
from trainer.parallel.world import World


class Reporter:
    """Counts steps on every rank; the first rank writes and speaks."""

    def __init__(self, world: World, limits: PackLimits, line: Progress, log: MetricsLog | None) -> None:
        self.clock = StepClock(world.device)
        self._world, self._limits, self._line, self._log = world, limits, line, log
        self._restart()

    def _restart(self) -> None:
        self._tally, self._aside, self._began = Tally(), 0.0, time.perf_counter()

    def begin(self, done: float) -> None:
        """The first step follows."""
        self._restart()
        self._line.begin(done)

    def count(self, packs: Sequence[Pack], result: StepResult, lr: float, waited: float, busy: float) -> None:
        """Add a step: this rank's packs, what the step found, the seconds that it waited for packs and was busy."""
        tally, step = self._tally, packs[0].step
        tally.steps += 1
        tally.bytes += step.bytes
        if result.skipped is None:
            tally.nats += result.nats
            tally.targets += step.targets
            tally.learnt += step.bytes
        else:
            tally.skipped += 1
        tally.lr, tally.grad_norm = lr, result.grad_norm
        tally.own.count(packs)
        tally.own.waited += waited
        tally.own.busy += busy

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is no part of the speed of training: validation, saving."""
        began = time.perf_counter()
        yield
        self._aside += time.perf_counter() - began

    def interval(self, step: int, targets: int, done: float) -> None:
        """Write what has been summed, show the progress line, and begin a new sum; every rank takes part."""
        seconds = time.perf_counter() - self._began - self._aside
        own = self._tally.own
        for part, taken in self.clock.take().items():
            setattr(own, part, taken)
        own.memory = peak_memory(self._world.device)
        ranks = [RankSums(*row) for row in self._world.table(own.values())]
        figures = interval_figures(self._tally, ranks, self._limits, seconds) | {"targets": targets}
        if self._log is not None:
            self._log.write(step, figures)
        speed = quantity(figures["bytes_per_second"])
        self._line.show(done, f"step {step}  {figures.get('bits_per_byte', math.nan):.3f} bits/byte  {speed}B/s ")
        self._restart()

    def validation(self, step: int, scores: Mapping[str, SubsetScore]) -> None:
        """Write and say what a pass over the validation split found, by subset and in total."""
        whole = total_of(scores).bits_per_byte
        if self._log is not None:
            by_subset = {name: score.bits_per_byte for name, score in scores.items()}
            self._log.write(step, {"validation": {"bits_per_byte": whole, "subsets": by_subset}})
        self._line.say(f"step {step}: validation {whole:.4f} bits/byte")

    def close(self) -> None:
        """Flush what is still open."""
        if self._log is not None:
            self._log.close()
