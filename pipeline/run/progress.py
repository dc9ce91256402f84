"""How far a run is: a bar for who watches, a small file for who asks later (``status``), and what the work cost."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from pipeline.splits.worker import Outcome
from shared.io.display.progress import ByteProgress
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings
from shared.shards.manifest import Count

PROGRESS_FILE = "progress.json"
_SAVED_EVERY = 2.0
_GB = 10**9


Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Progress(Settings):
    """What DIR/progress.json says."""

    host: str
    process: Count
    step: str
    began: Seconds
    """Of this start; seconds since 1970."""
    updated: Seconds
    bytes_done: Count
    """Of the input, by this start."""
    bytes_total: Count
    splits_done: Count
    splits_total: Count
    device: str
    device_seconds: Seconds
    """Devices times seconds that workers spent on finished splits."""
    finished_bytes: Count
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

    def __init__(self, out: Path, shown: ByteProgress, progress: Progress, devices: float) -> None:
        self._path, self._shown, self._devices = out / PROGRESS_FILE, shown, devices
        self._latest = progress
        self._bytes, self._saved = 0, 0.0

    @property
    def progress(self) -> Progress:
        """How far the step is now."""
        # A split that is tried again is counted again: never beyond what there is.
        done = min(self._bytes, self._latest.bytes_total)
        return self._latest.model_copy(update={"bytes_done": done, "updated": time.time()})

    def bytes(self, count: int) -> None:
        """Input bytes that workers got through since the last call."""
        # Records of a compressed file have more bytes than it: never beyond what there is.
        self._shown.update(min(count, max(self._latest.bytes_total - self._bytes, 0)))
        self._bytes += count
        if time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()

    def ended(self, outcome: Outcome, size: int) -> None:
        """A split of ``size`` input bytes is through; one that failed is in no figure."""
        if outcome.error:
            return
        latest = self._latest
        self._latest = latest.model_copy(
            update={
                "splits_done": latest.splits_done + 1,
                "device_seconds": latest.device_seconds + outcome.seconds * self._devices,
                "finished_bytes": latest.finished_bytes + size,
            }
        )
        cost = self._latest.hours_per_gigabyte
        if cost is not None:
            self._shown.note = f"{cost:.3g} {latest.device}-hours/GB"

    def complete(self) -> None:
        """Newlines and the like are in no record: they are counted at the end, when every split is done."""
        if self._latest.splits_done == self._latest.splits_total:
            self.bytes(max(self._latest.bytes_total - self._bytes, 0))

    def save(self) -> None:
        self._saved = time.monotonic()
        with suppress(OSError):  # news that a full disk does not take stop nothing
            write_atomic(self._path, self.progress.model_dump_json(indent=1) + "\n")


@contextmanager
def following(
    out: Path, step: str, sizes: np.ndarray, splits_total: int, device: tuple[float, str]
) -> Iterator[Following]:
    """Follow one step over the splits with these sizes (int64, input bytes), of ``splits_total`` in all.

    ``device``: how many of what each worker has.
    """
    total, now = int(sizes.sum()), time.time()
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
    with ByteProgress(step, total) as shown:
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
        return Progress.model_validate_json(read_bounded(out / PROGRESS_FILE))
    except (OSError, ValidationError):
        return None
