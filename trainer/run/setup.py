"""Setting a run up, and what is left when it is done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from shared.errors import ConfigError, PatchworkError
from shared.io.display.log import LOG
from shared.io.display.page import PAGE
from shared.io.display.progress import Progress
from shared.io.display.quantities import quantity
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import canonical_json
from shared.io.files.locks import LOCK_FILE, locked
from shared.io.files.outputs import Output
from trainer.checkpoints.initial_weights import build_model, other_settings
from trainer.checkpoints.model import MODEL_FOLDER, write_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.run_data import RunData
from trainer.distributed.straggler_monitor import StragglerMonitor
from trainer.distributed.world import World
from trainer.evaluation.scores import table
from trainer.evaluation.validation import Validation
from trainer.lr_schedule import decayed
from trainer.memory.dry_run import dry_run
from trainer.memory.parameters import frozen_names
from trainer.metrics.files import REPORT_NAME
from trainer.metrics.history import load_history
from trainer.metrics.loggers import check_loggers
from trainer.metrics.report import html
from trainer.metrics.run_metrics import RunMetrics
from trainer.metrics.summary import in_words, summary
from trainer.optim.distillation import open_distillation
from trainer.optim.optimizer import build_optimizer
from trainer.optim.step_timer import StepTimer
from trainer.provenance.identity import IDENTITY_NAME, RESOLVED_NAME, RunIdentity, RunNumerics, save_identity
from trainer.provenance.origin import origin_of
from trainer.provenance.patch_size import patch_size_warning
from trainer.provenance.run_folder import METRICS_NAME
from trainer.run.callbacks.base import Callback, load_callback
from trainer.run.callbacks.profiler import Profiler
from trainer.run.callbacks.reporting import MetricsWriter, ProgressLine
from trainer.run.job import Job
from trainer.settings import TrainSettings

LOCK_PATIENCE_SECONDS = 20.0
"""A job that was killed may take a moment to be gone."""


@contextmanager
def claimed(settings: TrainSettings, identity: RunIdentity, world: World) -> Iterator[None]:
    """Make the run's folder say whose it is, before anything else is written there, and keep other jobs out of it.

    Raises OutputError when another job writes there. What is refused in a new folder leaves only the lock file there.
    """
    out, ours = settings.run.out, (IDENTITY_NAME, RESOLVED_NAME)
    with locked(out, LOCK_PATIENCE_SECONDS, required=False) if world.is_main_rank else nullcontext():
        new = not (out / IDENTITY_NAME).exists()
        if world.is_main_rank:
            save_identity(identity, out / IDENTITY_NAME)
            write_atomic(out / RESOLVED_NAME, canonical_json(settings.resolved()) + "\n")
        try:
            yield
        except PatchworkError:
            if world.is_main_rank and new and {path.name for path in out.iterdir()} <= {LOCK_FILE, *ours}:
                for name in ours:
                    (out / name).unlink(missing_ok=True)
            raise


def callback_classes(settings: TrainSettings) -> list[type[Callback]]:
    """Ours, then the recipe's. Raises ConfigError for one that cannot be imported, or a logger that is not there."""
    check_loggers(settings)
    return [MetricsWriter, ProgressLine, Profiler, *map(load_callback, settings.run.callbacks)]


