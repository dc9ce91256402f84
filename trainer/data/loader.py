"""The training packs of one rank, read ahead by worker processes.

All state semantics are here, in terms of the cursor; torchdata's loader, or torch's, is the shell that runs workers.
Step s takes packs [sG, (s + 1)G); rank r of R the r-th of every R of them; worker w of W every W-th TOGETHER of the
rank's packs. Every worker plans all packs (the index only) and reads the slices of its own.
"""

import gc
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Condition, Thread
from typing import Any, Self

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shared.errors import ConfigError, DatasetError, StorageError
from shared.io.programs.child_processes import serve, worker_server
from shared.shards.dataset import Dataset
from shared.shards.formats.arrow import first_line
from trainer.data.mixture import Mixture
from trainer.data.packing.build import build_packs
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack, Packs, Step
from trainer.data.packing.planner import DATA_ENDS, PackPlan, Planner, check_division
from trainer.data.packing.slices import SliceReader
from trainer.data.packing.teacher import TeacherReader
from trainer.data.patch_schedule import PatchSchedule
from trainer.data.recut_lengths import RecutLengths
from trainer.data.sampling.cursor import Cursor, CursorState, check_cursor, first_cursor
from trainer.data.sampling.schedule import Mixing

# ---- Shards of remote datasets fetched in the background, before a step would wait for them.


PAUSE_SECONDS = 0.2
"""Before a shard is looked at again that another process is fetching."""


class FetchAhead:
    """A thread that fetches what is wanted, one shard after the other. What it cannot get is the reader's to report."""

    def __init__(self, dataset: Dataset | Mixture, sidecars: bool = False) -> None:
        """``sidecars``: fetch those, too."""
        self._dataset, self._sidecars = dataset, sidecars
        self._wanted: Sequence[int] = ()
        self._here: set[int] = set()
        self._ended = False
        self._change = Condition()
        self.useful = dataset.remote
        """Whether anything needs to be fetched at all."""
        if self.useful:
            Thread(target=self._work, name="fetch-ahead", daemon=True).start()

    def want(self, shards: Sequence[int]) -> None:
        """Shards that are needed next, in this order, in place of what was wanted before."""
        with self._change:
            self._wanted = shards
            self._here &= set(shards)  # what is not needed now may have left the cache when it is
            self._change.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        with self._change:
            self._ended = True
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                missing = [shard for shard in self._wanted if shard not in self._here]
                if not missing and not self._ended:
                    self._change.wait()
                if self._ended:
                    return
            for shard in missing:
                if self._ended or shard not in self._wanted:
                    break
                try:
                    here = self._dataset.fetch(shard, self._sidecars)
                except (DatasetError, StorageError, OSError):
                    here = True
                if here:
                    self._here.add(shard)
            else:
                with self._change:
                    self._change.wait(PAUSE_SECONDS)


TOGETHER = 8
"""Consecutive packs of a rank that are built and sent together: a message costs as much as building a pack."""
PREFETCH = 2
"""Such messages that each worker reads ahead."""
FROM_WORKER = -1


