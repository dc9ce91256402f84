"""The input tokens of a document on the way to an entropy model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Inputs:
    """The input tokens of one document, which may come in chunks: every token but EOS."""

    count: int
    chunks: Iterator[np.ndarray]
    """int16 [N] each, ``count`` together."""
