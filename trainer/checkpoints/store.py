"""Saving what a run needs to go on as if it had never stopped, and finding the newest that is as it was written.

Nothing in training draws random numbers (parameters come from names, data from counters), so there is no generator
state to keep.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from shared.io.display.log import LOG
from shared.io.files.atomic import write_atomic
from shared.io.stores.store import open_store
from trainer.checkpoints.index import read_index
from trainer.checkpoints.mirror import Mirror
from trainer.checkpoints.retention import tidy
from trainer.checkpoints.state import TrainState, read_state, validation_scores
from trainer.checkpoints.storage import TensorWriter, cause_of, check_names, load_tensors, named_tensors
from trainer.distributed.world import World
from trainer.errors import USER_ERRORS, CheckpointError
from trainer.optim.optimizer import Optimizers
from trainer.provenance.checkpoint_folders import (
    OTHER_LENGTH_PREFIX,
    STATE_NAME,
    FileRecord,
    damage,
    damaged_folders,
    is_complete,
    mark_complete,
    other_format,
    record_of,
    set_aside,
    step_folder,
    step_folders,
    step_of,
)
from trainer.provenance.identity import RunIdentity
from trainer.provenance.run_checks import check_goes_on, is_prolonged, length_objection
from trainer.settings import CheckpointSettings

# ---- Copies of what is saved, so that training may go on while it is written.


class Stager:
    """Copies to host memory, kept for the next time where torch can; pinned where a device copies faster so."""

    def __init__(self, pinned: bool) -> None:
        self._options = StagingOptions(
            use_pinned_memory=pinned, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=pinned
        )
        self._stager = DefaultStager(self._options)

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same with all tensors on the host; later changes of ``state`` do not reach it."""
        if not _serves_again():
            self._stager = DefaultStager(self._options)
        return self._stager.stage(state)  # type: ignore[return-value]  # a future only with use_async_staging


