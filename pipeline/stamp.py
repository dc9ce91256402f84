"""What tells, without reading it, that a file is the one that was planned for."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Stamp:
    """What tells, without reading it, that a file is the one that was planned for."""

    size: int
    mtime_ns: int = 0
    """Of local files."""
    version: str = ""
    """Of remote files: what their store says about the version, as key=value; empty where it says nothing."""
    changed_ns: int = 0
    inode: int = 0
    """Of local files: when anything about them was changed last, which nobody can set, and which file it is."""

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """That of a local file."""
        return cls(found.st_size, found.st_mtime_ns, "", found.st_ctime_ns, found.st_ino)

    def same_version(self, other: "Stamp") -> bool:
        """Whether two stamps differ in nothing that tells one content from another: a file may have been moved."""
        return (self.size, self.mtime_ns, self.version) == (other.size, other.mtime_ns, other.version)
