"""What a recipe will take, before anything is started: parameters, memory, FLOPs and time. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, lcm
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.layers.devices import Device, find_device
from shared.model_folder.identity import stored_settings
from shared.model_settings import BltSettings, CountsSettings, EntropyModelSettings, HNetSettings
from shared.models.flops import executed_training_flops, forward_flops, paper_flops_per_byte, training_flops
from shared.models.workload import executed_workload, useful_workload
from shared.patching.credit import PatchCredit
from shared.shards.manifest import ENTROPY_MODEL_FOLDER
from trainer.data.packing.limits import patches_for
from trainer.data.run_data import RunData, with_length
from trainer.data.splits import TRAIN_SPLIT
from trainer.memory.estimate import estimate
from trainer.memory.parameters import frozen_names, parameter_shapes, sizes_by_part, trained_size
from trainer.memory.parts import Memory
from trainer.planning.teacher import TeacherPlan, TokenModel, plan_teacher, teacher_of
from trainer.settings import TrainSettings
from trainer.settings.learning import InBytes, InSteps, Length
from trainer.settings.recipe import check_recipe, read_recipe, with_places

if TYPE_CHECKING:  # it needs pyarrow, which plans without packs do without
    from trainer.planning.packs import Use

PUBLISHED_ENTROPY_MODEL = EntropyModelSettings(width=768, layers=14, heads=12)
"""That of the paper, with 100 million parameters: taken where the dataset does not bring its own."""
MOST_BYTES = 2**28
"""Of a run whose patch size changes and whose packs are planned one by one, in some seconds: of a longer one so many
are planned that stand for all."""


@dataclass(frozen=True)
class PlannedPhase:
    """A phase of a run whose patch size changes."""

    share: float
    """Of the bytes of the run."""
    size: float
    """Bytes a patch of documents that begin in the phase."""
    patch_size: float
    """Bytes a patch of its packs: documents that go on from the phase before keep their patches. The same as ``size``
    where the data is not there."""
    patches: int
    """P_max."""
    training: float
    """Useful FLOPs a byte of forward and backward."""


@dataclass(frozen=True)
class Plan:
    """What a recipe will take. Where the patch size changes, FLOPs a byte are means over the run, and those of the
    packs that it will read if its data is there.
    """

    settings: TrainSettings
    device: Device | None
    steps: int
    """Of the run."""
    bytes: int
    """Of the run: the first of its lengths that is reached, in full packs; of text, where its packs were planned."""
    patch_size: float | None
    """Bytes a patch, in the end; None for models without patches."""
    patches: int
    """P_max, the largest of all phases; 0 without patches."""
    parameters: dict[str, int]
    """By part of the model."""
    trained: int
    """Parameters that learn: all but the frozen ones."""
    memory: Memory
    """Of one rank."""
    forward: dict[str, float]
    """Useful FLOPs a byte of one forward pass, by part."""
    training: float
    """Useful FLOPs a byte of forward and backward."""
    executed: float
    """The same as they are computed: packs filled up, blocks recomputed."""
    paper: float | None
    """Forward FLOPs a byte by the paper's accounting; None for all but the byte latent transformer."""
    entropy: float | None
    """FLOPs per byte of the entropy model that finds the patches; None where there are none."""
    entropy_known: bool
    """Whether that is the entropy model of the data; otherwise it is the paper's, of 100 M parameters."""
    phases: tuple[PlannedPhase, ...] = ()
    """None where the patch size stays the same."""
    planned: float | None = None
    """Share of the packs of the run that were planned one by one; None where full packs stand for all."""
    teacher: TeacherPlan | None = None
    """What the teacher's targets take, beside all of this; None where the run needs none, or nothing is known of it."""

    @property
    def step_bytes(self) -> int:
        """Bytes of a step whose packs are full."""
        return step_bytes(self.settings)

    @property
    def flops(self) -> float:
        """Useful FLOPs of the run."""
        return self.training * self.bytes

    @property
    def head(self) -> float:
        """Share of the FLOPs of the product that gives logits, which is computed in fp32 in any case."""
        return self.forward["head"] / sum(self.forward.values())

    @property
    def seconds(self) -> float | None:
        """Of the run at the plan's utilisation; None where the device's peak is not known."""
        return self._seconds(self.flops, self.head, self.settings.run.dtype)

    @property
    def teacher_seconds(self) -> float | None:
        """Of making the targets, on the same devices; None where their peak is not known."""
        given = self.teacher
        return None if given is None else self._seconds(given.flops, given.head, given.precision)

    def _seconds(self, flops: float, head: float, dtype: str) -> float | None:
        if self.device is None:
            return None
        at_peak = (1 - head) / self.device.peak(dtype) + head / self.device.peak("float32")
        return flops * at_peak / (self.settings.plan.ranks * self.settings.plan.utilisation)

    @property
    def device_memory(self) -> int:
        """Bytes of a rank on its device."""
        return self.memory.on_device(self.settings.parallel.offload)


