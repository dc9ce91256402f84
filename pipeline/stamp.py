"""What tells, without reading it, that a file is the one that was planned for."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells, without reading it, that a file is the one that was planned for."""

    size: int
    mtime_ns: int = 0
    """Of local files."""
    version: str = ""
    """Of remote files: what their store says about the version, as key=value; empty where it says nothing."""
    changed_ns: int = 0
    """Of local files: when anything about them was changed last, which nobody can set."""

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """That of a local file."""
        return cls(found.st_size, found.st_mtime_ns, "", found.st_ctime_ns)

    def as_tuple(self) -> tuple[int, int, str, int]:
        """All of it, as plain values."""
        return self.size, self.mtime_ns, self.version, self.changed_ns
