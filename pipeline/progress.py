"""The bar of long work."""

import sys

from tqdm import tqdm

from shared.terminal import one_line, unfiltered


def bar(title: str, total: int | None, done: int = 0) -> tqdm:
    """A bar in bytes with rate and time left; on a file or pipe it says something every ten seconds only.

    ``done``: bytes that an earlier start has done; they count for the place, not for the rate.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        file=unfiltered(sys.stderr),
        total=total,
        initial=done,
        desc=one_line(title),
        unit="B",
        unit_scale=True,
        mininterval=interval,
        delay=0.5,
        leave=False,
    )
