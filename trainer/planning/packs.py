"""What a run will use, found by planning its packs as its loader will: read are indexes, and sidecars where patches are
found anew. Free of torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from shared.errors import ConfigError
from shared.model_settings import AnyModelSettings, EntropyModelSettings
from shared.models.workload import Workload, executed_workload, text_workload
from trainer.data.packing.planner import DATA_ENDS, PackPlan, Planner
from trainer.data.packing.slices import SliceReader, Slices
from trainer.data.patch_schedule import PatchSchedule
from trainer.data.recut_lengths import RecutLengths
from trainer.data.run_data import RunData
from trainer.data.sampling.cursor import first_cursor
from trainer.lr_schedule import progress
from trainer.settings import TrainSettings
from trainer.settings.learning import InBytes, InSteps, Length


def slices_workload(model: AnyModelSettings, slices: Slices) -> Workload:
    """What documents ask of a model in these slices: a continued one begins with BOE, which is a patch of its own."""
    return text_workload(model, *_in_slices(slices))


def _in_slices(slices: Slices) -> tuple[np.ndarray, np.ndarray]:
    """int64 [S] tokens and int64 [S] patches, BOE included."""
    boe = slices.starts > 0
    return slices.stops - slices.starts + boe, slices.patches + boe


def planned_steps(settings: TrainSettings, data: RunData, schedule: PatchSchedule | None) -> Iterator[list[PackPlan]]:
    """The packs of each step of a run, as its loader will plan them, for as long as ``data.repeats`` leaves documents.

    Raises DatasetError, ConfigError.
    """
    cursor = first_cursor(data.train, settings.run.seed, settings.data.streams)
    recut = None if schedule is None else RecutLengths(data.train, schedule.patchings)
    planner = Planner(data.train, SliceReader(data.train, recut), data.limits, data.mixing, cursor, schedule)
    while True:
        plans = planner.next_step(settings.data.packs)
        if not any(plan.targets for plan in plans):
            return
        yield plans


@dataclass(frozen=True)
class Use:
    """What packs use."""

    packs: int = 0
    bytes: int = 0
    """Of text that is trained on."""
    patches: int = 0
    """Other than those of BOS and BOE, one of EOS alone included: as calibrating counts them."""
    useful: Workload = field(default_factory=Workload)
    executed: Workload = field(default_factory=Workload)
    """What packs are filled up with included."""
    scored: Workload = field(default_factory=Workload)
    """Of the network that found the patches; nothing where none did."""

    def __add__(self, other: "Use") -> "Use":
        return Use(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


def use_of_phases(settings: TrainSettings, data: RunData, times: float, tiled: bool) -> list[Use]:
    """What a run uses in each phase of its patch size.

    Args:
        settings: whose length in passes is one in bytes already.
        times: 1 plans all of its packs. Above that the run is planned in small: it has so many times fewer packs and
            streams, so that its phases, and the documents that go on from one into the next, keep their shares of it.
        tiled: as in `shared.models.workload.executed_workload`.

    Raises ConfigError where ``data.repeats`` ends the data before the run ends, DatasetError.
    """
    schedule = data.schedule(settings.run)
    assert schedule is not None, "the patch size changes"
    if times > 1:
        settings, schedule = _in_small(settings, schedule, times)
    found, steps, targets = [Use() for _ in schedule.phases], 0, 0
    planned = planned_steps(settings, data, schedule)
    while progress(settings.run, steps, targets) < 1:
        phase = schedule.phase_after(steps, targets)
        if (plans := next(planned, None)) is None:
            raise ConfigError(f"{DATA_ENDS}, after {steps:,} steps")
        for plan in plans:
            found[phase] += _use(settings.model, data.entropy_model, plan, tiled)
        steps, targets = steps + 1, targets + sum(plan.targets for plan in plans)
    return found


def _use(model: AnyModelSettings, entropy_model: EntropyModelSettings | None, plan: PackPlan, tiled: bool) -> Use:
    (tokens, patches), limits = _in_slices(plan), plan.limits
    assert limits.patches is not None, "a model that reads patches"
    padded = np.append(tokens, limits.tokens - tokens.sum()), np.append(patches, limits.patches - patches.sum())
    documents = plan.documents
    alone = documents.eos_alone * (plan.stops == documents.inputs)
    return Use(
        packs=1,
        bytes=plan.bytes,
        patches=int((patches - 1 + alone).sum()),
        useful=slices_workload(model, plan),
        executed=executed_workload(model, *padded, tiled=tiled),
        scored=Workload() if entropy_model is None else slices_workload(entropy_model, plan),
    )


def _in_small(settings: TrainSettings, schedule: PatchSchedule, times: float) -> tuple[TrainSettings, PatchSchedule]:
    """The run with so many times fewer packs, each of which is a step."""
    packs = settings.data.packs
    run = settings.run.model_copy(
        update={
            "steps": settings.run.steps and max(round(settings.run.steps * packs / times), 1),
            "bytes": settings.run.bytes and max(round(settings.run.bytes / times), 1),
        }
    )
    data = settings.data.model_copy(update={"packs": 1, "streams": max(round(settings.data.streams / times), 1)})

    def scaled(at: Length) -> Length:
        if isinstance(at, InSteps):
            return InSteps(steps=max(round(at.steps * packs / times), 1))
        return InBytes(bytes=max(round(at.bytes / times), 1)) if isinstance(at, InBytes) else at

    phases = [replace(phase, at=scaled(phase.at)) for phase in schedule.phases]
    return settings.model_copy(update={"run": run, "data": data}), PatchSchedule(phases, run)
