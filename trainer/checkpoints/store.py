"""Saving what a run needs to go on as if it had never stopped, and finding the newest that is as it was written.

Nothing in training draws random numbers (parameters come from names, data from counters), so there is no generator
state to keep.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from shared.io.files import write_atomic
from shared.io.log import LOG
from trainer.checkpoints.index import read_index
from trainer.checkpoints.retention import tidy
from trainer.checkpoints.state import TrainState, read_state, validation_scores
from trainer.checkpoints.storage import TensorWriter, cause_of, check_names, load_tensors, named_tensors
from trainer.distributed.world import World
from trainer.errors import CheckpointError
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
        self._prolongs = prolongs
        self._stager = Stager(pinned=world.device.type == "cuda") if settings.asynchronous else None
        self._saving: tuple[Path, Future[None]] | None = None
        self._saved: Path | None = None
        self._failures = 0
        self._news: list[str] = []

    def pop_saved(self) -> Path | None:
        """The checkpoint that was completed since the last call, on all ranks alike."""
        saved, self._saved = self._saved, None
        return saved

    def pop_news(self) -> list[str]:
        """Lines for the user since the last call."""
        news, self._news = self._news, []
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
        another version wrote: it is no damage.
        """
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
        damaged = self._world.gather(damaged_folders(self.folder))[0]
        if self.last is None and damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole any more ({damaged[-1].name} is the newest); "
                f"restore {'one' if damaged[1:] else 'it'}, or choose another run.out to begin again"
            )
        for path in folders if self._world.is_main_rank else ():
            if path not in found:
                self._news.append(f"{path} was being saved when the run ended; it is not used")
        return self.last

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
                tidy(self.folder, scores, self.settings, self._last_to_prolong())
            except (OSError, CheckpointError) as error:
                self._news.append(f"old checkpoints could not be removed: {error}")

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