@lru_cache
def _serves_again() -> bool:
    """Whether a stager of this torch can be used more than once: that of 2.11 closes itself (KeyError)."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        for _ in range(2):
            stager.stage({"tensor": torch.zeros(1)})
    except KeyError:
        return False
    return True


T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. Every rank takes part in everything, in the same order."""

    def __init__(
        self,
        out: Path,
        settings: CheckpointSettings,
        world: World,
        prolongs: Callable[[TrainState], bool] | None = None,
    ) -> None:
        """``prolongs``: whether a longer run could continue from a state; the last such checkpoint always stays."""
        self.folder = out / "checkpoints"
        self.settings = settings
        self.last: Path | None = None
        """The newest that is known to be good."""
        self._world = world
        self._news: list[str] = []
        self._prolongs = prolongs
        self._mirror: Mirror | None = None
        if settings.mirror is not None:
            store = open_store(settings.mirror)
            self._mirror = Mirror(store, self.folder, settings, prolongs, self._news.append)
        self._stager = Stager(pinned=world.device.type == "cuda") if settings.asynchronous else None
        self._saving: tuple[Path, Future[None]] | None = None
        self._saved: Path | None = None
        self._failures = 0

    def pop_saved(self) -> Path | None:
        """The checkpoint that was completed since the last call, on all ranks alike."""
        saved, self._saved = self._saved, None
        return saved

    def pop_news(self) -> list[str]:
        """Lines for the user since the last call."""
        news = self._news[:]  # a thread may add to it
        del self._news[: len(news)]
        return news

    def save(self, model: nn.Module, optimizer: Optimizers, state: TrainState) -> None:
        """Begin to save a step, when the save before has ended; later steps do not change what is saved.

        Raises CheckpointError when too many saves in a row have failed.
        """
        self.wait()
        path = step_folder(self.folder, state.step)
        LOG.debug("saving %s", path)
        tensors = named_tensors(*get_state_dict(model, optimizer.parts))
        outcome: Future[None] = Future()
        if self._stager is None:
            _settle(outcome, self._write, path, tensors, state)
        else:
            # A thread that does not keep the process from ending, as those of an executor would.
            arguments = (outcome, self._write, path, self._stager.stage(tensors), state)
            Thread(target=_settle, args=arguments, name="checkpoint", daemon=True).start()
        self._saving = path, outcome

    def wait(self) -> bool:
        """Wait for the save in flight; whether the state that was last given to ``save`` is on storage.

        Raises CheckpointError when too many saves in a row have failed.
        """
        if self._saving is None:
            return self._failures == 0
        (path, outcome), self._saving = self._saving, None
        try:
            outcome.result()
        except CheckpointError as error:
            self._failures += 1
            problem = f"{path} could not be saved: {error}"
            if self._failures >= self.settings.failures:
                times = f"{self._failures} saves in a row have failed"
                raise CheckpointError(
                    f"{times}, the last good checkpoint is {self.last or 'none'}; {problem}"
                ) from None
            self._news.append(f"{problem}; training goes on, the last good checkpoint is {self.last or 'none'}")
        else:
            self._failures, self.last, self._saved = 0, path, path
        return self._failures == 0

    def newest(self, identity: RunIdentity | None = None) -> Path | None:
        """The newest checkpoint whose files are what was written; damaged ones are set aside.

        So are those of a shorter run from which the longer one of ``identity`` cannot continue, where there is an
        earlier one from which it can: from before the decay.

        Each rank reads its share of the files. Raises CheckpointError when all there are were damaged, and for one that
        another version wrote: it is no damage. Where there is none at all, it is fetched from the mirror.
        """
        if self._mirror is not None and identity is not None:
            self._on_main_rank(partial(self._mirror.claim, identity))
        folders = step_folders(self.folder)
        passed: list[Path] = []
        found: list[Path] = self._world.gather([path for path in reversed(folders) if is_complete(path)])[0]
        for path in found:
            if problem := self._world.gather(other_format(path))[0]:
                raise CheckpointError(problem)
            problems = self._world.gather(damage(path, self._world.rank, self._world.size))
            problem = next(filter(None, problems), None)
            if problem is None:
                self.last = self.last or path  # where none can be continued from, the newest says why
                if not self._world.gather(self._world.is_main_rank and _of_another_length(path, identity))[0]:
                    self.last = path
                    break
                passed.append(path)
                continue
            if self._world.is_main_rank:
                self._news.append(f"{path} is damaged ({problem}); it is now {set_aside(path)}")
            self._world.barrier()
        for path in passed if self.last not in passed and self._world.is_main_rank else ():
            moved = set_aside(path, OTHER_LENGTH_PREFIX)
            self._news.append(
                f"{path} is from the decay of the shorter run, the longer one continues before it; it is now {moved}"
            )
        self._world.barrier()
        if self.last is None and self._mirror is not None and identity and self._fetch_from(self._mirror, identity):
            return self.newest(identity)
        damaged = self._world.gather(damaged_folders(self.folder))[0]
        if self.last is None and damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole any more ({damaged[-1].name} is the newest); "
                f"restore {'one' if damaged[1:] else 'it'}, or choose another run.out to begin again"
            )
        for path in folders if self._world.is_main_rank else ():
            if path not in found:
                self._news.append(f"{path} was being saved when the run ended; it is not used")
        if self._mirror is not None and self._world.is_main_rank and self.last is not None:
            self._mirror.offer()  # the run may have ended before it was there
        return self.last

    def close(self) -> None:
        """Wait until the newest checkpoint is in the mirror, too, with progress; the main rank alone."""
        if self._mirror is not None and self._world.is_main_rank:
            self._mirror.finish()

    def _fetch_from(self, mirror: Mirror, identity: RunIdentity) -> bool:
        """Fetch the newest whole checkpoint of the mirror that is of use, each rank its share; whether there is any.

        Raises CheckpointError when there are some and none is whole.
        """
        steps, problem = self._on_main_rank(partial(mirror.usable, identity)), None
        for step in reversed(steps):
            path = step_folder(self.folder, step)
            if self._world.is_main_rank:
                shutil.rmtree(path, ignore_errors=True)  # what an interrupted save or fetch has left
            self._world.barrier()
            try:
                contents = mirror.contents(step)
                mirror.fetch(step, contents, self._world.rank, self._world.size)
                problem = None
            except (CheckpointError, OSError) as error:
                problem = str(error)
            problem = next(filter(None, self._world.gather(problem)), None)
            if problem is None:
                self._on_main_rank(partial(mirror.complete, step, contents))
                self._news.append(f"{path} was fetched from {self.settings.mirror}")
                return True
            self._news.append(f"{path} could not be fetched from {self.settings.mirror}: {problem}")
        if problem is not None:
            raise CheckpointError(f"no checkpoint in {self.settings.mirror} is whole: {problem}")
        return False

    def _on_main_rank(self, action: Callable[[], T]) -> T:
        """What the main rank gets from an action; its error of a user's kind is raised on all ranks."""
        outcome: tuple[T | None, Exception | None] = None, None
        if self._world.is_main_rank:
            try:
                outcome = action(), None
            except USER_ERRORS as error:
                outcome = None, error
        result, problem = self._world.gather(outcome)[0]
        if problem is not None:
            raise problem
        return cast(T, result)

    def load(self, path: Path, model: nn.Module, optimizer: Optimizers, identity: RunIdentity) -> TrainState:
        """Fill model and optimizer from a checkpoint of this run, or of one that only was to be shorter or longer.

        Raises IdentityError for a checkpoint of another run, CheckpointError for one that cannot be read.
        """
        state = read_state(path)
        check_goes_on(state.identity, identity, path, state.step, state.targets)
        index = read_index(path)
        parameters, moments = get_state_dict(model, optimizer.parts)
        tensors = named_tensors(parameters, moments)
        check_names(path, index, tensors)
        LOG.debug("reading %d tensors of %s", len(tensors), path)
        load_tensors(path, index, tensors)  # those of the two dictionaries, in place
        set_state_dict(model, optimizer.parts, model_state_dict=parameters, optim_state_dict=moments)
        return state.model_copy(update={"identity": identity})

    def _write(self, path: Path, tensors: dict[str, Any], state: TrainState) -> None:
        """Write a fresh folder and mark it complete when all files of all ranks are on storage, then tidy up.

        Raises CheckpointError on all ranks when one of them could not write, and leaves no folder then.
        """
        first, content = self._world.is_main_rank, state.model_dump_json(indent=1) + "\n"
        try:
            begun = self._agree(lambda: _begin(path, content) if first else {})
            writer = TensorWriter(path)
            alone = self._world.size == 1  # plans are exchanged as pickles
            dcp.save(tensors, storage_writer=writer, process_group=self._world.saving, no_dist=alone)
            written = begun + self._gather(writer.records)
            files = {name: record for records in written for name, record in records.items()}
            self._agree(lambda: mark_complete(path, files) if first else None)
        except (CheckpointException, CheckpointError) as error:
            if first:
                shutil.rmtree(path, ignore_errors=True)
            cause = cause_of(error) if isinstance(error, CheckpointException) else str(error)
            raise CheckpointError(cause) from None
        if first:
            try:
                scores = validation_scores(self.folder) if self.settings.keep_best else {}
                self._tidy(scores)
            except (OSError, CheckpointError) as error:
                self._news.append(f"old checkpoints could not be removed: {error}")
            if self._mirror is not None:
                self._mirror.offer()

    def _tidy(self, scores: Mapping[int, float]) -> None:
        also = self._last_to_prolong()
        if self._mirror is None:
            tidy(self.folder, scores, self.settings, also)
            return
        with self._mirror.lock:
            uploading = self._mirror.uploading
            tidy(self.folder, scores, self.settings, also if uploading is None else [*also, uploading])

    def _last_to_prolong(self) -> list[int]:
        """The step of the newest checkpoint from which a longer run could continue, if there is one."""
        if self._prolongs is None:
            return []
        for path in reversed(step_folders(self.folder)):
            if is_complete(path) and self._prolongs(read_state(path)):
                return [step_of(path)]
        return []

    def _gather(self, value: T) -> list[T]:
        return self._world.gather(value, self._world.saving)

    def _agree(self, action: Callable[[], T]) -> list[T]:
        """Do something on every rank, and give all results to all; CheckpointError everywhere when one rank failed."""
        result, problem = None, None
        try:
            result = action()
        except Exception as error:  # other ranks wait in the collective below, and would wait forever
            problem = str(error) or type(error).__name__
        outcomes = self._gather((result, problem))
        failed = next((problem for _, problem in outcomes if problem is not None), None)
        if failed is not None:
            raise CheckpointError(failed)
        return [result for result, _ in outcomes]  # type: ignore[misc]  # None only where there was a problem


def _of_another_length(path: Path, identity: RunIdentity | None) -> bool:
    """Whether a checkpoint is of the same run, but shorter, and too late for the longer one to continue from it."""
    try:
        state = read_state(path)
    except CheckpointError:
        return False  # what is wrong is said when it is loaded
    if identity is None or not is_prolonged(state.identity, identity, state.step, state.targets):
        return False
    return length_objection(state.identity, identity, path, state.step, state.targets) is not None


def _begin(path: Path, state: str) -> dict[str, FileRecord]:
    """Make the folder and write the state; what an earlier, interrupted save of this step has left goes."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write_atomic(path / STATE_NAME, state)
    return {STATE_NAME: record_of(state.encode())}


def _settle(future: Future[None], action: Callable[..., None], *arguments: Any) -> None:
    """Do something, and give a future its outcome."""
    try:
        action(*arguments)
        future.set_result(None)
    except BaseException as error:  # a future without an outcome would be waited for without end
        future.set_exception(error)
