"""The loop: packs, step, figures, validation, checkpoint, until the run is done or someone asks it to stop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from torch import nn

from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.packing.packs import Pack
from trainer.data.run_data import RunData
from trainer.distributed.straggler_watch import Watch
from trainer.distributed.world import SETUP_TIMEOUT, World
from trainer.errors import CheckpointError, TrainingError
from trainer.evaluation.validation import Validation
from trainer.lr_schedule import decay_is_near, progress, rate
from trainer.metrics.reporter import Reporter
from trainer.metrics.subset_score import SubsetScore
from trainer.optim.optimizer import Optimizers
from trainer.optim.spike_guard import Guard, GuardState
from trainer.optim.train_step import take_step
from trainer.run.stopping import StopRequest
from trainer.settings import TrainSettings
from trainer.terminal import Progress


@dataclass
class Job:
    """Everything that a run holds while it trains."""

    settings: TrainSettings
    data: RunData
    world: World
    model: nn.Module
    optimizer: Optimizers
    loader: PackLoader
    validation: Validation
    checkpoints: Checkpoints
    state: TrainState
    line: Progress
    reporter: Reporter
    watch: Watch

    def done(self) -> float:
        """Share of the run behind."""
        return progress(self.settings.run, self.state.step, self.state.targets)

    def close(self) -> None:
        """Flush what is still open."""
        self.watch.close()
        self.reporter.close()


def run_steps(job: Job, stop: StopRequest) -> bool:
    """Train until the run is done (True) or all ranks have agreed to stop (False); state is saved either way."""
    metrics, checkpoint = job.settings.metrics, job.settings.checkpoint
    packs, began, near = iter(job.loader), job.state.step, decay_near(job)
    job.reporter.begin(job.done())
    job.reporter.profiler.after(job.state.step)
    validate_if_due(job)  # a run that was stopped after a step of validation has that before it still
    while job.done() < 1.0:
        asked = one_step(job, packs, stop)
        step, over, before = job.state.step, job.done() >= 1.0, near
        near = decay_near(job)
        job.reporter.profiler.after(step)
        if step == began + 1:  # whatever is compiled or made ready is so now
            job.world.wait_at_most(timedelta(seconds=job.settings.run.timeout), job.model)
        if step % metrics.log_every == 0 or over:
            assert job.state.cursor is not None
            job.reporter.interval(step, job.state.targets, job.state.cursor.sampled, job.done(), job.optimizer)
        if asked and not over:
            save_and_stop(job)
            return False
        validate_if_due(job)
        if step % checkpoint.every == 0 or over or (near and not before):
            job.watch.at(step, "saving")
            with job.reporter.aside():
                job.checkpoints.save(job.model, job.optimizer, job.state)
        say_news(job)
    job.watch.rest()
    job.world.wait_at_most(SETUP_TIMEOUT, job.model)  # what is left to write may be much
    job.checkpoints.wait()
    say_news(job)
    return True


def decay_near(job: Job) -> bool:
    """Whether the rate may begin to decay with the next step: a longer run can continue from here, not from later."""
    settings, state = job.settings, job.state
    most = settings.data.packs * settings.data.tokens
    return decay_is_near(settings.schedule, settings.run, state.step, state.targets, most)


def validate_if_due(job: Job) -> None:
    """Validate after every so many steps and after the last one, once each."""
    step, every = job.state.step, job.settings.metrics.validate_every
    due = job.done() >= 1.0 or (every is not None and step > 0 and step % every == 0)
    if due and job.state.validation is None:
        job.watch.at(step, "validating")
        job.state = job.state.model_copy(update={"validation": validate(job)})


def save_and_stop(job: Job) -> None:
    """Save the state after this step, whatever the time. Raises CheckpointError when that is not possible."""
    job.watch.rest()
    job.checkpoints.save(job.model, job.optimizer, job.state)
    saved = job.checkpoints.wait()
    say_news(job)
    if not saved:
        last = job.checkpoints.last or "the beginning"
        raise CheckpointError(
            f"stopped by a signal after step {job.state.step}; rerun the same command to resume from {last}"
        )
    job.line.say(
        f"stopped by a signal after step {job.state.step}, saved in {job.checkpoints.last}; "
        "rerun the same command to resume"
    )


def say_news(job: Job) -> None:
    """What there is to say about saves that have ended."""
    for line in job.checkpoints.news():
        job.line.say(line)


def one_step(job: Job, packs: Iterator[Pack], stop: StopRequest) -> bool:
    """One optimizer step; whether any rank has been asked to stop."""
    settings, world, state, clock = job.settings, job.world, job.state, job.reporter.clock
    clock.begin()
    job.watch.at(state.step + 1, "waiting for data")
    began = time.perf_counter()
    mine = [next(packs) for _ in range(settings.data.packs // world.size)]
    waited = time.perf_counter() - began
    clock.mark("data")
    job.watch.at(state.step + 1, "computing")
    whole = mine[0].step
    assert whole.cursor is not None
    # The rate belongs to where the step ends, so that the first step of a warm-up learns something too.
    targets = state.targets + whole.targets
    lr = settings.optimizer.lr * rate(settings.schedule, settings.run, state.step + 1, targets)
    worked = time.process_time()
    guard = Guard(settings.guard, state.guard)
    result = take_step(
        *(job.model, job.optimizer, [pack.batch for pack in mine], whole.targets, world),
        lr,
        settings.optimizer.clip,
        [float(stop.asked)],
        settings.parallel.keep_gathered,
        clock,
        guard,
    )
    step = state.step + 1
    remembered = guard.after(step, result.nats / whole.targets, result.grad_norm, result.skipped is not None)
    if result.skipped:
        say_skipped(job, step, result.skipped, remembered)
    (asked,) = result.sums
    job.state = state.model_copy(
        update={
            "step": step,
            "targets": targets,
            "cursor": whole.cursor,
            "guard": remembered,
            "validation": None,
        }
    )
    job.reporter.count(mine, result, lr, waited, busy=waited + time.process_time() - worked)
    return asked > 0


def say_skipped(job: Job, step: int, why: str, remembered: GuardState) -> None:
    """Say that a step was skipped; TrainingError, on all ranks alike, when it was one too many."""
    settings, lately = job.settings.guard, len(remembered.skipped)
    if lately > settings.budget:
        job.checkpoints.wait()
        last = job.checkpoints.last
        raise TrainingError(
            f"step {step}: {why}, nothing was updated; {lately} of the last {settings.within} steps were skipped, "
            f"guard.budget allows {settings.budget}; last checkpoint: {last or 'none'}"
        )
    job.line.say(f"step {step} is skipped: {why}")


def validate(job: Job) -> dict[str, SubsetScore]:
    """One pass over the validation split, written by subset and in total."""
    with job.reporter.aside():
        scores = job.validation.run(job.model)
    job.reporter.validation(job.state.step, scores)
    return scores
