"""One model with its patching threshold shifted, quality against cost.

Example:
  python -m trainer sweep runs/stdlib/blt runs/stdlib/patched --theta 1 1.5 2
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.io.display.quantities import counted
from shared.io.display.tables import aligned
from shared.io.display.terminal import show
from shared.io.files.outputs import add_overwrite, output_of
from shared.shards.open import open_dataset
from trainer.commands.evaluate import split_folder
from trainer.commands.running import add_as, add_model, add_scoring, running_model
from trainer.data.splits import VALIDATION_SPLIT
from trainer.evaluation.threshold_sweep_record import SWEEP, SWEEP_NAME, ThresholdSweep, save_sweep
from trainer.provenance.checkpoint_folders import is_complete

if TYPE_CHECKING:
    from trainer.evaluation.threshold_sweep import ThresholdSweeper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of sweep."""
    add_model(parser)
    parser.add_argument(
        "dataset", type=Path, help="a dataset, however it is patched, or the folder that holds train/ and validation/"
    )
    points = parser.add_mutually_exclusive_group()
    points.add_argument("--theta", type=float, nargs="+", metavar="NATS", help="thresholds to cut with")
    points.add_argument(
        "--shifts",
        type=float,
        nargs="+",
        metavar="NATS",
        help="to add to the trained thresholds (default: such that half to twice as many patches start)",
    )
    add_scoring(parser)
    add_as(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"file to write (default {SWEEP_NAME} in the run)")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write the file; returns the exit code."""
    out = output_of(arguments, "out", SWEEP, run_of(arguments.model) / SWEEP_NAME)
    dataset = open_dataset(split_folder(arguments.dataset, VALIDATION_SPLIT))

    from trainer.evaluation.threshold_sweep import ThresholdSweeper

    progress = Progress(False, every_seconds=10)
    with running_model(arguments) as running:
        sweeper = ThresholdSweeper(
            running.model, dataset, running.device, arguments.dtype, arguments.tokens, arguments.as_name
        )
        shifts = wanted_shifts(arguments, sweeper)
        count = len({*shifts, 0.0})
        sweep = sweeper.sweep(shifts, lambda done: progress.show(done / count, f"threshold {done} of {count}"))
        sweep = sweep.model_copy(update={"model": str(arguments.model)})
    progress.log(f"{counted(sweep.documents, 'document')} of {sweep.bytes:,} bytes, scored {count} times")
    show(table(sweep))
    save_sweep(sweep, out)
    show(out.path)
    return 0


def run_of(path: Path) -> Path:
    """The run that a model folder or a checkpoint lies in; a run itself."""
    from trainer.checkpoints.model import MODEL_FOLDER

    if is_complete(path):
        return path.resolve().parent.parent
    return path.parent if path.resolve().name == MODEL_FOLDER else path


def wanted_shifts(arguments: argparse.Namespace, sweeper: "ThresholdSweeper") -> list[float]:
    """Nats, as the command line has them. Raises ConfigError for thresholds of a model that has several."""
    if arguments.shifts:
        return list(arguments.shifts)
    if not arguments.theta:
        return sweeper.shifts()
    if sweeper.patching.thetas:
        raise ConfigError("thresholds of this model differ by subset: shift all of them with --shifts")
    return [theta - sweeper.theta for theta in arguments.theta]


def table(sweep: ThresholdSweep) -> str:
    """A line a threshold: its place, mean patch size, bits per byte, and FLOPs a byte; the trained one is marked."""
    heads = ["theta", "shift", "bytes/patch", "bits/byte", "MFLOP/byte", "with entropy model", ""]
    lines = [
        [
            f"{point.theta:.4f}",
            f"{point.shift:+.4f}",
            f"{point.bytes_per_patch:.2f}",
            f"{point.bits_per_byte:.4f}",
            f"{point.flops_per_byte / 1e6:.3f}",
            f"{(point.flops_per_byte + sweep.entropy_flops_per_byte) / 1e6:.3f}",
            "<- trained" * point.trained,
        ]
        for point in sweep.points
    ]
    return aligned(heads, lines, left=(len(heads) - 1,))
