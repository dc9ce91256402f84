"""What a teacher, a model of tokens, says of every byte of a dataset: made once, for all training by distillation.

Example:
  python -m pipeline targets runs/stdlib/plain --teacher runs/teacher --out runs/stdlib/targets

For each byte of the text, and for the end of each document, the most probable symbols with the logarithms of their
probabilities, that of the token ending there, and what all others have together. They depend on the text alone: the
same folder serves every recut of the dataset. The teacher is a flat model over byte-pair tokens that was trained here,
or a folder of transformers with a Llama, Qwen, OLMo, Mistral or SmolLM and its tokenizer.json. A stopped command goes
on where it was; OUT appears when it is complete.
"""

import argparse
from pathlib import Path

from pipeline.options import add_options, settings_of
from pipeline.rewriting.rewrite import add_output_arguments, workers_of
from pipeline.rewriting.targets import TeacherOptions, dry_run, make_targets
from shared.distillation.targets_folder import TargetsManifest, targets_at
from shared.io.display.quantities import counted, quantity
from shared.io.display.terminal import show_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="a dataset, or the folder above its train/ and validation/")
    add_output_arguments(parser, gpus=True)
    group = parser.add_argument_group("teacher")
    described: dict[str, tuple[str | None, str]] = {
        "teacher": ("MODEL", "its model folder, the finished run that trained it, or a folder of transformers"),
        "tokenizer": ("FOLDER", "of its tokens (default: that of its folder)"),
        "context": (
            "TOKENS",
            "of a window of a long document (default: 1024, or twice a longer attention window)",
        ),
        "device": (None, "auto: cuda where there is one"),
        "precision": (
            None,
            "of the teacher, all but its head: bfloat16 halves its weights, and is faster on a GPU",
        ),
        "threads": ("N", "threads of each worker"),
    }
    add_options(group, TeacherOptions, described)
    kept: dict[str, tuple[str | None, str]] = {
        "top": ("K", "symbols of each target, the most probable ones"),
        "dtype": (None, "of logarithms"),
    }
    add_options(parser.add_argument_group("targets"), TeacherOptions, kept)
    add("--dry-run", action="store_true", help="say what would be written and computed; write nothing")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    options = settings_of(arguments, TeacherOptions)
    if arguments.dry_run:
        show_lines(*dry_run(arguments.dataset, options))
        return 0
    gpus = 0.0 if options.device == "cpu" else arguments.gpus_per_worker
    made = make_targets(arguments.dataset, arguments.out, options, workers_of(arguments, options.threads, gpus))
    show_lines(f"{arguments.out}: " + ("complete" if made else "nothing to do, all is current"))
    show_lines(*(targets_line(where, manifest) for where, manifest in targets_at(arguments.out)))
    return 0


def targets_line(where: Path | str, manifest: TargetsManifest) -> str:
    """What a folder of targets holds."""
    form, numerics = manifest.identity.form, manifest.identity.numerics
    teacher = "the teacher" + (f" in {numerics.dtype}" if numerics else "")
    return (
        f"  {counted(manifest.targets, 'target')} of {counted(manifest.documents, 'document')}, "
        f"{counted(manifest.shards.rows, 'shard')}, {quantity(manifest.bytes_on_disk)}B, "
        f"{form.top} symbols of each in {form.dtype}, largest rest {manifest.largest_rest:.4f}, "
        f"{quantity(manifest.flops)}FLOPs of {teacher}  {where}"
    )
