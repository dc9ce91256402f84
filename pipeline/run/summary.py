"""What a run says at its end: every record accounted for, and where things are."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.charts import dataset_line, printable
from pipeline.plan import Plan
from pipeline.read import read_split
from pipeline.records import Records
from pipeline.run.progress import Progress
from pipeline.run.report import Report
from pipeline.settings import SPLIT_NAMES, Job, PipelineError, ReadSettings
from pipeline.splits.logs import LOGS
from pipeline.splits.marker import DEAD_LETTERS, DUPLICATES, EMPTY_RECORDS, Counts
from pipeline.splits.run_file import FAILURES
from shared.errors import DatasetError, StorageError
from shared.io.display.quantities import clock, quantity
from shared.io.display.terminal import show_lines
from shared.io.files.digests import in_short
from shared.shards.manifest import SubsetTotals, summed

SUBSETS_SHOWN = 12
_LONGEST_NAME, _LONGEST_REASON = 60, 200
_COLUMNS_SHOWN = 12
_FILLED = 0.9
"""Share of the bytes of a sample below which the summary says why there are no more."""


def exit_code(report: Report) -> int:
    """0 fine, 1 splits failed, 3 some records were dead letters, 4 the product is not what was asked for."""
    if report.failures:
        return 1
    if missed(report):
        return 4
    return 3 if report.counts.dead else 0


def missed(report: Report, reading_now: ReadSettings | None = None) -> list[str]:
    """What a finished run was asked for and cannot have done: documents, and columns that no record has.

    ``reading_now``: of the run, to look up which columns there are instead.
    """
    counts = report.counts
    found, reading = [], report.run.identity.get("reading", {})
    if not counts.documents:
        why = f": all {counts.dead:,} records are dead letters" if counts.dead and counts.dead == counts.records else ""
        found.append(f"no documents{why}")
    living = counts.records - counts.dead
    for option, column, number in _columns(reading, counts):
        if living and number == living:
            there = _first_columns(report.run.plan, reading_now) if reading_now is not None else []
            instead = f"; beside its text the first record has {in_short(there, ', ', _COLUMNS_SHOWN)}" if there else ""
            found.append(f"{option} {column}: no record has that column, so the option did nothing{instead}")
    return found


def _first_columns(plan: Plan, reading: ReadSettings) -> list[str]:
    """Names of the columns of the first record, but those that its text is in; none where it cannot be read now."""
    all_kept = {"meta": True, "id_column": "", "subset": "any", "subset_column": None, "split_key": None}
    with suppress(PipelineError, DatasetError, StorageError, OSError):
        for found in read_split(plan.splits[0], reading.model_copy(update=all_kept)):
            if isinstance(found, Records) and len(found):
                return sorted(json.loads((found.metas or [None])[0] or "{}"))
    return []


def _columns(reading: Mapping[str, Any], counts: Counts) -> list[tuple[str, str, int]]:
    """Options that name a column, with the number of records that lack it."""
    columns = (
        ("--id-column", reading.get("id_column"), counts.without_id),
        ("--subset-column", reading.get("subset_column"), counts.without_subset),
        ("--split-key", reading.get("split_key"), counts.without_key),
    )
    return [(option, column, number) for option, column, number in columns if column is not None and number]


def print_summary(job: Job, report: Report) -> None:
    """Print what a run came to."""
    counts = report.counts
    splits = len(report.run.plan.splits)
    state = f"{report.totals.splits} of {splits} splits"
    if report.done_before == splits:
        state = "nothing to do, all is current"
    elif report.done_before:
        state += f", {report.done_before} of them before"
    lines = [f"{job.where}: {state}", f"  {counts.records:>12,} records read"]
    lines.append(f"  {counts.documents:>12,} documents, {counts.document_bytes:,} bytes of text")
    for records, what in (
        (counts.not_sampled, f"not in the sample{_cut_short(job, counts)}"),
        (counts.duplicates, f"duplicates of earlier ones, listed in {job.where}/{DUPLICATES}"),
        (counts.empty, f"empty, listed in {job.where}/{EMPTY_RECORDS}"),
        (counts.dead, f"dead letter{'s' * (counts.dead != 1)}, with place and reason in {job.where}/{DEAD_LETTERS}"),
    ):
        if records:
            lines.append(f"  {records:>12,} {what}")
    if report.reasons:
        (reason, times), looked_at = report.reasons.most_common(1)[0], report.reasons.total()
        lines.append(f"  {'':>12} most frequent reason, {times:,} of {looked_at:,} looked at: {_brief(reason)}")
    for option, column, number in _columns(report.run.identity.get("reading", {}), counts):
        lines.append(f"  {number:>12,} without the column {column!r} of {option}")
    if counts.replaced:
        lines.append(f"  {counts.replaced:>12,} values of other columns replaced: they have no form in JSON or a name")
    for reason, files in report.run.plan.skipped.items():
        names = report.run.plan.examples.get(reason, ())
        shown = f": {', '.join(map(_shown, names))}" + (", ..." if files > len(names) else "") if names else ""
        lines.append(f"  {files:>12,} files or folders not read: {reason}{shown}")
    for name in SPLIT_NAMES:
        lines += _dataset_lines(job, name, report.subsets(name), report.totals.shards[name])
    if not report.failures and counts.documents and job.reading.validation_fraction:
        empty = [name for name in SPLIT_NAMES if not report.subsets(name)]
        lines += [f"  {name} has no document: training needs some in both (--validation-fraction)" for name in empty]
    for failure in report.failures:
        paths = ", ".join(report.files_of(failure))
        shown = paths if len(paths) <= 80 else paths[:77] + "..."
        lines.append(f"  failed: split {report.name_of(failure)} ({shown}): {failure.error}")
    if not report.failures:
        lines += [f"  warning: {problem}" for problem in (*report.run.plan.idle, *missed(report, job.reading))]
    if report.failures:
        lines.append(
            f"  details in {job.where}/{FAILURES} and {job.where}/{LOGS}; fix the cause and rerun the same command"
        )
    elif report.progress is not None:
        lines.append(f"  {_work(report.progress)}")
    show_lines(*lines)


def _cut_short(job: Job, counts: Counts) -> str:
    """Why a sample has far fewer bytes than were asked for, if it has: it ends before a text that is too long."""
    wanted = job.reading.sample_bytes
    if wanted is None or counts.document_bytes >= wanted * _FILLED:
        return ""
    return (
        f": {counts.document_bytes:,} of {wanted:,} bytes, since the next text is longer than what was left; "
        "--document-bytes cuts text files, and a larger --sample-bytes (make: CORPUS_BYTES=) has room for long ones"
    )


def _brief(reason: str) -> str:
    """A reason for the terminal: names of columns in it may have any length."""
    plain = printable(reason.encode("utf-8", "backslashreplace"))
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]}..."


def _shown(name: str) -> str:
    """A file's name for the terminal, which must not obey it."""
    plain = printable(name.encode())
    return plain if len(plain) <= _LONGEST_NAME else f"...{plain[-_LONGEST_NAME:]}"


def _work(progress: Progress) -> str:
    seconds, cost = progress.updated - progress.began, progress.hours_per_gigabyte
    line = f"{progress.bytes_done:,} bytes of input in {clock(seconds)}, {quantity(progress.rate)}B/s"
    return line + (f", {cost:.3g} {progress.device}-hours/GB" if cost is not None else "")


def _dataset_lines(job: Job, name: str, subsets: dict[str, SubsetTotals], shards: int) -> list[str]:
    total = summed(subsets.values())
    lines = [dataset_line(name, total, shards, f"{job.where}/{name}")]
    if total.patches and 1 < len(subsets) <= SUBSETS_SHOWN:
        width = max(map(len, subsets))
        for subset in sorted(subsets):
            figures = subsets[subset]
            lines.append(
                f"      {subset:<{width}}  {figures.bytes:>12,} bytes  {figures.mean_patch_size:.3f} bytes a patch"
            )
    return lines
