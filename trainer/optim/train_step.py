"""One optimizer step: forward and backward over this rank's packs, sums over the ranks, a check, an update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from shared.layers.batch import Batch, PatchRoom
from shared.layers.routing import ratio_loss
from shared.models.hnet import HNet, RoutedLogits
from shared.vocabulary import IGNORED_LABEL
from trainer.distributed.dtensor import shard_groups, to_local
from trainer.distributed.row_sharded_tables import row_tables
from trainer.distributed.world import World
from trainer.optim.distillation import TERMS, Distillation
from trainer.optim.optimizer import Optimizers, set_rate
from trainer.optim.spike_guard import Guard
from trainer.optim.step_timer import StepTimer

# ---- Gradient norms, of the whole and by part, and scaling gradients to a largest norm.


PART_NAMES = {"global_": "global", "norm": "head"}
"""Parts that are not called as their parameters begin; the entropy model's last norm counts with its head."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms before clipping, fp64 on the device."""

    whole: Tensor
    """A scalar."""
    parts: dict[str, Tensor]
    """Scalars, in the order of the model."""


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: ngrams, encoder, global, decoder; embedding, blocks, head."""
    first = name.partition(".")[0]
    return PART_NAMES.get(first, first)


@torch.no_grad()
def clip(model: nn.Module, largest: float) -> GradientNorms:
    """Scale all gradients so that their joint norm is at most ``largest``; the norms before. All ranks take part.

    Nothing waits for the device.
    """
    tables = {table.weight: table for table in row_tables(model)}
    device = next(iter(tables), next(model.parameters())).device
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        found = gradients.setdefault(part_of(name), [])
        if parameter.grad is not None:
            found.append(parameter.grad)
    squares = torch.stack([sum_of_squares(found, device) for found in gradients.values()])
    if held := [gradient for found in gradients.values() for gradient in found]:
        for group in shard_groups(held[0]):
            dist.all_reduce(squares, group=group)
    parts = dict(zip(gradients, squares))
    for name, parameter in model.named_parameters():
        if parameter in tables:
            parts[part_of(name)] += tables[parameter].gradient_norm().double().square()
    whole = squares.sum().sqrt()
    collected = [table.gradient.values for table in tables.values() if table.gradient]
    scale([*map(to_local, held), *collected], (largest / (whole + 1e-6)).clamp(max=1.0).float())
    return GradientNorms(whole, {name: square.sqrt() for name, square in parts.items()})


def sum_of_squares(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Over this rank's pieces, fp64 scalar on ``device``."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm([to_local(gradient) for gradient in gradients])
    return torch.stack([norm.to(device) for norm in norms]).double().square().sum()


def scale(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors, on whatever devices they are, by a scalar."""
    for device in {tensor.device for tensor in tensors}:
        torch._foreach_mul_([tensor for tensor in tensors if tensor.device == device], factor.to(device))


@dataclass(frozen=True)
class TrainStep:
    """What one optimizer step trains on, and how."""

    batches: Sequence[Batch]
    """This rank's."""
    targets: int
    """Of all ranks together."""
    lr: float
    clip: float = 1.0
    """Largest norm of the gradient of the mean loss."""
    keep_gathered: bool = False
    """Whether parameters stay unsharded from one micro-batch to the next."""
    guard: Guard = field(default_factory=Guard)
    """By default figures must only be finite."""
    stop: bool = False
    """Whether this rank has been asked to stop."""
    distillation: Distillation | None = None
    """Where a teacher is learned from."""


class RoutingCounts(NamedTuple):
    """What a model that finds its patches has found in a step's packs of one rank, padding left out."""

    patches: float
    """Patches that ended: all that the global transformer has read."""
    pairs: float
    """Queries and keys that meet in one of its layers."""
    wanted: float
    """Boundaries that the router wanted; not those where a document begins."""
    refused: float
    """Those of them that no credit was left for."""


