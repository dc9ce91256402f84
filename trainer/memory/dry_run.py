"""Forward and backward passes at full size before any data is read: what does not fit or compile shows at once.

Nothing is trained: parameters, moments, tables and the data's cursor are afterwards what they were, bit for bit.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from shared.io.display.quantities import quantity
from shared.io.files.atomic import write_atomic
from shared.layers.batch import Batch, Patches, TeacherTargets, patch_room, segments
from shared.layers.blocks import DTYPES
from shared.patching.credit import PatchCredit
from shared.vocabulary import BOS, OFFSET
from trainer.data.packing.limits import PackLimits
from trainer.distributed.build import units
from trainer.distributed.dtensor import to_local
from trainer.distributed.row_sharded_tables import row_tables
from trainer.distributed.world import World
from trainer.errors import TrainingError
from trainer.memory.meter import Meter
from trainer.memory.parts import HELP, STATE, Memory, logits_bytes, unsharded_elements
from trainer.optim.distillation import Distillation
from trainer.optim.optimizer import Optimizers
from trainer.optim.train_step import backward
from trainer.settings import TrainSettings

MEMORY_NAME = "memory.json"
ADAM_MOMENTS = 2
"""Tensors like a parameter that AdamW makes with its first step. The other optimizers make theirs at once."""


@dataclass(frozen=True)
class DryRun:
    """What a dry run has found."""

    seconds: float
    compiled: bool
    """Whether the seconds include compiling."""
    ranks: list[Memory]

    def line(self) -> str:
        """The rank that needs most, in words."""
        rank, most = max(enumerate(self.ranks), key=lambda found: found[1].peak)
        compiled = ", compiling included" if self.compiled else ""
        where = f" on rank {rank}, which needs most" if len(self.ranks) > 1 else ""
        return f"dry run in {self.seconds:.1f} s{compiled}: {quantity(most.peak)}B at most{where}: {most.line()}"

    def save(self, folder: Path) -> None:
        """Write FOLDER/memory.json."""
        write_atomic(folder / MEMORY_NAME, json.dumps(asdict(self), indent=1) + "\n")


def dry_run(
    model: nn.Module,
    optimizer: Optimizers,
    settings: TrainSettings,
    limits: PackLimits,
    world: World,
    distillation: Distillation | None = None,
    top: int = 0,
) -> DryRun:
    """Go through steps of the worst packs without an update; every rank takes part.

    ``top``: K, symbols of each target of a teacher, where a model is distilled.

    Raises TrainingError, in one line, when memory does not suffice or the blocks cannot be compiled.
    """
    began, parallel, limits = time.perf_counter(), settings.parallel, limits.read
    known = static_memory(model, optimizer, DTYPES[settings.run.dtype], parallel.keep_gathered)
    if distillation is not None and distillation.embedding is not None:
        known = replace(known, teacher=distillation.embedding.table.nbytes)
    on_host = STATE if parallel.offload and world.device.type == "cuda" else ()
    on_device = replace(known, **dict.fromkeys(on_host, 0))
    reserved = 0 if on_host else pending_moments(optimizer)
    # Gradients and what is unsharded come and go while the meter counts.
    static = sum(on_device.parts().values()) - on_device.gradients - on_device.unsharded - reserved
    meter = Meter(world.device, static, reserved)
    steps = worst_steps(limits, settings.data.packs // world.size)
    if distillation is not None:
        steps = [[taught(batch, top) for batch in batches] for batches in steps]
    targets = limits.tokens * settings.data.packs

    def go_through() -> None:
        for batches in steps:
            backward(model, batches, targets, world, parallel.keep_gathered, distillation=distillation)
            optimizer.zero_grad()

    try:
        if parallel.compile and world.device.type == "cpu":
            go_through()
            with torch.compiler.set_stance("force_eager"), meter.counting(model):  # compiled code cannot be counted
                go_through()
        else:
            with meter.counting(model):
                go_through()
    except RuntimeError as error:
        if line := explanation(error, on_device, meter.peak):
            raise TrainingError(f"dry run on rank {world.rank}: {line}") from None
        raise
    logits = logits_bytes(limits.tokens, settings.model.vocabulary)
    found = replace(known, activations=meter.kept - logits, logits=2 * logits, peak=meter.peak)
    names = [field.name for field in fields(Memory)]
    ranks = [Memory(**dict(zip(names, map(int, row)))) for row in world.table([*asdict(found).values()])]
    return DryRun(time.perf_counter() - began, parallel.compile, ranks)


def static_memory(model: nn.Module, optimizer: Optimizers, dtype: torch.dtype, keep_gathered: bool) -> Memory:
    """The parts that do not depend on data, each at its largest."""
    tables = [table.weight for table in row_tables(model)]
    dense = [parameter for parameter in model.parameters() if not any(parameter is weight for weight in tables)]
    sums = held_by(value for weight in tables for value in optimizer.state.get(weight, {}).values())
    made = held_by(value for state in optimizer.state.values() for value in state.values() if value.ndim)
    return Memory(
        parameters=held_by(dense),
        gradients=held_by(parameter for parameter in dense if parameter.requires_grad),
        moments=made - sums + pending_moments(optimizer),
        tables=held_by(tables),
        table_moments=sums,
        unsharded=unsharded_elements_of(model, keep_gathered) * dtype.itemsize,
    )


def pending_moments(optimizer: Optimizers) -> int:
    """Bytes of moments that are not made yet."""
    adam = (part for part in optimizer.parts if isinstance(part, torch.optim.AdamW))
    parameters = (
        parameter
        for part in adam
        for group in part.param_groups
        for parameter in group["params"]
        if parameter not in part.state
    )
    return ADAM_MOMENTS * held_by(parameters)


def held_by(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's pieces of tensors."""
    return sum(to_local(tensor).nbytes for tensor in tensors)


