"""The figures of a run: what steps add up to in an interval, over all ranks."""

import os
import resource
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.layers.batch import PatchRoom
from shared.layers.devices import find_device
from shared.model_settings import AnyModelSettings, EntropyModelSettings
from shared.models.flops import Recompute, executed_training_flops, forward_flops, training_flops
from shared.models.workload import Workload, executed_workload, useful_workload
from trainer.data.packing.packs import Pack
from trainer.data.run_data import RunData
from trainer.distributed.world import World
from trainer.metrics.accumulator import Accumulator, RankSums, StepRecord
from trainer.metrics.formulas import ShareError, interval_metrics, sampled_metrics
from trainer.optim.optimizer import Optimizers
from trainer.optim.step_timer import StepTimer
from trainer.optim.train_step import NO_ROUTING, RoutingCounts
from trainer.settings import TrainSettings

# ---- How much there was to compute: FLOPs of this rank's packs, useful and executed, and of the scoring before them.


class FlopsCounter:
    """Sums over packs; what a pack adds is a few sums over the lengths of its documents."""

    def __init__(
        self,
        model: AnyModelSettings,
        entropy_model: EntropyModelSettings | None,
        recompute: Recompute,
        tiled: bool,
        frozen: Container[str] = (),
    ) -> None:
        """``tiled`` as in ``shared.models.workload.executed_workload``: whether attention computes whole tiles (CPUs).
        ``frozen``: names of the parameters that do not learn.
        """
        self._model, self._entropy_model, self._recompute, self._tiled = model, entropy_model, recompute, tiled
        self._frozen = frozen
        self._useful, self._executed, self._scored = Workload(), Workload(), Workload()

    def add(self, packs: Sequence[Pack], found: RoutingCounts = NO_ROUTING) -> None:
        """Add packs of one rank, in which the model itself has ``found`` patches, if it does."""
        # Pairs are counted where patches are found, for layers that see whole documents; others see no more.
        windows = sum(kind.window is not None for stack in self._model.stacks for kind in stack.settings.layer_kinds)
        self._useful += Workload(
            patches=int(found.patches), patch_pairs=int(found.pairs), windowed_pairs=windows * int(found.pairs)
        )
        for pack in packs:
            of_bytes = pack.patch_lengths is not None and pack.subword_ids is None
            patches = pack.in_patches if of_bytes else np.zeros(0, np.int64)
            self._useful += useful_workload(self._model, pack.lengths, patches)
            self._executed += self._padded(pack)
            if self._entropy_model is not None:
                self._scored += useful_workload(self._entropy_model, pack.in_slice)

    def _padded(self, pack: Pack) -> Workload:
        batch = pack.batch
        if isinstance(batch.patches, PatchRoom):
            lengths = batch.documents.lengths, batch.patches.documents.lengths
            return executed_workload(self._model, *lengths, tiled=self._tiled)
        if batch.patches is None:
            return executed_workload(self._model, batch.documents.lengths, tiled=self._tiled)
        return executed_workload(
            self._model,
            batch.documents.lengths,
            batch.patches.documents.lengths,
            tiled=self._tiled,
            of_decoder=batch.patches.of_decoder.numpy(),
        )

    def pop(self) -> dict[str, float]:
        """FLOPs since the last reading.

        ``useful`` of training on what is real, ``executed`` of training as it is computed (padding, whole tiles and
        recomputed blocks included), ``scoring`` of the entropy model's forward pass over the same tokens, done once
        when the data was made; 0 without one.
        """
        useful = training_flops(self._model, self._useful, self._frozen).total
        executed = executed_training_flops(self._model, self._executed, self._recompute, self._frozen).total
        scoring = 0 if self._entropy_model is None else forward_flops(self._entropy_model, self._scored).total
        self._useful, self._executed, self._scored = Workload(), Workload(), Workload()
        return {"useful": float(useful), "executed": float(executed), "scoring": float(scoring)}


# ---- How much memory this rank holds.


PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Bytes of this rank on its GPU, or resident in the host where it computes on the CPU.

    ``held`` by tensors now (on a CPU all that is resident), ``reserved`` by torch's allocator with its free blocks (0
    on a CPU), and the ``peak`` of what was held so far.
    """
    if device.type == "cuda":
        return {
            "held": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:  # not on Linux
        held = peak
    return {"held": held, "reserved": 0, "peak": peak}


# ---- All of it together.


def listed_peak(device: torch.device, dtype: str) -> float | None:
    """FLOPs per second of dense products in ``dtype`` as the maker lists them; None for CPUs and unlisted GPUs.

    Never measured: products timed on a CPU differ several-fold from start to start (other processes, clock speed, a
    first product that is five times slower than later ones), so a share of them says nothing.
    """
    if device.type != "cuda":
        return None
    listed = find_device(torch.cuda.get_device_name(device))
    return listed and listed.peak(dtype)


class RunMetrics:
    """Adds up steps on every rank; the main rank gets the figures of an interval."""

    def __init__(
        self,
        settings: TrainSettings,
        data: RunData,
        world: World,
        timer: StepTimer,
        log: Callable[[str], None],
        frozen: Container[str],
    ) -> None:
        """``frozen``: names of the parameters that do not learn."""
        self.peak = settings.metrics.peak_flops or listed_peak(world.device, settings.run.dtype)
        """FLOPs per second that one rank's device does at best; None where that is not known."""
        self._world, self._limits, self._timer, self._log = world, data.limits, timer, log
        self._documents = {name: totals.documents for name, totals in data.train_manifest.subsets.items()}
        recompute = settings.parallel.activation_checkpointing
        tiled = world.device.type == "cpu"
        self._flops = FlopsCounter(settings.model, data.entropy_model, recompute, tiled, frozen)
        self._sums = Accumulator()

    def add(self, step: StepRecord) -> None:
        """Add a step of this rank."""
        self._sums.add(step)
        self._flops.add(step.packs, step.result.routing)

    def interval(self, targets: int, sampled: Mapping[str, int], optimizer: Optimizers) -> dict[str, Any]:
        """What has been added up since the last call; empty on all ranks but the main one. Every rank takes part.

        ``targets``, and documents ``sampled`` from each subset: since the beginning of the run.
        """
        sums, self._sums = self._sums, Accumulator()
        for source in (self._timer.pop(), self._flops.pop(), memory_in_use(self._world.device)):
            for name, value in source.items():
                setattr(sums.local, name, float(value))
        ranks = [RankSums(*row) for row in self._world.table(sums.local.values())]
        if not self._world.is_main_rank:
            return {}
        figures = self._figures(sums, ranks) | learning_rates(sums.lr, optimizer) | {"targets": targets}
        return figures | sampled_metrics(sampled, self._documents)

    def _figures(self, sums: Accumulator, ranks: Sequence[RankSums]) -> dict[str, Any]:
        """The figures of the interval; a peak that the devices exceed is wrong and is not used again."""
        try:
            return interval_metrics(sums, ranks, self._limits, sums.local.seconds, self.peak)
        except ShareError:
            # Without a peak the same sums raise again when it is another share that is impossible.
            figures = interval_metrics(sums, ranks, self._limits, sums.local.seconds, None)
            self._log(
                f"utilisation is left out from here on: this run computes more than {self.peak:.4g} FLOP/s per "
                "device, so that peak is too low; set metrics.peak_flops"
            )
            self.peak = None
            return figures


def learning_rates(lr: float, optimizer: Optimizers) -> dict[str, Any]:
    """``lr``, and the rates by optimizer and share of it where parameters learn at several."""
    rates = {}
    for part in optimizer.parts:
        for group in part.param_groups:
            rates[f"{type(part).__name__} x{group['lr'] / lr if lr else 0:.3g}"] = group["lr"]
    return {"lr": lr} | ({"lr_by_group": rates} if len(rates) > 1 else {})
