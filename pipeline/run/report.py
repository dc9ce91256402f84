"""What a run came to, as a value, and as DIR/report.json for programs."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.run.progress import Progress
from pipeline.settings import SPLIT_NAMES, SplitName
from pipeline.splits.logs import log_path
from pipeline.splits.marker import Counts, Marker
from pipeline.splits.run_file import RunFile
from pipeline.splits.worker import Outcome
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.shards.manifest import SubsetTotals, summed

REPORT_FILE = "report.json"


class Totals:
    """Sums over the markers of a run."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Counts.model_fields, 0)
        self.splits = 0
        self.shards: dict[SplitName, int] = dict.fromkeys(SPLIT_NAMES, 0)
        self.subsets: dict[SplitName, dict[str, SubsetTotals]] = {name: {} for name in SPLIT_NAMES}
        """Totals of each dataset by subset."""

    def add(self, marker: Marker) -> None:
        self.splits += 1
        for status, count in marker.counts:
            self._counts[status] += count
        for name in SPLIT_NAMES:
            totals = self.subsets[name]
            self.shards[name] += len(marker.shards[name])
            for entry in marker.shards[name]:
                for subset, figures in entry.subsets.items():
                    totals[subset] = summed([totals[subset], figures]) if subset in totals else figures

    @property
    def counts(self) -> Counts:
        return Counts(**self._counts)


@dataclass(frozen=True)
class Report:
    """What a run came to."""

    run: RunFile
    totals: Totals
    failures: list[Outcome] = field(default_factory=list)
    done_before: int = 0
    """Splits that an earlier start had finished."""
    progress: Progress | None = None
    """Of this start's writing, if there was any."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why records are dead letters: of the first thousands in the lists."""

    @property
    def counts(self) -> Counts:
        return self.totals.counts

    def subsets(self, name: SplitName) -> dict[str, SubsetTotals]:
        """Totals of one dataset by subset, in sorted order."""
        return dict(sorted(self.totals.subsets[name].items()))

    def files_of(self, failure: Outcome) -> list[str]:
        """The input files of a split that failed."""
        return [file.path for file in self.run.plan.splits[failure.split].files]

    def name_of(self, failure: Outcome) -> str:
        return self.run.plan.splits[failure.split].name


def write_report(out: Path, report: Report) -> None:
    """Write report.json: the product as it now is, and what this start did and cost."""
    write_atomic(out / REPORT_FILE, json.dumps(as_json(out, report), indent=1) + "\n")


class Reported(BaseModel):
    """What is read again of report.json."""

    finished: bool
    run: str
    """Digest of the run."""
    records: Counts


def load_report(out: Path) -> Reported | None:
    """What the last start came to, if it left a report."""
    try:
        return Reported.model_validate_json(read_bounded(out / REPORT_FILE))
    except (OSError, ValidationError):
        return None


def as_json(out: Path, report: Report) -> dict[str, Any]:
    """The report as plain values."""
    plan = report.run.plan
    return {
        "finished": report.totals.splits == len(plan.splits),
        "run": report.run.digest,
        "numerics": report.run.numerics and report.run.numerics.model_dump(),
        "input": {"files": len(plan.files), "bytes": plan.bytes, "not_read": dict(plan.skipped)},
        "splits": {
            "total": len(plan.splits),
            "done": report.totals.splits,
            "done_before": report.done_before,
            "failed": len(report.failures),
        },
        "records": report.counts.model_dump(),
        "datasets": {
            name: TypeAdapter(dict[str, SubsetTotals]).dump_python(report.subsets(name)) for name in SPLIT_NAMES
        },
        "this_start": report.progress and _start(report.progress),
        "failures": [
            {
                "split": report.name_of(failure),
                "files": report.files_of(failure),
                "error": failure.error,
                "log": str(log_path(out, report.name_of(failure))),
            }
            for failure in report.failures
        ],
    }


def _start(progress: Progress) -> dict[str, Any]:
    return {
        "began": progress.began,
        "seconds": progress.updated - progress.began,
        "bytes": progress.bytes_done,
        "bytes_per_second": progress.rate,
        "device": progress.device,
        "device_hours": progress.device_seconds / 3600,
        "device_hours_per_gigabyte": progress.hours_per_gigabyte,
    }
