"""How far the rows of a table expand beside the bytes that they take in their file."""

import pyarrow as pa

from pipeline.read.streams import expands, too_large


class Expansion:
    """The bytes of rows so far, beside those that they take in the file. Raises pa.ArrowInvalid for a bomb."""

    def __init__(self, used: int, max_ratio: int) -> None:
        """``used``: bytes on disk of everything that the rows are read from."""
        self._used, self._max_ratio, self._made = max(used, 1), max_ratio, 0

    def add(self, made: int) -> None:
        """Count the bytes of rows, before any of their values is made."""
        self._made += made
        if too_large(self._made, self._used, self._max_ratio):
            raise pa.ArrowInvalid(expands(self._used, self._made, self._max_ratio))
