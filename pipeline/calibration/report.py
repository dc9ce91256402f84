"""What calibration found, for the terminal."""

from pipeline.calibration.parallel_text import table
from pipeline.calibration.patching_file import TENTH, PatchingFile
from shared.io.display.quantities import counted
from shared.io.display.tables import aligned
from shared.io.display.terminal import one_line, show, show_lines
from shared.io.files.digests import in_short
from shared.patching.sizes import PatchSizes

SUBSETS_SHOWN = 50
CLOSE = 0.02
"""Relative distance from the target above which a word is said about it."""
FEW_DOCUMENTS, FEW_BYTES = 10, 20_000
"""Held-out text below either says little of other text."""


def print_result(result: PatchingFile) -> None:
    """Thresholds and realised sizes, by subset where there are several."""
    target, patching, checked = result.identity.target, result.patching, result.held_out
    # The sizes are those with the thresholds by subset, where there are any: the default one alone gives others.
    of = "thresholds by subset" if patching.thetas else f"theta {patching.theta:.6f} nats"
    show(f"{of}: {result.mean_patch_size:.3f} bytes a patch, {target} wanted")
    if abs(result.mean_patch_size / target - 1) > CLOSE:
        show("  " + _why_far(result))
    if checked is None:
        show("  no document was held out: there are too few")
    else:
        where = "a tenth set apart" if result.identity.held_out == TENTH else "validation"
        show(
            f"  held out: {checked.mean_patch_size:.3f} bytes a patch in {counted(checked.documents, 'document')}, "
            f"{checked.bytes:,} bytes, of {where}"
        )
        if checked.documents < FEW_DOCUMENTS or checked.bytes < FEW_BYTES:
            show("  that is too little text to judge the threshold by")
    if result.parity:
        assert result.identity.parity_to is not None
        show(table(result.parity, result.identity.parity_to))
        if lonely := [name for name in result.subsets if name not in result.parity]:
            names = one_line(in_short(lonely, ", ", SUBSETS_SHOWN))
            pivot = one_line(result.identity.parity_to)
            show(f"have no document in common with {pivot}, and keep the threshold for all bytes: {names}")
    elif len(result.subsets) > 1:
        others = checked.subsets if checked is not None else {}
        width = max(map(len, result.subsets))
        for name, size in list(result.subsets.items())[:SUBSETS_SHOWN]:
            theta = patching.thetas.get(name, patching.theta)
            held_out = f", held out {others[name]:.3f}" if name in others else ""
            show_lines(f"  {name:<{width}}  theta {theta:.6f}  {size:.3f} bytes a patch{held_out}")
        if len(result.subsets) > SUBSETS_SHOWN:
            show(f"  and {len(result.subsets) - SUBSETS_SHOWN} more in the file")
    if patching.thetas:
        show(f"  any other subset gets the theta for all bytes, {patching.theta:.6f}")


def print_sizes(table: PatchSizes) -> None:
    """A line for each size: the threshold, what it gives, and what it gives in held-out text."""
    lines = []
    for entry in table.patch_sizes:
        theta = f"{entry.patching.theta:.6f}" + " and by subset" * bool(entry.patching.thetas)
        held_out = "-" if entry.held_out is None else f"{entry.held_out:.3f}"
        lines.append([f"{entry.size:g}", theta, f"{entry.mean_patch_size:.3f}", held_out])
    show(aligned(["size", "theta", "bytes/patch", "held out"], lines))
    far = [entry for entry in table.patch_sizes if abs(entry.mean_patch_size / entry.size - 1) > CLOSE]
    if far and far[0].patching.grid:
        names = ", ".join(f"{entry.size:g}" for entry in far)
        show(f"the uint8 grid has none nearer to {names}; with --sidecar float32 thresholds are not bound to it")


def _why_far(result: PatchingFile) -> str:
    if (pivot := result.identity.parity_to) is not None:
        return f"{result.identity.target} are wanted in {pivot}, and the others follow it"
    if result.patching.thetas:
        return "each subset has a threshold of its own, and the wanted size within itself"
    return "that is the nearest; with --sidecar float32 or none the threshold is not bound to the grid"
