"""The ranks of a run: starting the process groups, and the few sums that travel beside the gradients."""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from shared.errors import ConfigError
from shared.io.display.log import LOG
from trainer.provenance.run_folder import FLIGHT_RECORDER_NAME
from trainer.settings import RunSettings

# ---- How the ranks of one attempt find each other where torchrun keeps its store from one attempt to the next.
#
# torchrun starts all ranks again when one has died, and lets them meet in the store that the dead ones have met
# in: they would find addresses of processes that are gone, and wait for them. (Its count of restarts does not
# tell attempts apart: machines count their own.) So a new rank 0 names the attempt, and tells the name to each
# rank that it knows to be alive.


POLL_SECONDS = 0.05


def attempt_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store of this attempt, this rank, and the number of ranks, as the launcher's variables say."""
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, size  # rank 0 has just made it
    return dist.PrefixStore(meet(dist.PrefixStore("meeting", store), rank, size), store), rank, size


def meet(store: dist.Store, rank: int, size: int) -> str:
    """A name for this attempt, which all of its ranks get, whatever earlier attempts have left in the store.

    Each rank says hello by a name of its own; the first rank welcomes whoever says hello, until as many as there are
    have heard of this very attempt. Those of earlier attempts cannot answer.
    """
    name = secrets.token_hex(8)
    store.set(f"hello/{rank}", name)
    if rank > 0:
        attempt = store.get(f"welcome/{name}").decode()
        store.add(f"arrived/{attempt}", 1)
        return attempt
    others = [f"hello/{number}" for number in range(1, size)]
    welcomed: set[bytes] = set()
    while others and store.add(f"arrived/{name}", 0) < size - 1:  # adding nothing reads the counter
        new = set(store.multi_get(others)) - welcomed
        for other in new:
            store.set(f"welcome/{other.decode()}", name)
        welcomed |= new
        if not new:
            time.sleep(POLL_SECONDS)
    return name


SETUP_TIMEOUT = timedelta(hours=2)
"""For what takes as long as it takes: compiling, reading and writing checkpoints, writing the model."""
SIGNS_OF_A_LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says when a connection is gone."""


@dataclass(frozen=True)
class World:
    """This rank among the R ranks of the run.

    Three groups with all ranks, since operations of one group must meet in one order on every rank: gradients and
    parameters travel in the default group, sums and agreements of the main thread in ``bookkeeping``, those of the
    thread that writes checkpoints in ``saving``.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """[R], over which parameters are sharded."""
    bookkeeping: dist.ProcessGroup
    """gloo: host tensors only."""
    saving: dist.ProcessGroup
    """gloo, as patient as storage may be slow."""
    store: dist.Store
    """What ranks can leave for each other without waiting."""
    neighbours: tuple[int, ...] = ()
    """Processes of the other ranks that the same launcher has started."""

    @property
    def is_main_rank(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, fp64 on the host (never bf16: figures would carry its rounding)."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.bookkeeping)
        return sums.tolist()

    def table(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every rank, fp64 [R][values], in the order of ranks."""
        rows = torch.zeros(self.size, len(values), dtype=torch.float64)
        rows[self.rank] = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(rows, group=self.bookkeeping)
        return rows.tolist()

    def barrier(self) -> None:
        """Wait for all ranks (on the host: gloo's all-reduce, no device is touched)."""
        self.total([0.0])

    def wait_at_most(self, time: timedelta, model: nn.Module) -> None:
        """From now on, give up a step's collective that others have not joined after this time; a save may take its."""
        meshes = {parameter.device_mesh for parameter in model.parameters() if isinstance(parameter, DTensor)}
        groups = {dist.group.WORLD, self.bookkeeping, *(group for mesh in meshes for group in mesh.get_all_groups())}
        for group in groups:
            cast(dist.ProcessGroup, group).set_timeout(time)

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Every rank's value, in the order of ranks, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group or self.bookkeeping)
        return values


@contextmanager
def started(run: RunSettings) -> Iterator[World]:
    """The process groups of a torchrun job, or of this process alone when no launcher has set one up.

    Threads are set from the settings first (law 5). Collectives of host tensors go through gloo, of device tensors
    through NCCL.
    """
    torch.set_num_threads(run.threads)
    device = choose_device(run)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = attempt_store(SETUP_TIMEOUT) if "RANK" in os.environ else (dist.HashStore(), 0, 1)
    stay_on_this_machine()
    if device.type == "cuda":
        record_flights(run.out / FLIGHT_RECORDER_NAME)
    LOG.debug("rank %d of %d on %s, %d threads, collectives through %s", rank, size, device, run.threads, backend)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=SETUP_TIMEOUT)
    ended = False
    try:
        mesh = init_device_mesh(device.type, (size,))
        world = World(rank, size, device, mesh, bookkeeping=_gloo_group(), saving=_gloo_group(), store=store)
        yield replace(world, neighbours=_neighbours(world))
        ended = True
    finally:
        # Not after an error that others do not know of: they would meet a closed connection and complain first.
        if ended or size == 1:
            dist.destroy_process_group()


def stay_on_this_machine() -> None:
    """Let gloo and NCCL listen on the loopback interface alone where all ranks are here; what the user has set stays.

    Whoever could connect would be taken for a rank, and ranks unpickle what they send each other. Must come before the
    process group.
    """
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1"):
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


def record_flights(folder: Path) -> None:
    """Let NCCL keep its last operations, and leave them in FOLDER/rank-0, ... when one takes too long.

    `torchfrtrace` reads them. What the user has set stays. Must come before the process group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "rank-"))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def _neighbours(world: World) -> tuple[int, ...]:
    launcher, process = os.environ.get("GROUP_RANK"), os.getpid()  # there is a launcher for each machine
    everyone = world.gather((launcher, process))
    return tuple(pid for started_by, pid in everyone if started_by == launcher and pid != process)


def _gloo_group() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT))


def is_timeout(error: RuntimeError) -> bool:
    """Whether a collective failed because other ranks have not joined it in time."""
    return "Timed out waiting" in str(error)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed only because another rank has ended."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER)


def choose_device(run: RunSettings) -> torch.device:
    """The device of this rank; ConfigError when cuda is asked for and there is none."""
    available = torch.cuda.is_available()
    if run.device == "cuda" and not available:
        raise ConfigError("run.device is 'cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
    if run.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
