"""How far a run is: a bar for who watches, a small file for who asks later (``status``), and what the work cost."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from tqdm import tqdm

from pipeline.progress import bar
from pipeline.worker import Outcome
from shared.files import write_atomic
from shared.model_settings import Settings

PROGRESS_FILE = "progress.json"
_SAVED_EVERY = 2.0
_GB = 10**9


class Progress(Settings):
    """What DIR/progress.json says."""

    host: str
    process: int
    step: str
    began: float
    """Of this start; seconds since 1970."""
    updated: float
    bytes_done: int
    """Of the input, by this start."""
    bytes_total: int
    splits_done: int
    splits_total: int
    device: str
    device_seconds: float
    """Devices times seconds that workers spent on finished splits."""
    finished_bytes: int
    """Of the input, in those splits."""

    @property
    def rate(self) -> float:
        """Bytes a second since the start."""
        return self.bytes_done / max(self.updated - self.began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.bytes_total - self.bytes_done) / self.rate if self.bytes_done else None

    @property
    def hours_per_gigabyte(self) -> float | None:
        """Device-hours per GB of input: the cost."""
        return self.device_seconds / 3600 / (self.finished_bytes / _GB) if self.finished_bytes else None


class Following:
    """Keeps bar and file up to date while one step of a run goes on."""

    def __init__(self, out: Path, shown: tqdm, progress: Progress, devices: float) -> None:
        self._path, self._shown, self._devices = out / PROGRESS_FILE, shown, devices
        self.progress = progress
        self._saved = 0.0

    def bytes(self, count: int) -> None:
        """Input bytes that workers got through since the last call."""
        self._shown.update(count)
        # A split that is tried again is counted again: never beyond what there is.
        done = min(self.progress.bytes_done + count, self.progress.bytes_total)
        self._put(bytes_done=done)

    def ended(self, outcome: Outcome, size: int) -> None:
        """A split of ``size`` input bytes is through."""
        now = self.progress
        self._put(
            splits_done=now.splits_done + (not outcome.error),
            device_seconds=now.device_seconds + outcome.seconds * self._devices,
            finished_bytes=now.finished_bytes + size,
        )
        cost = self.progress.hours_per_gigabyte
        if cost is not None:
            self._shown.set_postfix_str(f"{cost:.3g} {now.device}-hours/GB", refresh=False)

    def complete(self) -> None:
        """Newlines and the like are in no record: they are counted at the end, when every split is done."""
        if self.progress.splits_done == self.progress.splits_total:
            self.bytes(self.progress.bytes_total - self.progress.bytes_done)

    def save(self) -> None:
        self._saved = time.monotonic()
        write_atomic(self._path, self.progress.model_dump_json(indent=1) + "\n")

    def _put(self, **values: object) -> None:
        self.progress = self.progress.model_copy(update={**values, "updated": time.time()})
        if time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()


@contextmanager
def following(
    out: Path, step: str, sizes: dict[int, int], splits_total: int, device: tuple[float, str]
) -> Iterator[Following]:
    """Follow one step over the splits with these sizes (input bytes), of ``splits_total`` in all.

    ``device``: how many of what each worker has.
    """
    total, now = sum(sizes.values()), time.time()
    progress = Progress(
        host=socket.gethostname(),
        process=os.getpid(),
        step=step,
        began=now,
        updated=now,
        bytes_done=0,
        bytes_total=total,
        splits_done=splits_total - len(sizes),
        splits_total=splits_total,
        device=device[1],
        device_seconds=0.0,
        finished_bytes=0,
    )
    with bar(step, total) as shown:
        found = Following(out, shown, progress, device[0])
        found.save()
        try:
            yield found
            found.complete()
        finally:
            found.save()


def load_progress(out: Path) -> Progress | None:
    """What the run's driver said last, if it ever did."""
    try:
        return Progress.model_validate_json((out / PROGRESS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
