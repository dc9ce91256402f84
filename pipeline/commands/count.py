"""An entropy model that counts, from the train split of a corpus.

Example:
  python -m pipeline count runs/stdlib/corpus --out runs/stdlib/counts

Counts which symbol follows each context of up to K bytes, and keeps one number for each context: the entropy of what
comes next. FOLDER is a model folder as that of a trained entropy model. INPUT is what preprocess reads, above all an
unpatched dataset; of each input the train split is counted, found as preprocess finds it. The same command goes on
where it was stopped, and does nothing when it was finished.
"""

import argparse
from pathlib import Path

from pipeline.counting.build import Report, count
from pipeline.counting.settings import DEFAULT_MEMORY, LEAST_MEMORY
from pipeline.executors.options import add_executor_arguments, executor_of
from pipeline.options import add_options, settings_of
from pipeline.read.options import add_reading_arguments, reading_of
from pipeline.settings import PipelineError
from shared.counts.settings import CountingSettings
from shared.errors import ExitCode
from shared.io.display.quantities import clock, counted, quantity
from shared.io.display.terminal import show_lines

OPTIONS: dict[str, tuple[str | None, str]] = {
    "order": ("K", "bytes of a context at most, 1 to 6 (default: 5)"),
    "contexts": ("N", "how many are kept at most, those of the most pieces of text first (default: 4,194,304)"),
    "least": (
        "N",
        "pieces of text (of 16 kiB, or a shorter document) that a context must be in to be kept (default: 5)",
    ),
    "newline_reset": (None, "a newline opens a new context"),
}
_WITHOUT_EFFECT = ("id_column", "subset_column", "subset_from", "subset", "meta")
"""Keys of reading that decide nothing here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="datasets, or files, directories, globs and URLs of text")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder of the model")
    add_options(parser.add_argument_group("contexts"), CountingSettings, OPTIONS)
    add_reading_arguments(parser, without=_WITHOUT_EFFECT)
    add("--bytes", dest="sample_bytes", type=int, metavar="N", help="the same as --sample-bytes", default=None)
    add(
        "--memory",
        type=int,
        default=DEFAULT_MEMORY,
        metavar="MIB",
        help=f"of each process, about; what is more waits in files below FOLDER (default: {DEFAULT_MEMORY})",
    )
    add_executor_arguments(parser, scores=False)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    if arguments.memory < LEAST_MEMORY:
        raise PipelineError(f"--memory {arguments.memory}: at least {LEAST_MEMORY} MiB are needed")
    wanted = settings_of(arguments, CountingSettings)
    executor, reading = executor_of(arguments, None), reading_of(arguments)
    report = count(arguments.inputs, arguments.out.resolve(), wanted, reading, executor, arguments.memory)
    show_lines(*_summary(arguments.out, report))
    if report.making is None:
        return ExitCode.FAILED
    return ExitCode.DEAD_LETTERS if report.making.dead_letters else ExitCode.DONE


def _summary(out: Path, report: Report) -> list[str]:
    """What a count came to, as lines."""
    making = report.making
    if making is None:
        failed = [f"  failed: split {name}: {error}" for name, error in report.failures]
        return [f"{out}: not finished", *failed, "  fix the cause and rerun the same command"]
    contexts = sum(making.contexts_by_order[1:])
    lines = [
        f"{out}: " + ("complete" if report.made else "nothing to do, all is current"),
        f"  {making.documents:>14,} documents of the train split, {making.bytes:,} bytes of text",
        f"  {making.pieces:>14,} pieces of these were counted",
    ]
    for order, number in enumerate(making.contexts_by_order[1:], 1):
        lines.append(f"  {number:>14,} contexts of {counted(order, 'byte')}")
    lines.append(f"  {contexts:>14,} contexts together, {report.size:,} bytes, sha256 {making.sha256[:12]}")
    if making.dead_letters:
        several = "s" * (making.dead_letters != 1)
        lines.append(f"  {making.dead_letters:>14,} dead letter{several}, with place and reason in {out}/dead-letters")
    if not contexts:
        lines.append(
            f"  warning: no context is in {making.identity.least} pieces: one entropy stands for all; give more text, "
            "or a lower --least"
        )
    if report.made:
        whole = sum(report.seconds.values())
        steps = ", ".join(f"{name} {clock(seconds)}" for name, seconds in report.seconds.items())
        rate = quantity(making.bytes / max(whole, 1e-9))
        lines.append(f"  {clock(whole)} in all ({steps}), {rate}B/s; {quantity(report.disk)}B of temporary files")
    return lines