NO_ROUTING = RoutingCounts(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StepResult:
    """What a step found, over all ranks."""

    nats: float
    """Sum over the step's targets; where a model is distilled, of the whole loss."""
    grad_norm: float
    """Of the mean loss, before clipping."""
    norms: dict[str, float]
    """The same by part of the model."""
    skipped: str | None
    """Why nothing was updated; None where it was."""
    stop: bool
    """Whether any rank has been asked to stop."""
    routing: RoutingCounts = NO_ROUTING
    """Of this rank alone; zeros for models that find no patches."""
    terms: dict[str, float] = field(default_factory=dict)
    """Of the loss where a model is distilled, sums over the step's targets before they are weighted."""


def run_forward(model: nn.Module, batch: Batch) -> Tensor | RoutedLogits:
    """What a model gives: logits fp32 [T, V], and of one that finds its patches itself where they end."""
    patches = () if batch.patches is None else (batch.patches,)
    found: Tensor | RoutedLogits = model(batch.ids, batch.documents, *patches)
    return found


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits fp32 [T, V] of any kind of model."""
    found = run_forward(model, batch)
    return found.logits if isinstance(found, RoutedLogits) else found


def count_routing(found: RoutedLogits, batch: Batch) -> Tensor:
    """The fields of `RoutingCounts`, fp64 [4] on the device."""
    room, routing = batch.patches, found.routing
    assert isinstance(room, PatchRoom)
    ends = routing.ends & room.real
    in_documents = torch.zeros(len(batch.documents.lengths), dtype=torch.int64, device=ends.device)
    in_documents = in_documents.index_add(0, batch.documents.ids, ends.long())
    wanted = routing.wanted & room.real & (batch.documents.positions > 0)
    pairs = in_documents * (in_documents + 1) // 2
    return torch.stack([ends.sum(), pairs.sum(), wanted.sum(), (wanted & ~ends).sum()]).double()


def backward(
    model: nn.Module,
    batches: Sequence[Batch],
    targets: int,
    world: World,
    keep_gathered: bool = False,
    counts: list[Tensor] | None = None,
    distillation: Distillation | None = None,
) -> Tensor:
    """Gradients of the step's mean loss; returns this rank's nats, fp64 scalar where gradients lie.

    The loss is the sum over valid targets over the step's global number of them (``targets``), so that every byte
    weighs the same wherever it was packed. Times the number of ranks, since FSDP takes the mean over ranks. Gradients
    travel once: with the last micro-batch, and those of tables that learn by rows after it.

    A model that finds its patches has one more term, the mean over the packs of the step of each pack's ratio loss,
    which is no sum over targets. ``counts`` gets what it found in each pack, as `count_routing` gives it; of a model
    that is distilled the terms of its loss.
    """
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    for number, batch in enumerate(batches):
        if isinstance(model, FSDPModule):
            last = number == len(batches) - 1
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last or not keep_gathered)
        batch = batch.to(world.device)
        loss, ratio = losses(model, batch, counts, distillation)
        nats += loss.detach()
        loss = loss * (world.size / targets)
        (loss if ratio is None else loss + ratio / len(batches)).backward()
    for table in row_tables(model):
        table.collect()
    return nats.to(next(model.parameters()).device)


def losses(
    model: nn.Module, batch: Batch, counts: list[Tensor] | None, distillation: Distillation | None = None
) -> tuple[Tensor, Tensor | None]:
    """Of one pack: nats over its targets, and the weighted ratio loss of a model that finds its patches.

    A function of its own, so that the logits are gone when the backward pass begins.
    """
    if distillation is not None:
        loss, terms = distillation.losses(model(batch.ids, batch.documents, batch.patches, keep_inputs=True), batch)
        if counts is not None:
            counts.append(terms)
        return loss, None
    found, ratio = run_forward(model, batch), None
    if isinstance(found, RoutedLogits):
        assert isinstance(model, HNet) and isinstance(batch.patches, PatchRoom)  # noqa: PT018
        settings = model.settings
        ratio = settings.ratio_weight * ratio_loss(found.routing, batch.patches.real, settings.target)
        if counts is not None:
            counts.append(count_routing(found, batch))
        found = found.logits
    return F.cross_entropy(found, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum"), ratio


def take_step(
    model: nn.Module, optimizer: Optimizers, step: TrainStep, world: World, timer: StepTimer | None = None
) -> StepResult:
    """Train on one step's packs, unless the guard objects: then parameters, moments and tables stay as they were.

    The only transfer from the device is that of a few scalars, between backward and update. What the guard judges is
    the same on all ranks: sums over them, and the norm that the first one has.
    """
    counts: list[Tensor] = []
    nats = backward(model, step.batches, step.targets, world, step.keep_gathered, counts, step.distillation)
    norms = clip(model, step.clip)
    found = sum(counts[1:], counts[0]).to(nats.device) if counts else nats.new_zeros(0)
    scalars = torch.cat([torch.stack([nats, norms.whole, *norms.parts.values()]), found]).cpu().tolist()
    own_nats, norm, *parts = scalars[: 2 + len(norms.parts)]
    own_found = scalars[2 + len(parts) :]
    own_norm = norm if world.is_main_rank or not math.isfinite(norm) else 0.0
    names = TERMS if step.distillation is not None else ()
    own_terms = own_found if names else []
    total, grad_norm, stop, *terms = world.total([own_nats, own_norm, float(step.stop), *own_terms])
    if timer is not None:
        timer.mark("forward_backward")
    objection = step.guard.objection(total / step.targets, grad_norm)
    if objection is None:
        set_rate(optimizer, step.lr)
        optimizer.step()
    optimizer.zero_grad()
    if timer is not None:
        timer.mark("update")
    own_routing = RoutingCounts(*own_found) if own_found and not names else NO_ROUTING
    by_part, by_term = dict(zip(norms.parts, parts)), dict(zip(names, terms))
    return StepResult(total, grad_norm, by_part, objection, stop > 0, own_routing, by_term)
