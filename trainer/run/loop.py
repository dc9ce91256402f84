"""The loop: packs, step, figures, validation, checkpoint, until the run is done or someone asks it to stop.

Side effects are in callbacks; what is here decides when they are called.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

from trainer.data.packing.packs import Pack
from trainer.distributed.world import SETUP_TIMEOUT
from trainer.errors import CheckpointError, TrainingError
from trainer.lr_schedule import decay_is_near, rate
from trainer.metrics.accumulator import StepRecord
from trainer.optim.spike_guard import Guard, GuardState
from trainer.optim.train_step import TrainStep, take_step
from trainer.run.callbacks.base import Callback
from trainer.run.job import Job
from trainer.run.stopping import StopRequest


def run_steps(job: Job, callbacks: Sequence[Callback], stop: StopRequest) -> bool:
    """Train until the run is done (True) or all ranks have agreed to stop (False); state is saved either way."""
    packs, began, near = iter(job.loader), job.state.step, decay_near(job)
    for callback in callbacks:
        callback.on_run_start()
    job.timer.restart()
    validate_if_due(job, callbacks)  # a run that was stopped after a step of validation has that before it still
    while job.done() < 1.0:
        stopping = one_step(job, callbacks, packs, stop)
        step, over, before = job.state.step, job.done() >= 1.0, near
        near = decay_near(job)
        if step == began + 1:  # whatever is compiled or made ready is so now
            job.world.wait_at_most(timedelta(seconds=job.settings.run.timeout), job.model)
        if step % job.settings.metrics.log_every == 0 or over:
            end_interval(job, callbacks)
        if stopping and not over:
            save_and_stop(job, callbacks)
            return False
        validate_if_due(job, callbacks)
        if step % job.settings.checkpoint.every == 0 or over or (near and not before):
            job.monitor.report(step, "saving")
            with job.timer.paused():
                save(job)
        report_saves(job, callbacks)
    job.monitor.pause()
    job.world.wait_at_most(SETUP_TIMEOUT, job.model)  # what is left to write may be much
    job.checkpoints.wait()
    report_saves(job, callbacks)
    return True


def decay_near(job: Job) -> bool:
    """Whether the rate may begin to decay with the next step: a longer run can continue from here, not from later."""
    settings, state = job.settings, job.state
    most = settings.data.packs * settings.data.tokens
    return decay_is_near(settings.schedule, settings.run, state.step, state.targets, most)


def end_interval(job: Job, callbacks: Sequence[Callback]) -> None:
    """Hand on the figures since the last interval, and begin a new one; what callbacks take is in neither."""
    metrics = job.metrics.interval(job.state.targets, job.loader.sampled, job.optimizer)
    for callback in callbacks:
        callback.on_interval(metrics)
    job.timer.restart()


def validate_if_due(job: Job, callbacks: Sequence[Callback]) -> None:
    """Validate after every so many steps and after the last one, once each."""
    step, every = job.state.step, job.settings.metrics.validate_every
    due = job.done() >= 1.0 or (every is not None and step > 0 and step % every == 0)
    if not due or job.state.validation is not None:
        return
    job.monitor.report(step, "validating")
    with job.timer.paused():
        scores = job.validation.run(job.model)
        job.state = job.state.model_copy(update={"validation": scores})
        for callback in callbacks:
            callback.on_validation(scores)
        phase = job.loader.phase
        if (of_phase := job.validation.run_phase(job.model, phase)) is not None:
            for callback in callbacks:
                callback.on_phase_validation(phase, of_phase)


def save(job: Job) -> None:
    """Save the state after this step."""
    # Only here: with thousands of subsets a cursor takes longer to make than a step may.
    job.state = job.state.model_copy(update={"cursor": job.loader.cursor})
    job.checkpoints.save(job.model, job.optimizer, job.state)


def save_and_stop(job: Job, callbacks: Sequence[Callback]) -> None:
    """Save the state after this step, whatever the time. Raises CheckpointError when that is not possible."""
    job.monitor.pause()
    save(job)
    saved = job.checkpoints.wait()
    report_saves(job, callbacks)
    if not saved:
        last = job.checkpoints.last or "the beginning"
        raise CheckpointError(
            f"stopped by a signal after step {job.state.step}; rerun the same command to resume from {last}"
        )
    job.line.log(
        f"stopped by a signal after step {job.state.step}, saved in {job.checkpoints.last}; "
        "rerun the same command to resume"
    )


def report_saves(job: Job, callbacks: Sequence[Callback]) -> None:
    """Log what there is to say about saves that have ended, and hand on a new checkpoint."""
    for line in job.checkpoints.pop_news():
        job.line.log(line)
    if saved := job.checkpoints.pop_saved():
        for callback in callbacks:
            callback.on_checkpoint(saved)


def one_step(job: Job, callbacks: Sequence[Callback], packs: Iterator[Pack], stop: StopRequest) -> bool:
    """One optimizer step; whether any rank has been asked to stop."""
    settings, state = job.settings, job.state
    step = state.step + 1
    job.timer.begin_step()
    job.monitor.report(step, "waiting for data")
    began = time.perf_counter()
    phase = job.loader.phase
    mine = [next(packs) for _ in range(settings.data.packs // job.world.size)]
    if job.loader.phase != phase:
        job.line.log(f"step {step}: {job.data.phases[job.loader.phase]}")
    waited = time.perf_counter() - began
    job.timer.mark("data")
    job.monitor.report(step, "computing")
    whole = mine[0].step
    # The rate belongs to where the step ends, so that the first step of a warm-up learns something too.
    targets = state.targets + whole.targets
    guard = Guard(settings.guard, state.guard)
    worked = time.process_time()
    train_step = TrainStep(
        batches=[pack.batch for pack in mine],
        targets=whole.targets,
        lr=settings.optimizer.lr * rate(settings.schedule, settings.run, step, targets),
        clip=settings.optimizer.clip,
        keep_gathered=settings.parallel.keep_gathered,
        guard=guard,
        stop=stop.requested,
        distillation=job.distillation,
    )
    result = take_step(job.model, job.optimizer, train_step, job.world, job.timer)
    remembered = guard.after(step, result.nats / whole.targets, result.grad_norm, result.skipped is not None)
    if result.skipped:
        log_skipped(job, step, result.skipped, remembered)
    job.state = state.model_copy(update={"step": step, "targets": targets, "guard": remembered, "validation": None})
    busy = waited + time.process_time() - worked
    record = StepRecord(number=step, packs=mine, result=result, lr=train_step.lr, waited=waited, busy=busy)
    job.metrics.add(record)
    for callback in callbacks:
        callback.on_step_end(record)
    return result.stop


def log_skipped(job: Job, step: int, why: str, remembered: GuardState) -> None:
    """Say that a step was skipped; TrainingError, on all ranks alike, when it was one too many."""
    settings, lately = job.settings.guard, len(remembered.skipped)
    if lately > settings.budget:
        job.checkpoints.wait()
        last = job.checkpoints.last
        raise TrainingError(
            f"step {step}: {why}, nothing was updated; {lately} of the last {settings.within} steps were skipped, "
            f"guard.budget allows {settings.budget}; last checkpoint: {last or 'none'}"
        )
    job.line.log(f"step {step} is skipped: {why}")
