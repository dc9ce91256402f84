"""One decoded record batch, whichever format it came from: what every reader of shards sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Byte strings as ranges of one buffer; taking one copies nothing."""

    buffer: np.ndarray
    """uint8 [N]."""
    starts: np.ndarray
    """int64 [rows]."""
    ends: np.ndarray
    """int64 [rows]."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [n], read-only where the file is mapped."""
        return self.buffer[self.starts[row] : self.ends[row]]


@dataclass(frozen=True)
class BatchColumns:
    """The rows of one record batch. Arrays are views of the decoded batch: valid as long as they are held."""

    texts: Ragged
    lengths: Ragged | None
    """uint16 little-endian; None when unpatched."""
    parts: np.ndarray
    """int32 [rows]."""
    ids: Any
    """pyarrow string array [rows]."""
    subsets: Any
    """pyarrow string array [rows], dictionary-encoded or not."""
    metas: Any
    """pyarrow string array [rows], null where nothing came with the record."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def nbytes(self) -> int:
        """Memory that holding this batch costs."""
        return self.texts.buffer.nbytes + (self.lengths.buffer.nbytes if self.lengths is not None else 0)

    def text(self, row: int) -> np.ndarray:
        """uint8 [n], the raw bytes of a row."""
        return self.texts[row]

    def patch_lengths(self, row: int) -> np.ndarray | None:
        """uint16 [P], or None when unpatched."""
        return None if self.lengths is None else self.lengths[row].view("<u2")

    def part(self, row: int) -> int:
        return int(self.parts[row])

    def id(self, row: int) -> str:
        return self.ids[row].as_py()

    def subset(self, row: int) -> str:
        return self.subsets[row].as_py()

    def meta(self, row: int) -> str | None:
        """JSON that came with the record."""
        return self.metas[row].as_py()
