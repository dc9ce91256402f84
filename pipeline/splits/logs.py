"""The log of each split, DIR/logs/00012.log: who tried it, when, how it went. No part of the product."""

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from shared.io.display.log import LOG
from shared.io.display.terminal import safe

LOGS = "logs"


def log_path(out: Path, split: str) -> Path:
    return out / LOGS / f"{split}.log"


class SplitLog:
    """Appends lines to the log of one split; a log that cannot be written, on a full disk, stops nothing."""

    def __init__(self, out: Path, split: str) -> None:
        self._path = log_path(out, split)
        self._who = f"{socket.gethostname()} {os.getpid()}"
        self._file: IO[str] | None = None

    def __enter__(self) -> "SplitLog":
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        return self

    def write(self, line: str) -> None:
        LOG.debug("split %s: %s", self._path.stem, line)
        if self._file is None:
            return
        try:
            self._file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {self._who} {safe(line.rstrip())}\n")
            self._file.flush()
        except OSError:
            self._file = None

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
