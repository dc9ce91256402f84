"""Answers to a file, or a folder, of prompts: each exactly once, whatever is killed on the way.

Example:
  python -m infra.batch_generate runs/stdlib/blt prompts.jsonl --out answers/ --bytes 200 --executor inline

PROMPTS are what preprocess reads: JSON lines, .json, Parquet, Arrow and text files, compressed or not, directories,
quoted globs and URLs. A prompt is the column --prompt-column of a record, or with --chat the chat in its column
messages or conversations; of a text file it is the whole file. OUT gets answers/, one file for each split of the input,
dead-letters/ with what could not be answered and why, and answers.json, which says what made them. Answers follow from
model, options and input alone, in one numerics class: not from workers. The same command goes on where it was stopped,
and does nothing when it was finished.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.batch.answers import AnswerSettings
from infra.batch.run import SUMMARY_FILE, Report, batch_generate
from infra.batch.splits import ANSWERS, AnsweringModel, AnswerSplit
from pipeline.executors.options import add_executor_arguments, executor_of
from pipeline.options import add_options, settings_of
from pipeline.read.options import OPTIONS
from pipeline.settings import ChatSettings, Job, OutputSettings, PipelineError, ReadSettings, ScoringSettings
from pipeline.splits.logs import LOGS
from pipeline.splits.marker import DEAD_LETTERS
from pipeline.splits.run_file import FAILURES
from shared.errors import ExitCode
from shared.io.display.quantities import clock, counted
from shared.io.display.terminal import end_program, show_lines
from shared.io.files.outputs import check_folder
from shared.io.programs.command_line import heed_signals, run_module
from shared.model_folder.identity import model_sha256
from shared.patching.settings import PatchingSettings
from shared.text.chat import END
from trainer.commands.generate import add_writing, settings_from
from trainer.commands.running import add_model, chosen_subset, opened_model, threads_for
from trainer.generation.chat import end_of_turn

SPLIT_BYTES = 2**18
"""Of prompts, unless the user says otherwise: writing takes a thousand times as long as reading, and a split is what is
lost when a worker dies."""
PROMPT_COLUMN = "prompt"
_READING = ("id_column", "include", "exclude", "input_format", "max_window", "max_ratio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("inputs", nargs="+", metavar="PROMPTS", help="files, directories, globs or URLs of prompts")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of this run")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompt-column", metavar="NAME", help=f"column with the prompt, a text (default: {PROMPT_COLUMN})"
    )
    prompts.add_argument(
        "--chat", action="store_true", help="answer chats instead: columns as `preprocess --chat` reads them"
    )
    add_options(prompts, ReadSettings, {key: OPTIONS[key] for key in _READING})
    add_options(prompts, ReadSettings, {"split_bytes": ("N", f"bytes of input of a split (default: {SPLIT_BYTES:,})")})
    answers: dict[str, tuple[str | None, str]] = {
        "rows": ("N", "prompts that a worker answers side by side"),
        "longest_prompt": ("BYTES", "a longer prompt is a dead letter"),
        "format": (None, "of the files of answers: jsonl is jsonl.zst"),
    }
    add_options(parser.add_argument_group("answers"), AnswerSettings, answers)
    add_writing(parser)
    add_executor_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    generate = settings_from(arguments)
    settings = settings_of(arguments, AnswerSettings, generate=generate)
    check_folder(arguments.out, lambda _: True)  # what may be in it is for the run to judge
    with opened_model(arguments.model) as folder:
        model = AnsweringModel.at(folder.resolve(), model_sha256(folder), arguments.weights)
        chosen_subset(folder, generate.subset, generate.theta)
        scoring = ScoringSettings(threads=threads_for(folder, arguments.threads), device=arguments.device)
        job = Job(
            out=arguments.out.resolve(),
            reading=_reading(arguments, model),
            output=OutputSettings(patching=PatchingSettings(rule="none"), scoring=scoring),
            setup=model,
        )
        executor = executor_of(arguments, scoring)
        report = batch_generate(job, arguments.inputs, AnswerSplit(model, settings), executor)
    show_lines(*_lines(job, report))
    return _exit_code(report)


def _reading(arguments: argparse.Namespace, model: AnsweringModel) -> ReadSettings:
    """Which records there are. Raises PipelineError, ConfigError for chats with a model that knows none."""
    chat = None
    if arguments.chat:
        if arguments.prompt_column is not None:
            raise PipelineError(
                "--prompt-column names a text, and --chat reads columns of chats: leave one of them out"
            )
        specials = model.specials
        end_of_turn((), specials, model.folder)
        roles = tuple(name for name in specials if name != END)
        # Nothing is learned here: a chat to be answered may have turns of any role.
        chat = ChatSettings(roles=roles, learn=roles)
    return settings_of(
        arguments,
        ReadSettings,
        text_column=arguments.prompt_column or PROMPT_COLUMN,
        chat=chat,
        split_bytes=arguments.split_bytes or SPLIT_BYTES,
        # What decides over training data: the options of these names are of generation.
        seed=0,
        subset="prompts",
        validation_fraction=0.0,
        named_splits="ignore",
    )


def _exit_code(report: Report) -> int:
    if report.failures:
        return ExitCode.FAILED
    if not report.summary.records.documents:
        return ExitCode.MISSED
    return ExitCode.DEAD_LETTERS if report.summary.records.dead else ExitCode.DONE


def _lines(job: Job, report: Report) -> list[str]:
    """What a run came to, as lines."""
    summary, splits = report.summary, len(report.run.plan.splits)
    records = summary.records
    state = f"{report.done} of {counted(splits, 'split')}"
    if report.done_before == splits:
        state = "nothing to do, all is current"
    elif report.done_before:
        state += f", {report.done_before} of them before"
    ended = ", ".join(f"{count:,} {why}" for why, count in summary.ended.items())
    patches = f", {summary.written / summary.patches:.2f} bytes a patch" if summary.patches else ""
    lines = [
        f"{job.where}: {state}",
        f"  {records.records:>12,} records read",
        f"  {records.documents:>12,} answers in {job.where}/{ANSWERS}" + (f"; ended: {ended}" if ended else ""),
        f"  {summary.written:>12,} bytes written{patches}",
    ]
    if records.dead:
        dead = f"{records.dead:>12,} dead letter{'s' * (records.dead != 1)}"
        lines.append(f"  {dead}, with place and reason in {job.where}/{DEAD_LETTERS}")
    if report.reasons:
        (reason, times), looked_at = report.reasons.most_common(1)[0], report.reasons.total()
        lines.append(f"  {'':>12} most frequent reason, {times:,} of {looked_at:,} looked at: {reason[:200]}")
    if records.without_id:
        lines.append(f"  {records.without_id:>12,} without the column of --id-column: their place is their id")
    for reason, files in report.run.plan.skipped.items():
        lines.append(f"  {files:>12,} files or folders not read: {reason}")
    for failure in report.failures:
        split = report.run.plan.splits[failure.split]
        lines.append(f"  failed: split {split.name} ({split.files[0].path}): {failure.error}")
    if report.failures:
        lines.append(
            f"  details in {job.where}/{FAILURES} and {job.where}/{LOGS}; fix the cause and rerun the same command"
        )
    else:
        lines.append(f"  what made them: {job.where}/{SUMMARY_FILE}")
    if report.progress is not None:
        seconds = report.progress.updated - report.progress.began
        lines.append(f"  {clock(seconds)} for {report.progress.bytes_done:,} bytes of input")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_module("python -m infra.batch_generate", sys.modules[__name__], sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    heed_signals()
    end_program(main)
