"""One optimizer step: forward and backward over this rank's packs, sums over the ranks, a check, an update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from shared.batch import Batch
from shared.vocabulary import IGNORED_LABEL
from trainer.errors import TrainingError
from trainer.learning.optimizer import Optimizers, clip, set_rate
from trainer.observing.clock import StepClock
from trainer.parallel.tables import row_tables
from trainer.parallel.world import World


@dataclass(frozen=True)
class StepResult:
    """What a step found, over all ranks."""

    nats: float
    """Sum over the step's targets."""
    grad_norm: float
    """Of the mean loss, before clipping."""
    sums: list[float]
    """The values that the caller wanted summed over ranks, in order."""


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits fp32 [T, V] of either kind of model."""
    if batch.patches is None:
        return model(batch.ids, batch.documents)
    return model(batch.ids, batch.documents, batch.patches)


def backward(
    model: nn.Module, batches: Sequence[Batch], targets: int, world: World, keep_gathered: bool = False
) -> Tensor:
    """Gradients of the step's mean loss; returns this rank's nats, fp64 scalar on the device.

    The loss is the sum over valid targets over the step's global number of them (``targets``), so that every byte
    weighs the same wherever it was packed. Times the number of ranks, since FSDP takes the mean over ranks. Gradients
    travel once: with the last micro-batch, and those of tables that learn by rows after it.
    """
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    for number, batch in enumerate(batches):
        if isinstance(model, FSDPModule):
            last = number == len(batches) - 1
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last or not keep_gathered)
        batch = batch.to(world.device)
        loss = F.cross_entropy(predict(model, batch), batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
        (loss * (world.size / targets)).backward()
        nats += loss.detach()
    for table in row_tables(model):
        table.collect()
    return nats


def take_step(
    model: nn.Module,
    optimizer: Optimizers,
    batches: Sequence[Batch],
    targets: int,
    world: World,
    lr: float,
    largest_norm: float,
    extra: Sequence[float],
    keep_gathered: bool = False,
    clock: StepClock | None = None,
) -> StepResult:
    """Learn from one step's packs.

    The only transfer from the device is that of two scalars, between backward and update: the update must not happen
    when they are not finite.

    Raises TrainingError when loss or gradient are not finite, on all ranks alike, with parameters as they were.
    """
    nats = backward(model, batches, targets, world, keep_gathered)
    norm = clip(model, largest_norm)
    own_nats, grad_norm = torch.stack([nats, norm.double()]).cpu().tolist()
    total, *sums = world.total([own_nats, *extra])
    if not (math.isfinite(total) and math.isfinite(grad_norm)):
        raise TrainingError(f"loss {total / targets} nats, gradient norm {grad_norm}: not finite, nothing was updated")
    if clock is not None:
        clock.mark("forward_backward")
    set_rate(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    if clock is not None:
        clock.mark("update")
    return StepResult(total, grad_norm, sums)
