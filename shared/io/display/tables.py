"""Tables of text: plain in a file and on a terminal.

Written by hand: a library for terminals would draw the same columns, in more lines than these.
"""

from collections.abc import Container, Sequence

from shared.io.display.terminal import one_line


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Container[int] = (0,), indent: str = "") -> str:
    """Columns as wide as their widest cell, those in ``left`` to the left and the others to the right."""
    lines = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        indent
        + "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
