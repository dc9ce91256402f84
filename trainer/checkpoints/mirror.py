"""Checkpoints copied to a store while training goes on, and fetched from there by a run whose folder is gone.

MIRROR/identity.json says whose checkpoints these are; MIRROR/step-00000100/ has the files of the folder of that name in
RUN/checkpoints/, COMPLETE last. One thread of the main rank uploads the newest that the mirror lacks, so that a slow
store makes it skip some, and removes those checkpoints that the rules of the recipe do not keep, and nothing else. A
step never waits for it, and no fault of the store ends a run.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from shared.errors import ConfigError, IdentityError, StorageError
from shared.io.display.log import LOG
from shared.io.display.progress import ByteProgress
from shared.io.files.atomic import sync, write_atomic
from shared.io.files.digests import in_short
from shared.io.stores.store import PROBES, LocalStore, Store, probe, reach
from shared.settings import first_problem
from trainer.checkpoints.retention import kept
from trainer.checkpoints.state import TrainState
from trainer.errors import CheckpointError
from trainer.metrics.subset_score import total_of
from trainer.provenance.checkpoint_folders import (
    COMPLETE_NAME,
    MOST_BYTES,
    STATE_NAME,
    Contents,
    contents_of,
    is_complete,
    read_small,
    step_folder,
    step_folders,
    step_name,
    step_of,
)
from trainer.provenance.identity import IDENTITY_NAME, RunIdentity, differ_in_length, run_differences
from trainer.provenance.run_checks import length_objection
from trainer.settings import CheckpointSettings

AT_ONCE = 4
"""Files on their way."""
ATTEMPTS = 3
"""At the end of a run: how often the last checkpoint is tried."""
RETRY_SECONDS = 30.0
"""After a failed upload, which has already waited for the store; a newer checkpoint is tried at once."""
POLL_SECONDS = 0.2
_TEMPORARY = re.compile(rf"{re.escape(IDENTITY_NAME)}\.[0-9a-f]+\.tmp")


class Mirror:
    """The checkpoints of one run in a store. The main rank uploads; every rank may fetch."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        settings: CheckpointSettings,
        prolongs: Callable[[TrainState], bool] | None,
        warn: Callable[[str], None],
    ) -> None:
        """``folder``: RUN/checkpoints. ``prolongs``: as of `Checkpoints`. ``warn`` is called by the thread."""
        self.lock = threading.Lock()
        """Held while checkpoints of the run's folder are chosen or removed."""
        self.uploading: int | None = None
        """The step whose local files are needed."""
        self._store, self._folder, self._settings = store, folder, settings
        self._prolongs, self._warn = prolongs, warn
        self._states: dict[int, TrainState] = {}
        self._wanted, self._idle, self._over = threading.Event(), threading.Event(), threading.Event()
        self._idle.set()
        self._failures, self._sent = 0, 0
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def claim(self, identity: RunIdentity) -> None:
        """Make sure that the store will do, and that it is this run's or empty, before anything is written there.

        Raises StorageError; ConfigError for a place that has anything else in it; and IdentityError when it has the
        checkpoints of another run, or those of one of another length from which this one, which has none of its own,
        cannot go on.
        """
        out = self._folder.parent
        if isinstance(self._store, LocalStore) and self._store.folder.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"checkpoint.mirror {self._store.where} lies in run.out {out}, where the checkpoints are already; "
                "give a place on another disk or in a store"
            )
        begins = not any(map(is_complete, step_folders(self._folder)))
        if begins:  # who goes on has its own, and all the patience that there is
            reach(self._store)
        recorded = self._recorded()
        lines = [] if recorded is None else run_differences(recorded, identity)
        if recorded is not None and lines and not differ_in_length(recorded, identity):
            raise IdentityError(
                f"checkpoint.mirror {self._store.where} belongs to another run ({in_short(lines)}); "
                "give each run a mirror of its own"
            )
        foreign = (key for key, _ in self._store.entries() if not _is_own(key, claimed=recorded is not None))
        if (key := next(foreign, None)) is not None:
            raise ConfigError(
                f"checkpoint.mirror {self._store.where} is not empty and not the mirror of a run: it has {key!r}"
                f"{f' and no {IDENTITY_NAME}' * (recorded is None)}; give an empty place, for this run alone"
            )
        probe(self._store)
        if begins:
            self.usable(identity)
        self._store.put(IDENTITY_NAME, (identity.model_dump_json(indent=1) + "\n").encode())

    def _recorded(self) -> RunIdentity | None:
        """Whose mirror it is, None of nobody's. Raises IdentityError when that cannot be read."""
        try:
            return RunIdentity.model_validate_json(self._store.read(IDENTITY_NAME))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise IdentityError(
                f"checkpoint.mirror {self._store.where} is not the mirror of a run of this version "
                f"({IDENTITY_NAME}: {first_problem(error)}); give an empty place, for this run alone"
            ) from None

    # ---- To the store.

    def offer(self) -> None:
        """There is a new checkpoint in the run's folder, or may be one."""
        self._failures = 0
        self._wanted.set()
        if not self._thread.is_alive():
            self._thread.start()

    def finish(self) -> None:
        """Wait, with progress, until the store has the newest checkpoint, or was tried often enough."""
        if self._wanted.is_set() or not self._idle.is_set():
            newest = [path for path in step_folders(self._folder) if is_complete(path)][-1:]
            total = sum(record.bytes for path in newest for record in contents_of(path).files.values())
            with ByteProgress(f"Copying the last checkpoint to {self._store.where}", total) as shown:
                before = 0
                while self._wanted.is_set() or not self._idle.wait(POLL_SECONDS):
                    time.sleep(POLL_SECONDS)
                    shown.update(max(self._sent - before, 0))
                    before = self._sent
        self._over.set()
        self._wanted.set()

    def _work(self) -> None:
        while self._wanted.wait() and not self._over.is_set():
            self._idle.clear()  # first: who waits for the end looks at both
            self._wanted.clear()
            try:
                while (path := self._next()) is not None:
                    self._upload(path)
                    self._prune()
                self._idle.set()
            except Exception as error:  # whatever it is: the run goes on without
                self._failures += 1
                self._warn(f"a checkpoint could not be copied to {self._store.where}: {error}")
                if self._failures >= ATTEMPTS:
                    self._idle.set()  # nobody waits for it any longer; a newer checkpoint is another matter
                else:
                    self._wanted.wait(RETRY_SECONDS)
                    self._wanted.set()
            finally:
                self.uploading = None

    def _next(self) -> Path | None:
        """The newest checkpoint that stays and is not there yet; its files stay in the run's folder until it is."""
        there = self.steps()
        with self.lock:
            local = [step_of(path) for path in step_folders(self._folder) if is_complete(path)]
            missing = sorted((set(local) - set(there)) & self._stay({*local, *there}))
            self.uploading = missing[-1] if missing else None
        return step_folder(self._folder, missing[-1]) if missing else None

    def _upload(self, path: Path) -> None:
        """Copy a checkpoint, and read back what was copied, before COMPLETE vouches for it."""
        contents = contents_of(path)
        self._sent = 0

        def send(name: str) -> None:
            self._store.publish(path / name, f"{path.name}/{name}", contents.files[name].sha256)
            self._sent += contents.files[name].bytes

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for sending in [pool.submit(send, name) for name in sorted(contents.files)]:
                sending.result()
        self._store.put(f"{path.name}/{COMPLETE_NAME}", (path / COMPLETE_NAME).read_bytes())
        LOG.debug("copied %s to %s", path.name, self._store.where)

    def _prune(self) -> None:
        """Remove checkpoints that the rules do not keep; at no moment does half of one look complete."""
        steps = set(self.steps())
        stay = {step_folder(self._folder, step).name for step in self._stay(steps)}
        gone = {step_folder(self._folder, step).name for step in steps} - stay
        self._store.remove([f"{name}/{COMPLETE_NAME}" for name in sorted(gone)])
        self._store.remove(
            [key for key in self._store.list() if _is_of_checkpoint(key) and _folder_of(key) not in stay]
        )

    def _stay(self, steps: Iterable[int]) -> set[int]:
        """Those of some steps that the rules of the recipe keep."""
        states = {step: state for step in steps if (state := self._state(step)) is not None}
        scores = {step: total_of(state.validation).bits_per_byte for step, state in states.items() if state.validation}
        stay = kept(steps, scores, self._settings)
        if self._prolongs is not None:
            stay |= set([step for step in sorted(states) if self._prolongs(states[step])][-1:])
        return stay

    def _state(self, step: int) -> TrainState | None:
        """Of a checkpoint here or there; None where it cannot be read."""
        if step not in self._states:
            path = step_folder(self._folder, step)
            try:
                content = read_small(path / STATE_NAME) if is_complete(path) else self._read(step, STATE_NAME)
                self._states[step] = TrainState.model_validate_json(content)
            except (ValidationError, FileNotFoundError):
                return None
        return self._states[step]

    def _read(self, step: int, name: str) -> bytes:
        return self._store.read(f"{step_folder(self._folder, step).name}/{name}", MOST_BYTES)

    # ---- From the store.

    def steps(self) -> list[int]:
        """The steps whose checkpoints are complete, oldest first. Raises StorageError, OSError."""
        found = (
            step_name(key.removesuffix(f"/{COMPLETE_NAME}"))
            for key in self._store.list()
            if key.endswith(COMPLETE_NAME)
        )
        return sorted(step for step in found if step is not None)

    def usable(self, identity: RunIdentity) -> list[int]:
        """The steps from which a run can go on, oldest first. Raises IdentityError where there are others alone."""
        found, problem = [], None
        for step in self.steps():
            if (state := self._state(step)) is None or not (
                lines := run_differences(state.identity, identity)
            ):  # what is wrong with it is said when it is fetched
                found.append(step)
            elif objection := length_objection(state.identity, identity, self._folder, step, state.targets):
                problem = f"{in_short(lines)}): {objection}"
            else:
                found.append(step)
        if problem is not None and not found:
            raise IdentityError(
                f"checkpoint.mirror {self._store.where} holds a run of another length, with which this one cannot go "
                f"on ({problem}; restore the value, or give each run a mirror of its own"
            )
        return found

    def contents(self, step: int) -> Contents:
        """What a checkpoint holds. Raises CheckpointError."""
        try:
            return Contents.model_validate_json(self._read(step, COMPLETE_NAME))
        except ValidationError as error:
            key = f"{step_folder(self._folder, step).name}/{COMPLETE_NAME}"
            raise CheckpointError(f"{self._store.url(key)}: {first_problem(error)}") from None
        except (StorageError, OSError) as error:
            raise CheckpointError(str(error)) from None

    def fetch(self, step: int, contents: Contents, rank: int, ranks: int) -> None:
        """Fetch this rank's share of a checkpoint's files, and check them. Raises CheckpointError."""
        path = step_folder(self._folder, step)
        for name in sorted(contents.files)[rank::ranks]:
            key = f"{path.name}/{name}"
            try:
                self._store.download(key, path / name)
                with (path / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except (StorageError, OSError) as error:
                raise CheckpointError(str(error)) from None
            if found != contents.files[name].sha256:
                raise CheckpointError(f"{self._store.url(key)} is not what was written: its sha256 differs")

    def complete(self, step: int, contents: Contents) -> None:
        """All files of a fetched checkpoint are there."""
        path = step_folder(self._folder, step)
        sync(path)
        write_atomic(path / COMPLETE_NAME, contents.model_dump_json(indent=1) + "\n")


def _folder_of(key: str) -> str:
    return key.partition("/")[0]


def _is_of_checkpoint(key: str) -> bool:
    """Whether a key is that of a file of a checkpoint, which has no folders in it."""
    folder, _, name = key.partition("/")
    return step_name(folder) is not None and "/" not in name


def _is_own(key: str, claimed: bool) -> bool:
    """Whether a mirror has such a key: also what a killed one has left. ``claimed``: whether it says whose it is."""
    if _folder_of(key) == PROBES or _TEMPORARY.fullmatch(key):
        return True
    return claimed and (key == IDENTITY_NAME or _is_of_checkpoint(key))
