"""Raw text in any format to shards of patched documents.

Example:
  python -m pipeline preprocess src/ --include '*.py' --rule space --out runs/mine

Inputs: files, directories, quoted globs ('data/**/*.parquet'), and URLs that fsspec knows (s3://, gs://, hf:// ...);
directories may mix formats. The format of a file is seen in its content, the suffix is a hint:
  .jsonl .ndjson   one record a line; .json also an array of records, or records of several lines
  .parquet .pq     rows; large files are cut at row groups
  .arrow .feather  rows of Arrow files and streams; Hugging Face datasets on disk are folders of these
  .tar             WebDataset samples; the text is the member .txt, .text or .bytes
  .wet             texts of a web crawl
  other text       one document a file, or several with --document-bytes
All but Parquet and Arrow may be compressed: .gz .zst .bz2 .xz. Our own datasets are read, too; their records keep their
split. In directories hidden files, links that lead outside, binary files and test data beside training data are left
out, and the summary says so. DIR gets train/ and validation/, each a dataset. The same command goes on where it was
stopped, and does nothing when it was finished.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.calibration.patching_file import load_patching
from pipeline.executors.options import add_executor_arguments, executor_of
from pipeline.options import PATCHING_OPTIONS, PatchingOptions, add_options, settings_of
from pipeline.read.options import add_reading_arguments, reading_of
from pipeline.run.driver import make_plan, preprocess
from pipeline.run.dry_run import dry_run
from pipeline.run.report import Report
from pipeline.run.summary import exit_code, print_summary
from pipeline.scoring.options import add_scoring_arguments, entropy_model_sha256, scoring_of
from pipeline.settings import (
    SPLIT_NAMES,
    ExecutorSettings,
    Job,
    OutputSettings,
    PipelineError,
    RunStore,
    ScoringSettings,
)
from shared.io.display.quantities import counted
from shared.io.files.outputs import check_folder
from shared.io.stores.locations import location_of
from shared.io.stores.store import UrlStore
from shared.patching import PatchingSettings
from shared.patching.settings import ENTROPY_RULES
from shared.settings import refused_as
from shared.shards.manifest import SidecarType

NOWHERE = Path("/dev/null/out")
"""The folder of a run on a store, before it is opened: nothing can be written there by mistake."""
DOCUMENTS_OF_A_TEXT = 200
"""Into so many a single text is cut for training, as long as each has between the next two in bytes."""
SHORTEST_CUT, LONGEST_CUT = 128, 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, directories, globs, URLs or datasets")
    add("--out", type=location_of, required=True, metavar="DIR", help="folder or URL (s3://, gs://, az://) of this run")
    add(
        "--for-training",
        action="store_true",
        help="a single text file is cut into some 200 documents, unless --document-bytes says otherwise; train or "
        "validation without a document is an error",
    )
    add("--dry-run", action="store_true", help="say what would be done and how long it takes; write nothing")

    group = parser.add_argument_group("patches")
    rules = ["none", "byte", "static", "space", *ENTROPY_RULES]
    group.add_argument(
        "--rule",
        choices=rules,
        help="where patches begin (default: none, unpatched, to train an entropy model on)",
    )
    limits: dict[str, tuple[str | None, str]] = {
        "min_length": ("BYTES", "shortest patch (default: 1)"),
        "max_length": ("BYTES", "longest patch (default: 512)"),
    }
    add_options(group, PatchingOptions, PATCHING_OPTIONS | limits)
    add_scoring_arguments(parser)

    group = parser.add_argument_group("output")
    add_options(group, OutputSettings, {"format": (None, "of the shards")})
    group.add_argument(
        "--sidecar",
        choices=["none", "uint8", "float32"],
        help="keep entropies; uint8 moves thresholds on entropy to its grid, so that boundaries replay exactly "
        "(default: uint8 with thresholds given here or calibrated for it, else none)",
    )

    add_reading_arguments(parser)

    add_executor_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    job, executor = job_of(arguments)
    if arguments.dry_run:
        return dry_run(job, arguments.inputs, executor)
    if arguments.for_training:
        job = cut_for_training(job, arguments.inputs)
    report = preprocess(job, arguments.inputs, executor)
    print_summary(job, report)
    if arguments.for_training and not report.failures:
        require_both_splits(report)
    return exit_code(report)


def cut_for_training(job: Job, inputs: Sequence[Path | str]) -> Job:
    """The same job, but a text file that is the whole input becomes documents, so that some can be held out."""
    reading = job.reading
    if reading.document_bytes is not None or len(inputs) != 1 or not os.path.isfile(inputs[0]):
        return job
    files = make_plan(inputs, reading, job.out).files
    if [file.kind for file in files] != ["text"]:
        return job
    size = min(max(os.path.getsize(inputs[0]) // DOCUMENTS_OF_A_TEXT, SHORTEST_CUT), LONGEST_CUT)
    return job.model_copy(update={"reading": reading.model_copy(update={"document_bytes": size})})


def require_both_splits(report: Report) -> None:
    """Raises PipelineError, with what would do, when there is nothing to train on or nothing to validate with."""
    counts = {name: sum(found.documents for found in report.subsets(name).values()) for name in SPLIT_NAMES}
    if all(counts.values()):
        return
    fraction = report.run.identity["reading"]["validation_fraction"]
    raise PipelineError(
        f"{counted(counts['train'], 'document')} for training and {counts['validation']:,} for validation: "
        f"both need some. Give more text, or another --validation-fraction (now {fraction:g}), or cut long texts into "
        "documents with --document-bytes; with make these go into CORPUS_OPTIONS"
    )


def job_of(arguments: argparse.Namespace) -> tuple[Job, ExecutorSettings]:
    """Typed settings from the command line. Raises PipelineError for what does not fit."""
    store = None
    if isinstance(arguments.out, Path):
        check_folder(arguments.out, lambda _: True)  # what may be in it is for the run to judge
    else:
        store = RunStore(url=UrlStore(arguments.out).where)
    patching, sidecar = _patching(arguments)
    sha256 = None
    if patching.needs_entropy or sidecar != "none":
        sha256 = entropy_model_sha256(
            arguments.entropy_model, f"rule {patching.rule}" if patching.needs_entropy else "--sidecar"
        )
    elif arguments.entropy_model is not None:
        raise PipelineError(
            f"--entropy-model is of no use for the rule {patching.rule} without --sidecar; "
            "give --rule entropy or --patching"
        )
    if arguments.patching is not None:
        calibrated = load_patching(arguments.patching).identity.entropy_model
        if calibrated != sha256:
            raise PipelineError(
                f"--patching {arguments.patching} was calibrated with another entropy model ({calibrated[:12]}) "
                f"than --entropy-model {arguments.entropy_model} ({(sha256 or '')[:12]}); calibrate again"
            )
    output = OutputSettings(
        patching=patching,
        format=arguments.format,
        sidecar=sidecar,
        scoring=scoring_of(arguments.entropy_model, settings_of(arguments, ScoringSettings)) if sha256 else None,
        entropy_model_sha256=sha256,
    )
    executor = executor_of(arguments, output.scoring)
    entropy_model = arguments.entropy_model.resolve() if sha256 is not None else None
    return Job(
        out=NOWHERE if store else arguments.out.resolve(),
        reading=reading_of(arguments),
        output=output,
        entropy_model=entropy_model,
        store=store,
    ), executor


def _patching(arguments: argparse.Namespace) -> tuple[PatchingSettings, SidecarType]:
    """The patching settings and the sidecar that go together."""
    given = settings_of(arguments, PatchingOptions).given
    if arguments.patching is not None:
        patching = load_patching(arguments.patching).patching
        exact = patching.rule == "monotonic" or patching.grid
    else:
        rules = {"theta": ", ".join(ENTROPY_RULES), "theta_rise": "entropy_rise", "stride": "static"}
        if "rule" not in given and (key := next(filter(given.__contains__, rules), None)):
            option = f"--{key.replace('_', '-')}"
            raise PipelineError(f"{option} needs --rule, which is not given (default: none); it is for {rules[key]}")
        with refused_as(PipelineError):
            patching = PatchingSettings(**{"rule": "none", **given})
        exact = True
    sidecar: SidecarType = arguments.sidecar or ("uint8" if patching.needs_entropy and exact else "none")
    return (patching.on_grid() if sidecar == "uint8" else patching), sidecar
