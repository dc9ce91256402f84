"""The results of an experiment as CSV, for other programs: one line a fact, names in the first line. Free of torch."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from shared.io.files.outputs import Output
from trainer.experiments.results.results import Results, Table
from trainer.experiments.results.table import rows

CSV = re.compile(rb"table,(system|better),")
"""How these files begin, by which `shared.io.files.outputs.Output` knows them."""


def write_csv(results: Results, folder: Path) -> list[Path]:
    """Write the files that have a line into the experiment's folder; their paths. Raises OSError."""
    paths = []
    for name, records in csv_records(results).items():
        if records:
            Output(folder / name, CSV).write(_text(records))
            paths.append(folder / name)
    return paths


def csv_records(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The lines of each file, by its name; None is an empty field."""
    tables: tuple[Table, ...] = get_args(Table)
    runs = [({"table": run.table, "system": run.system, "seed": run.seed}, run) for run in results.runs]
    return {
        "table.csv": [{"table": table, **asdict(row)} for table in tables for row in rows(results, table)],
        "curves.csv": [{**key, **point.model_dump()} for key, run in runs for point in run.curve],
        "comparisons.csv": [
            {
                **one.model_dump(exclude={"differences"}),
                "seeds": len(one.differences),
                "verdict": one.verdict,
            }
            for one in results.comparisons
        ],
        "subsets.csv": [
            {
                **key,
                "subset": name,
                "bits_per_byte": bits,
                "bytes_per_patch": run.patch_size_by_subset.get(name),
            }
            for key, run in runs
            for name, bits in run.bits_by_subset.items()
        ],
    }


def _text(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