def unsharded_elements_of(model: nn.Module, keep: bool) -> int:
    """Parameters that are whole at once, beside a rank's own; see `Memory.unsharded`."""
    if not isinstance(model, FSDPModule):
        return 0
    tables = sum(table.weight.numel() for table in row_tables(model))
    everything = sum(parameter.numel() for parameter in model.parameters()) - tables
    sizes = [sum(parameter.numel() for parameter in unit.parameters()) for unit in units(model)]
    return unsharded_elements(sizes, everything, keep)


def explanation(error: RuntimeError, known: Memory, peak: int) -> str | None:
    """What to do about an error, in one line; None for one that is neither for want of memory nor a compiler's."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        found = replace(known, activations=max(0, peak - sum(known.parts().values())))
        largest = next(iter(found.largest_first()))
        return (
            f"out of memory after {quantity(peak)}B ({found.line()}); "
            f"{largest.replace('_', ' ')} are most: {HELP[largest]} would help"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        cause = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        return f"the blocks cannot be compiled ({cause}); fix this, or set parallel.compile = false"
    return None


def worst_steps(limits: PackLimits, packs: int) -> list[list[Batch]]:
    """Packs of as many tokens and patches as there can be: one document, and as many as there can be.

    Two packs that follow one another show what accumulating gradients costs; a step of one pack has none.
    """
    shapes = [one_document(limits), many_documents(limits)]
    return [shapes] if packs > 1 else [[shape] for shape in shapes]


def one_document(limits: PackLimits) -> Batch:
    """A document over the whole pack; half of its patches are single bytes, the others equally long."""
    tokens, count = limits.tokens, patch_count(limits)
    if limits.credit is not None:
        return credited_batch(limits.credit, [min(tokens, limits.credit.reach(count - 1))], limits)
    single = count // 2
    owner = np.arange(tokens)
    owner[single:] = single + (owner[single:] - single) * (count - single) // (tokens - single)
    return batch([tokens], owner, [count], limits)


def many_documents(limits: PackLimits) -> Batch:
    """A document for each patch, or for every two tokens where there are no patches; all about equally long."""
    if limits.credit is not None:
        # The longest of which each token may end a patch.
        size, room = limits.credit.most + 1, patch_count(limits) - 1
        return credited_batch(limits.credit, [size] * (room // size) or [room], limits)
    count = patch_count(limits) if limits.patches is not None else limits.tokens // 2
    owner = np.arange(limits.tokens) * count // limits.tokens
    return batch(np.bincount(owner).tolist(), owner, [1] * count, limits)


def patch_count(limits: PackLimits) -> int:
    """Patches of a full pack; each owns a token."""
    return min(limits.patches or 1, limits.tokens)


def batch(documents: list[int], owner: np.ndarray, patches: list[int], limits: PackLimits) -> Batch:
    """A pack of documents of so many tokens and patches, with bytes that seldom repeat; every token is a target."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(OFFSET, OFFSET + 256, limits.tokens))
    tokens = segments(documents)
    ids[tokens.offsets[:-1].long()] = BOS
    if limits.patches is None:
        return Batch(ids, ids.roll(-1), tokens, None)
    rest = limits.patches - sum(patches)
    of_token = torch.from_numpy(owner.astype(np.int64))
    return Batch(
        ids, ids.roll(-1), tokens, Patches(of_token, of_token, segments([*patches, rest] if rest else patches))
    )


def taught(batch: Batch, top: int) -> Batch:
    """The same pack with targets of a teacher."""
    assert isinstance(batch.patches, Patches)
    symbols = torch.arange(top).expand(len(batch.ids), -1)
    return replace(
        batch,
        teacher=TeacherTargets(
            symbols, torch.zeros(len(batch.ids), top + 1), torch.zeros(batch.patches.count, dtype=torch.int64)
        ),
    )


def credited_batch(credit: PatchCredit, documents: list[int], limits: PackLimits) -> Batch:
    """The same for a model that finds its patches; what documents leave of the pack is padding."""
    assert limits.patches is not None
    rest = limits.tokens - sum(documents)
    plain = batch([*documents, rest] if rest else documents, np.zeros(0), [], PackLimits(limits.tokens, None))
    return replace(plain, patches=patch_room(documents, credit, limits.tokens, limits.patches))