class PackDataset(IterableDataset["list[Packs | Exception]"]):
    """The endless packs of one rank, from a cursor on, some at a time; each worker of a DataLoader has its share.

    A state is {cursor, next}: the cursor before a step, and which of the rank's packs from there comes next
    (FROM_WORKER: the first of those that the worker's number gives it).
    """

    def __init__(
        self,
        dataset: Dataset | Mixture,
        limits: PackLimits,
        packs_per_step: int,
        mixing: Mixing,
        cursor: Cursor,
        rank: int = 0,
        ranks: int = 1,
        schedule: PatchSchedule | None = None,
        teacher: TeacherReader | None = None,
    ) -> None:
        """Raises ConfigError or IdentityError for arguments that do not fit together, DatasetError for damaged data."""
        check_division(packs_per_step, ranks)
        check_cursor(cursor, dataset)
        if cursor.pack % packs_per_step:
            raise ConfigError(
                f"data.packs is {packs_per_step}, but the checkpoint was made after {cursor.pack} packs, "
                "which is no whole number of such steps"
            )
        self._dataset, self._limits, self._mixing = dataset, limits, mixing
        self._packs_per_step, self._rank, self._ranks, self._phases = packs_per_step, rank, ranks, schedule
        self._teacher = teacher
        self._state, self._next = CursorState(cursor, dataset.subset_names), FROM_WORKER
        self._planner(self._reader())  # what cannot be planned is refused here, in the rank itself

    def __iter__(self) -> Iterator[list[Packs | Exception]]:
        """Consecutive packs; in a worker, an error that the user should see is the last thing handed out."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first = worker * TOGETHER if self._next == FROM_WORKER else self._next
        found = self._packs(first, TOGETHER, workers)
        if info:
            gc.freeze()  # what has been imported is not looked through again for each few hundred slices
            yield from _messages(found)
        else:
            for packs in found:
                yield [packs]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self._state.cursor.model_dump(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises IdentityError when the state belongs to other data."""
        cursor = Cursor.model_validate(state["cursor"])
        check_cursor(cursor, self._dataset)
        self._state, self._next = CursorState(cursor, self._dataset.subset_names), state["next"]

    def _packs(self, first: int, together: int, workers: int) -> Iterator[Packs]:
        """Of the rank's packs from the cursor on ``together`` from number ``first``, and so many for each worker on."""
        reader = self._reader()
        planner = self._planner(reader)
        per_rank = self._packs_per_step // self._ranks
        following, waiting = first, list[tuple[PackPlan, Step]]()
        with FetchAhead(self._dataset, sidecars=self._phases is not None) as ahead:
            while True:
                if ahead.useful:
                    ahead.want(planner.shards_ahead())
                before = planner.state.copy()
                try:
                    plans, step = self._next_step(planner)
                except (ValueError, OSError):
                    yield from self._built(waiting, reader)
                    raise
                mine = plans[self._rank :: self._ranks]
                while following < per_rank:
                    waiting.append((mine[following], step))
                    following += 1
                    if len(waiting) == together:
                        following += (workers - 1) * together
                        self._state, self._next = before, following
                        yield from self._built(waiting, reader)
                        waiting = []
                following -= per_rank

    def _built(self, planned: list[tuple[PackPlan, Step]], reader: SliceReader) -> Iterator[Packs]:
        """Packs that were planned; where one cannot be read, those before it, and then its error."""
        try:
            packs = [build_packs(planned, reader, self._teacher)] if planned else []
        except (ValueError, OSError):
            for one in planned:
                yield build_packs([one], reader, self._teacher)
        else:
            yield from packs

    def _next_step(self, planner: Planner) -> tuple[list[PackPlan], Step]:
        """Plans of all G packs of the next step."""
        number = planner.pack // self._packs_per_step
        plans = planner.next_step(self._packs_per_step)
        targets, text = sum(plan.targets for plan in plans), sum(plan.bytes for plan in plans)
        if not targets:
            raise ConfigError(DATA_ENDS)
        return plans, Step(number, targets, text, planner.change())

    def _planner(self, reader: SliceReader) -> Planner:
        return Planner(self._dataset, reader, self._limits, self._mixing, self._state.cursor, self._phases)

    def _reader(self) -> SliceReader:
        recut = None if self._phases is None else RecutLengths(self._dataset, self._phases.patchings)
        return SliceReader(self._dataset, recut)


def _messages(found: Iterator[Packs]) -> Iterator[list[Packs | Exception]]:
    """What a worker sends: as many packs with each message as all other workers, since they are taken by turns.

    The last one has those before an error, and the error, which PackLoader raises: a DataLoader would wrap it into its
    own traceback.
    """
    message, count = list[Packs | Exception](), 0
    try:
        for packs in found:
            message.append(packs)
            count += len(packs)
            if count == TOGETHER:
                yield message
                message, count = [], 0
    except (ValueError, OSError) as error:
        yield [*message, error]


