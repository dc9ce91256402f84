"""The loop: packs, step, figures, validation, checkpoint, until the run is done or someone asks it to stop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from trainer.checkpoints.store import Checkpoints, TrainState
from trainer.data.limits import PackLimits
from trainer.data.loader import PackLoader
from trainer.data.packs import Pack
from trainer.errors import TrainingError
from trainer.evaluation.scores import SubsetScore, total_of
from trainer.evaluation.validation import Validation
from trainer.learning.optimizer import Optimizers
from trainer.learning.schedule import progress, rate
from trainer.learning.step import take_step
from trainer.observing.metrics import MetricsLog, bits_per_byte, peak_memory
from trainer.observing.progress import Progress, quantity
from trainer.parallel.world import World
from trainer.settings import TrainSettings
from trainer.stopping import StopRequest


@dataclass
class Tally:
    """Sums over ranks and steps since the last line of metrics."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0
    tokens: float = 0.0
    patches: float = 0.0
    """All patches, as the fill rate counts them."""
    own_patches: float = 0.0
    """Patches other than BOS and BOE, as the mean patch size counts them."""
    packs: int = 0
    waited: float = 0.0
    """Seconds that ranks waited for data, summed over ranks."""
    lr: float = 0.0
    """Of the last step, as the gradient norm."""
    grad_norm: float = 0.0
    began: float = field(default_factory=time.perf_counter)


@dataclass
class Job:
    """Everything that a run holds while it trains."""

    settings: TrainSettings
    world: World
    model: nn.Module
    optimizer: Optimizers
    loader: PackLoader
    limits: PackLimits
    validation: Validation
    checkpoints: Checkpoints
    state: TrainState
    log: MetricsLog | None
    """On the first rank only."""
    line: Progress

    def done(self) -> float:
        """Share of the run behind."""
        return progress(self.settings.run, self.state.step, self.state.targets)

    def close(self) -> None:
        """Flush what is still open."""
        if self.log is not None:
            self.log.close()


def run_steps(job: Job, stop: StopRequest) -> bool:
    """Train until the run is done (True) or all ranks have agreed to stop (False); state is saved either way."""
    metrics, checkpoint = job.settings.metrics, job.settings.checkpoint
    packs = iter(job.loader)
    tally = Tally()
    job.line.begin(job.done())
    while job.done() < 1.0:
        asked = one_step(job, packs, tally, stop)
        step = job.state.step
        if step % metrics.log_every == 0 or job.done() >= 1.0:
            tally = report(job, tally)
        if asked:
            path = job.checkpoints.save(job.model, job.optimizer, job.state)
            job.line.say(f"stopped by a signal after step {step}, saved in {path}; the same command goes on from there")
            return False
        if step % checkpoint.every == 0 or job.done() >= 1.0:
            job.checkpoints.save(job.model, job.optimizer, job.state)
        if metrics.validate_every and step % metrics.validate_every == 0 and job.done() < 1.0:
            report_validation(job)
    return True


def one_step(job: Job, packs: Iterator[Pack], tally: Tally, stop: StopRequest) -> bool:
    """One optimizer step; whether any rank has been asked to stop."""
    settings, world, state = job.settings, job.world, job.state
    began = time.perf_counter()
    mine = [next(packs) for _ in range(settings.data.packs // world.size)]
    waited = time.perf_counter() - began
    whole = mine[0].step
    assert whole.cursor is not None
    # The rate belongs to where the step ends, so that the first step of a warm-up learns something too.
    lr = settings.optimizer.lr * rate(
        settings.schedule, progress(settings.run, state.step + 1, state.targets + whole.targets)
    )
    own = [
        float(stop.asked),
        waited,
        sum(len(pack.ids) for pack in mine),
        sum(int(pack.patches.in_slice.sum()) for pack in mine if pack.patches),
        sum(int(pack.slice_patches.sum()) for pack in mine),
    ]
    try:
        result = take_step(
            *(job.model, job.optimizer, [pack.batch for pack in mine], whole.targets, world),
            lr,
            settings.optimizer.clip,
            own,
            settings.parallel.keep_gathered,
        )
    except TrainingError as error:
        last = job.checkpoints.newest()
        raise TrainingError(f"step {state.step + 1}: {error}; last checkpoint: {last or 'none'}") from None
    asked, waited, tokens, patches, own_patches = result.sums
    job.state = state.model_copy(
        update={
            "step": state.step + 1,
            "targets": state.targets + whole.targets,
            "cursor": whole.cursor,
        }
    )
    tally.lr, tally.grad_norm = lr, result.grad_norm
    tally.nats += result.nats
    tally.targets += whole.targets
    tally.bytes += whole.bytes
    tally.tokens += tokens
    tally.patches += patches
    tally.own_patches += own_patches
    tally.packs += settings.data.packs
    tally.waited += waited
    return asked > 0


def report(job: Job, tally: Tally) -> Tally:
    """Write what has been summed, show the progress line, and begin a new sum."""
    seconds = time.perf_counter() - tally.began
    limits = job.limits
    figures: dict[str, Any] = {
        "loss": tally.nats / tally.targets,
        "bits_per_byte": bits_per_byte(tally.nats, tally.bytes),
        "lr": tally.lr,
        "grad_norm": tally.grad_norm,
        "targets": job.state.targets,
        "bytes_per_second": tally.bytes / seconds,
        "token_fill": tally.tokens / (tally.packs * limits.tokens),
        "data_wait": tally.waited / (seconds * job.world.size),
        "memory": peak_memory(job.world.device),
    }
    if limits.patches is not None:
        figures |= {
            "patches_per_second": tally.own_patches / seconds,
            "bytes_per_patch": tally.bytes / tally.own_patches,
            "patch_fill": tally.patches / (tally.packs * limits.patches),
        }
    if job.log is not None:
        job.log.write(job.state.step, figures)
    job.line.show(
        job.done(),
        f"step {job.state.step}  {figures['bits_per_byte']:.3f} bits/byte  {quantity(figures['bytes_per_second'])}B/s ",
    )
    return Tally()


def report_validation(job: Job) -> dict[str, SubsetScore]:
    """One pass over the validation split, written by subset and in total."""
    scores = job.validation.run(job.model)
    whole = total_of(scores).bits_per_byte
    if job.log is not None:
        by_subset = {name: score.bits_per_byte for name, score in scores.items()}
        job.log.write(job.state.step, {"validation": {"bits_per_byte": whole, "subsets": by_subset}})
    job.line.say(f"step {job.state.step}: validation {whole:.4f} bits/byte")
    return scores
