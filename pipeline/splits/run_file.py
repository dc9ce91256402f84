"""run.json: what a run is, as every process of it reads it."""

from pathlib import Path
from typing import Any

from pipeline.plan import Plan
from shared.io.files import write_atomic
from shared.io.identity import digest
from shared.io.json_reader import read_bounded
from shared.settings import Settings
from shared.shards.manifest import NumericsClass

RUN_FILE, FAILURES = "run.json", "failures"
BEGUN_FILE = "begun.json"
"""In a store, where nothing is written a second time: what is known when the first worker is ready."""


MOST_RUN_BYTES = 2**30
"""Of run.json, which lists every piece of every file."""


class RunFile(Settings):
    """What a run is, written before any work and completed when the first worker is ready."""

    identity: dict[str, Any]
    plan: Plan
    numerics: NumericsClass | None = None

    @property
    def digest(self) -> str:
        """What markers of this run carry."""
        return digest({"identity": self.identity, "numerics": self.numerics and self.numerics.model_dump()})

    def save(self, out: Path) -> None:
        write_atomic(out / RUN_FILE, self.content())

    def content(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    def with_numerics(self, numerics: NumericsClass | None) -> "RunFile":
        return self.model_copy(update={"numerics": numerics})


class Begun(Settings):
    """What markers of a run on a store are of: small, for each who commits reads it again."""

    run: str
    """Digest of the run."""
    numerics: NumericsClass | None


def read_run(path: Path) -> RunFile:
    """What a run's file says. Raises OSError, ValidationError."""
    return RunFile.model_validate_json(read_bounded(path, MOST_RUN_BYTES))
