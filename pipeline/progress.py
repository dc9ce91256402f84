"""The bar of long work."""

import sys

try:
    from tqdm import tqdm
except ImportError:  # a machine without it scores all the same
    tqdm = None

from shared.io.terminal import one_line, unfiltered


class NoBar:
    """Stands for a bar where tqdm is not installed."""

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to tidy up."""

    def update(self, count: int) -> None:
        """Show nothing."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show nothing."""


def bar(title: str, total: int | None, done: int = 0) -> "tqdm | NoBar":
    """A bar in bytes with rate and time left; on a file or pipe it says something every ten seconds only.

    The time left follows from the mean rate since the start, and grows while nothing is done.

    ``done``: bytes that an earlier start has done; they count for the place, not for the rate.
    """
    if tqdm is None:
        print(f"{title} (no progress bar: tqdm is not installed)", file=sys.stderr)
        return NoBar()
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        file=unfiltered(sys.stderr),
        total=total,
        initial=done,
        desc=one_line(title),
        unit="B",
        unit_scale=True,
        mininterval=interval,
        miniters=0,  # news by the clock alone: also that nothing was done
        smoothing=0,
        delay=0.5,
        leave=False,
    )