def step_bytes(settings: TrainSettings) -> int:
    """Of a step whose packs are full."""
    return settings.data.packs * settings.data.tokens


def run_bytes(settings: TrainSettings) -> int:
    """Of a run: the first of its lengths that is reached."""
    run = settings.run
    lengths = [run.bytes, run.steps * step_bytes(settings) if run.steps else None]
    return min(length for length in lengths if length)


def load_plan(recipe: Path, overrides: Sequence[str]) -> Plan:
    """The plan of a recipe file with ``--section.key value`` overrides; it need not say where its data and its run are.

    Raises ConfigError.
    """
    values = with_places(read_recipe(recipe, overrides, TrainSettings))
    return make_plan(check_recipe(values, TrainSettings, recipe, overrides))


def make_plan(settings: TrainSettings) -> Plan:
    """The plan of a recipe, with the mean patch size and the entropy model of its dataset where that is there.

    Raises ConfigError when ranks, packs and copies do not divide one another, or the data does not fit, InteropError or
    ModelFileError for a teacher that is none.
    """
    model, options = settings.model, settings.plan
    check_ranks(settings)
    data, shapes = RunData.of(settings), parameter_shapes(model)
    if data.exists:
        settings = with_length(settings, data)
    elif settings.run.steps is None and settings.run.bytes is None:
        raise ConfigError("run.passes needs the data, which is not there; give --run.bytes for the plan")
    device = find_device(options.device) if options.device else None
    patch_size, patches, entropy_model = None, 0, None
    if isinstance(model, HNetSettings):
        patch_size, patches = model.target, _credited_patches(settings, data, model.patch_credit)
    elif model.reads != "bytes":
        patch_size, patches = _patching(settings, data)
    parts = _parts(settings, data) or [(1.0, patch_size, patches)]
    most_patches = max(most for _, _, most in parts)
    tiled = device is None
    if settings.data.patch_schedule and data.exists:
        run = _planned_run(settings, data, tiled)
    else:
        run = _full_packs(settings, parts, tiled)
    # Where nothing is there, a student's patches are taken to be tokens.
    found_by_a_model = settings.distillation is None
    if data.exists:
        found_by_a_model = data.train_manifest.identity.entropy_model is not None
    own, teacher = _entropy_model(data), teacher_of(settings)
    if isinstance(model, BltSettings) and found_by_a_model and not isinstance(own, CountsSettings):
        entropy_model = own or PUBLISHED_ENTROPY_MODEL
    return Plan(
        settings=settings,
        device=device,
        steps=run.steps,
        bytes=run.bytes,
        patch_size=parts[-1][1],
        patches=most_patches,
        parameters=sizes_by_part(shapes),
        trained=trained_size(shapes, settings.optimizer.rates),
        memory=estimate(settings, options.ranks, most_patches, tiled, _embedding_bytes(settings, teacher)),
        forward={part: _mean(run.shares, [cost.forward[part] for cost in run.costs]) for part in run.costs[0].forward},
        training=_mean(run.shares, [cost.training for cost in run.costs]),
        executed=_mean(run.shares, [cost.executed for cost in run.costs]),
        paper=None if run.costs[0].paper is None else _mean(run.shares, [cost.paper or 0.0 for cost in run.costs]),
        entropy=None if entropy_model is None else _per_byte(entropy_model, _documents(settings, None)[0]),
        entropy_known=own is not None,
        phases=tuple(
            PlannedPhase(share, size, found, most, cost.training)
            for share, found, (_, size, most), cost in zip(run.shares, run.sizes, parts, run.costs)
            if settings.data.patch_schedule and size is not None and found is not None
        ),
        planned=run.planned,
        teacher=plan_teacher(settings, data, teacher, run.bytes, patch_size or options.patch_size),
    )


