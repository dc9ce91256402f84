"""run.json and the table of files beside it: what a run is, as every process of it reads it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from pipeline.files import TABLE_NAME, load_files
from pipeline.plan import Plan
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import digest
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings
from shared.shards.manifest import Count, NumericsClass

RUN_FILE, FAILURES = "run.json", "failures"
BEGUN_FILE = "begun.json"
"""In a store, where nothing is written a second time: what is known when the first worker is ready."""


MOST_RUN_BYTES = 2**26


class RunSummary(Settings):
    """What run.json says."""

    identity: dict[str, Any]
    numerics: NumericsClass | None = None
    files: Annotated[str, StringConstraints(pattern=f"^{TABLE_NAME.pattern}$")]
    """Name of the table of files."""
    split_bytes: Annotated[int, Field(strict=True, gt=0, le=2**62)]
    skipped: dict[str, Count]
    examples: dict[str, tuple[str, ...]]
    idle: tuple[str, ...]
    plan_digest: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError, ValidationError."""
        return cls.model_validate_json(read_bounded(path, MOST_RUN_BYTES))


@dataclass(frozen=True)
class RunFile:
    """What a run is, written before any work and completed when the first worker is ready."""

    identity: dict[str, Any]
    plan: Plan
    numerics: NumericsClass | None = None

    @property
    def digest(self) -> str:
        """What markers of this run carry."""
        return digest({"identity": self.identity, "numerics": self.numerics and self.numerics.model_dump()})

    def with_numerics(self, numerics: NumericsClass | None) -> "RunFile":
        return replace(self, numerics=numerics)

    def summary(self) -> bytes:
        """What run.json says."""
        plan = self.plan
        summary = RunSummary(
            identity=self.identity,
            numerics=self.numerics,
            files=plan.files.name,
            split_bytes=plan.split_bytes,
            skipped=dict(plan.skipped),
            examples=dict(plan.examples),
            idle=plan.idle,
            plan_digest=plan_digest(plan),
        )
        return (summary.model_dump_json(indent=1) + "\n").encode()

    def save(self, out: Path) -> None:
        """Write the table of files, then run.json, which names it, and remove older tables last."""
        self.plan.files.save(out)
        write_atomic(out / RUN_FILE, self.summary())
        for path in out.glob("files-*.arrow"):
            if path.name != self.plan.files.name and TABLE_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)


class Begun(Settings):
    """What markers of a run on a store are of: small, for each who commits reads it again."""

    run: str
    """Digest of the run."""
    numerics: NumericsClass | None


def plan_digest(plan: Plan) -> str:
    """What tells the plan of a run from others."""
    return digest(plan.inputs_identity())


def read_run(path: Path) -> RunFile:
    """What a run's file says. Raises OSError, ValidationError, and PipelineError for a damaged table of files."""
    found = RunSummary.read(path)
    files = load_files(path.parent / found.files)
    plan = Plan(files, found.split_bytes, found.skipped, found.examples, found.idle)
    return RunFile(found.identity, plan, found.numerics)