def prepare(settings: TrainSettings, data: RunData, identity: RunIdentity, world: World) -> Job:
    """Loader, model, optimizer, and the state of the last checkpoint if there is one."""
    out = settings.run.out
    checkpoints = Checkpoints(out, settings.checkpoint, world, before_decay(settings))
    newest = checkpoints.newest(identity)
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    distillation = open_distillation(settings, world.device)
    if newest is None:
        state = TrainState(identity=identity, config=settings.resolved())
    else:
        state = checkpoints.load(newest, model, optimizer, identity)
    schedule = data.schedule(settings.run)
    line = Progress(not world.is_main_rank, settings.metrics.progress_seconds)
    timer = StepTimer(world.device)
    job = Job(
        settings=settings,
        data=data,
        world=world,
        model=model,
        optimizer=optimizer,
        distillation=distillation,
        loader=PackLoader(
            data.train,
            data.limits,
            packs_per_step=settings.data.packs,
            mixing=data.mixing,
            seed=settings.run.seed,
            streams=settings.data.streams,
            rank=world.rank,
            ranks=world.size,
            workers=settings.data.workers,
            cursor=state.cursor,
            schedule=schedule,
            teacher=data.teacher,
        ),
        validation=Validation(data.validation, data.limits, world, schedule),
        checkpoints=checkpoints,
        state=state,
        line=line,
        timer=timer,
        metrics=RunMetrics(settings, data, world, timer, line.log, frozen_names(settings)),
        # It names the slowest before the others give up.
        monitor=StragglerMonitor(world.store, world.rank, world.size, settings.run.timeout / 2, LOG.warning),
    )
    for news in checkpoints.pop_news():
        line.log(news)
    line.log(opening(job, newest))
    if data.phases:
        line.log(f"phase {job.loader.phase + 1} of {len(data.phases)}: {data.phases[job.loader.phase]}")
    if schedule is not None and (note := schedule.unreached):
        line.log(note)
    if newest is None and settings.start.model is not None:
        for difference in other_settings(settings.start.model, settings.model):
            line.log(f"unlike {settings.start.model}: {difference}")
        if warning := patch_size_warning(origin_of(settings.start.model).folder, data.train, data.first_patch_size):
            line.log(warning)
    if settings.parallel.dry_run:
        top = 0 if data.teacher is None else data.teacher.top
        found = dry_run(model, optimizer, settings, data.largest_limits, world, distillation, top)
        line.log(found.line())
        if world.is_main_rank:
            found.save(out)
    return job


def close(job: Job, callbacks: Sequence[Callback]) -> None:
    """Flush what is still open, and wait for what is on its way."""
    job.monitor.close()
    job.checkpoints.close()
    for news in job.checkpoints.pop_news():
        job.line.log(news)
    for callback in callbacks:
        callback.on_run_end()


def before_decay(settings: TrainSettings) -> Callable[[TrainState], bool] | None:
    """Whether a state is from before the decay of wsd: a longer run can continue from it. None of other schedules."""
    if settings.schedule.kind != "wsd":
        return None
    return lambda state: decayed(settings.schedule, settings.run, state.step, state.targets) == 0.0


def opening(job: Job, resumed: Path | None) -> str:
    """What this run is, in one line."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in job.model.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    share = f", {trained / whole:.1%} of them trained" if trained < whole else ""
    parameters = f"{quantity(whole).rstrip()} parameters{share}"
    world, settings = job.world, job.settings
    origin = settings.start.model and origin_of(settings.start.model).folder
    begin = f"starting from {origin}" if origin else "from the beginning"
    start = f"going on after step {job.state.step} ({resumed})" if resumed else begin
    ranks = f"{world.size} rank{'s' * (world.size > 1)} on {world.device.type}"
    return f"{settings.model.kind} model, {parameters}, {settings.run.dtype}, {ranks}, {start}"


def export(job: Job, identity: RunIdentity) -> None:
    """Write RUN/model: fp32 weights, settings, entropy model or tokenizer; the identity comes last."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(job.model, options=options))  # the first rank's alone
    if job.world.is_main_rank:
        settings, world = job.settings, job.world
        numerics = RunNumerics(
            dtype=settings.run.dtype,
            device=world.device.type,
            torch=torch.__version__,
            ranks=world.size,
            threads=settings.run.threads,
        )
        write_model(weights, settings.model, identity, numerics, job.data, settings.run.out / MODEL_FOLDER)
    job.world.barrier()


def summarise(job: Job) -> None:
    """The validation figures by subset, the run in words, its page, and where everything is."""
    out = job.settings.run.out
    assert job.state.validation is not None
    if job.state.identity.is_causal:
        job.line.log(table(job.state.validation))
    if job.world.is_main_rank:
        try:
            run = load_history(out)
            job.line.log(in_words(summary(run)))
            Output(out / REPORT_NAME, PAGE).write(html([run]))
        except OSError as error:  # figures could not be written: the model is there all the same
            job.line.log(f"{REPORT_NAME}: {error}")
        except ConfigError:  # or were none, as of a run that was fetched when it was done
            why = "; a mirror holds checkpoints alone" * (job.settings.checkpoint.mirror is not None)
            job.line.log(f"no {REPORT_NAME}: {out / METRICS_NAME} has no figures of a step{why}")
    curves = f"{out / REPORT_NAME}, or " if (out / REPORT_NAME).exists() else ""
    job.line.log(f"model: {out / MODEL_FOLDER}   curves: {curves}tensorboard --logdir {out}")