def _embedding_bytes(settings: TrainSettings, teacher: TokenModel | None) -> int:
    """Of the teacher's embedding, where it is learned."""
    wanted = settings.distillation
    return 0 if teacher is None or wanted is None or not wanted.embedding else teacher.embedding_bytes


def _mean(shares: Sequence[float], values: Sequence[float]) -> float:
    """Of values by phase, each with its share of the run."""
    return sum(share * value for share, value in zip(shares, values)) if len(values) > 1 else values[0]


@dataclass(frozen=True)
class _Cost:
    """FLOPs a byte of a model with patches of one size, as in `Plan`."""

    forward: dict[str, float]
    training: float
    executed: float
    paper: float | None


@dataclass(frozen=True)
class _Run:
    """A run by its phases; of one whose patch size stays the same it is one phase."""

    steps: int
    bytes: int
    shares: Sequence[float]
    """Of the bytes."""
    sizes: Sequence[float | None]
    """Bytes a patch."""
    costs: Sequence[_Cost]
    planned: float | None = None
    """As in `Plan`."""


def _full_packs(settings: TrainSettings, parts: Sequence[tuple[float, float | None, int]], tiled: bool) -> _Run:
    """Of full packs with documents as planned; ``parts`` as `_parts` gives them."""
    whole = run_bytes(settings)
    shares, sizes = [share for share, _, _ in parts], [size for _, size, _ in parts]
    costs = [_cost(settings, size, most, tiled) for _, size, most in parts]
    return _Run(-(-whole // step_bytes(settings)), whole, shares, sizes, costs)


def _planned_run(settings: TrainSettings, data: RunData, tiled: bool) -> _Run:
    """Of the packs that the run will read. Raises ConfigError, DatasetError."""
    from trainer.planning.packs import use_of_phases

    times = max(run_bytes(settings) / MOST_BYTES, 1.0)
    uses = use_of_phases(settings, data, times, tiled)
    whole, packs = sum(use.bytes for use in uses), sum(use.packs for use in uses)
    sizes = [use.bytes / use.patches if use.patches else phase.size for use, phase in zip(uses, data.phases)]
    costs = [_cost_of(settings, use, size) for use, size in zip(uses, sizes)]
    steps = settings.run.steps
    if steps is None or settings.run.bytes is not None:
        steps = round(packs * times / settings.data.packs)
    return _Run(steps, round(whole * times), [use.bytes / whole for use in uses], sizes, costs, 1 / times)


def _cost_of(settings: TrainSettings, use: "Use", patch_size: float) -> _Cost:
    """Of packs with so many bytes a patch."""
    model, recompute, size = settings.model, settings.parallel.activation_checkpointing, max(use.bytes, 1)
    frozen = frozen_names(settings)
    return _Cost(
        forward={part: count / size for part, count in forward_flops(model, use.useful).by_part().items()},
        training=training_flops(model, use.useful, frozen).total / size,
        executed=executed_training_flops(model, use.executed, recompute, frozen).total / size,
        paper=paper_flops_per_byte(model, patch_size) if isinstance(model, BltSettings) else None,
    )


def _cost(settings: TrainSettings, patch_size: float | None, patches: int, tiled: bool) -> _Cost:
    """``patches``: P_max."""
    model, recompute, frozen = settings.model, settings.parallel.activation_checkpointing, frozen_names(settings)
    tokens, in_documents = _documents(settings, patch_size)
    total = sum(tokens)
    padding = [patches - sum(in_documents)] if patches > sum(in_documents) else []
    if model.reads == "tokens":
        useful, executed = useful_workload(model, in_documents), [[*in_documents, *padding]]
    else:
        useful, executed = useful_workload(model, tokens, in_documents), [tokens, [*in_documents, *padding]]
    computed = executed_workload(model, *executed, tiled=tiled)
    return _Cost(
        forward={part: count / total for part, count in forward_flops(model, useful).by_part().items()},
        training=training_flops(model, useful, frozen).total / total,
        executed=executed_training_flops(model, computed, recompute, frozen).total / total,
        paper=paper_flops_per_byte(model, patch_size) if isinstance(model, BltSettings) and patch_size else None,
    )


def _parts(settings: TrainSettings, data: RunData) -> list[tuple[float, float | None, int]]:
    """Of each phase its share of the bytes of the run, bytes a patch and P_max; none where there are no phases.

    Where the data is not there, patches have the size that a phase names, or the planned one.
    """
    named = settings.data.patch_schedule
    begins = [_begin(phase.at, settings) for phase in named]
    shares = [after - before for before, after in pairwise([*begins, 1.0])]
    if data.exists:
        return [(share, own.size, own.limits.patches or 0) for share, own in zip(shares, data.phases)]
    sizes = [phase.size or settings.plan.patch_size for phase in named]
    most = [
        phase.patches or patches_for(settings.data.tokens, 1 / size) for phase, size in zip(named, sizes, strict=True)
    ]
    return list(zip(shares, sizes, most))


def _begin(at: Length, settings: TrainSettings) -> float:
    """Where a phase begins, as a share of the bytes of the run; 1 where that is shorter."""
    if isinstance(at, InSteps | InBytes):
        done = at.steps * step_bytes(settings) if isinstance(at, InSteps) else at.bytes
        return min(done / run_bytes(settings), 1.0)
    return at


def check_ranks(settings: TrainSettings) -> None:
    """Raise ConfigError when the plan's ranks do not divide the packs of a step, or copies do not divide the ranks."""
    ranks, packs, copy = settings.plan.ranks, settings.data.packs, settings.parallel.shard
    if packs % ranks:
        near = max(number for number in range(1, ranks) if packs % number == 0)
        raise ConfigError(
            f"plan.ranks is {ranks}: it must divide data.packs, {packs}; {near} would do, or --data.packs "
            f"{-(-packs // ranks) * ranks}"
        )
    if copy is not None and ranks % copy:
        raise ConfigError(
            f"parallel.shard is {copy}: it must divide plan.ranks, {ranks}; set --parallel.shard {gcd(copy, ranks)}, "
            f"or --plan.ranks {lcm(copy, ranks)}"
        )


def _patching(settings: TrainSettings, data: RunData) -> tuple[float, int]:
    """Bytes a patch, and P_max: as the data says, else as planned."""
    model, tokens = settings.model, settings.data.tokens
    if not data.exists:
        planned = model.context or settings.plan.patch_size
        return planned, settings.data.patches or patches_for(tokens, 1 / planned)
    patches, size = data.largest_limits.patches, data.mean_patch_size
    if patches is None or size is None:
        raise ConfigError(f"model.kind {model.kind!r} {model.objection(data.train_manifest.identity.patching)}")
    return size, patches


def _credited_patches(settings: TrainSettings, data: RunData, credit: PatchCredit) -> int:
    """P_max of a model that finds its patches: as its data says, else of documents as long as planned."""
    if data.exists:
        assert data.limits.patches is not None
        return data.limits.patches
    tokens = settings.data.tokens
    length = min(settings.plan.document_bytes or tokens, tokens)
    room = max(patches_for(tokens, credit.bound(length) / length), credit.bound(tokens) + 1)
    return settings.data.patches or room


def _entropy_model(data: RunData) -> EntropyModelSettings | CountsSettings | None:
    """The entropy model of data in folders here; None for other data, and for patches found without."""
    folder = next(iter(data.folders(TRAIN_SPLIT).values()))
    if not data.exists or data.train_manifest.identity.entropy_model is None or isinstance(folder, str):
        return None
    found = stored_settings(folder / ENTROPY_MODEL_FOLDER)
    assert isinstance(found, EntropyModelSettings | CountsSettings)
    return found


def _documents(settings: TrainSettings, patch_size: float | None) -> tuple[list[int], list[int]]:
    """Tokens and patches of the documents of a full pack; no patches where there is no ``patch_size``."""
    whole = settings.data.tokens
    length = min(settings.plan.document_bytes or whole, whole)
    tokens = [length] * (whole // length) + ([whole % length] if whole % length else [])
    return tokens, [round(count / patch_size) for count in tokens] if patch_size else []


def _per_byte(model: EntropyModelSettings, tokens: list[int]) -> float:
    """Forward FLOPs a byte."""
    return forward_flops(model, useful_workload(model, tokens)).total / sum(tokens)