class WorkerError(OSError):
    """A loader worker does not start, or has ended by itself: the system took its memory, or someone killed it."""


class PackLoader:
    """Iterates over the training packs of one rank for ever."""

    def __init__(
        self,
        dataset: Dataset | Mixture,
        limits: PackLimits,
        packs_per_step: int,
        mixing: Mixing | None = None,
        seed: int = 0,
        streams: int = 1,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        cursor: Cursor | None = None,
        schedule: PatchSchedule | None = None,
        teacher: TeacherReader | None = None,
    ) -> None:
        """A cursor continues a run, with any number of ranks and workers; its seed and streams are the run's.

        ``schedule``: of the patch size, where it changes; then ``limits`` are those of its phases. ``teacher``: of a
        model that is distilled.

        Raises ConfigError or IdentityError where the arguments do not fit together, DatasetError for damaged data.
        """
        begun = cursor or first_cursor(dataset, seed, streams)
        self.limits = limits
        self._packs = PackDataset(
            dataset, limits, packs_per_step, mixing or Mixing(), begun, rank, ranks, schedule, teacher
        )
        self._state, self._step = CursorState(begun, dataset.subset_names), -1
        self._workers = workers
        if workers:
            worker_server(__name__)  # it imports while the model is built

    @property
    def cursor(self) -> Cursor:
        """The data state after the step of the latest pack."""
        return self._state.cursor

    @property
    def phase(self) -> int:
        """Of the run, to which that step belongs; 0 where its patch size does not change."""
        return self._state.phase

    @property
    def sampled(self) -> dict[str, int]:
        """Documents of each subset that are used up after that step, or begun."""
        return self.cursor.sampled

    def __iter__(self) -> Iterator[Pack]:
        """Packs from the cursor on: a second iteration begins after the last step that the first one entered.

        Raises DatasetError, in this process, for what a worker found damaged, and WorkerError when one does not start
        or has died.
        """
        self._packs.load_state_dict({"cursor": self.cursor.model_dump(), "next": FROM_WORKER})
        # In this process a DataLoader would only cost time.
        try:
            messages = iter(stateful_loader(self._packs, self._workers) if self._workers else self._packs)
        except (EOFError, OSError) as error:  # EOFError: the server that workers come from has ended, as forks fail
            cause = first_line(error) or type(error).__name__
            raise WorkerError(f"no loader worker starts: {cause}; are processes or memory limited (ulimit)?") from None
        try:
            while True:
                died = None
                try:
                    message = next(messages)
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    died = first_line(error)
                if died is not None:  # raised out here: as its context that error would keep the workers
                    raise WorkerError(f"a loader worker has died: {died}; was there memory enough?")
                for packs in message:
                    if isinstance(packs, Exception):
                        raise packs
                    for pack in packs:
                        if pack.step.number != self._step:
                            assert pack.step.change is not None
                            self._step = pack.step.number
                            self._state.apply(pack.step.change)
                        yield pack
        finally:
            # Ends the workers. Left to the garbage collector, which ends their queues first, it waits 5 s for each.
            del messages


def stateful_loader(packs: PackDataset, workers: int) -> Iterable[list[Packs | Exception]]:
    """The shell that runs the workers; packs arrive in the rank's order, whatever their number.

    Without torchdata it is torch's own loader: the state that a run keeps is the cursor's either way.
    """
    shell: Any = DataLoader
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*set_vital", UserWarning)  # torchdata 0.11 calls it, torch 2.13 objects
        with suppress(ImportError):
            from torchdata.stateful_dataloader import StatefulDataLoader

            # Its own state is of no use here, and would be sent with every pack.
            shell = partial(StatefulDataLoader, snapshot_every_n_steps=sys.maxsize)
        loader: Iterable[list[Packs | Exception]] = shell(
            packs,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context=worker_server(__name__) if workers else None,
            worker_init_fn=serve,
        )
        return loader
