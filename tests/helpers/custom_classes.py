"""Exported folders opened by the class that they carry, and batches of rows for it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.vocabulary import RESERVED


@contextmanager
def modules_below(folder: Path) -> Iterator[None]:
    """Let transformers put the modules that it runs into a folder of the test."""
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", list(sys.path))
        yield


def opened(folder: Path) -> Any:
    """The model of a folder, of the folder's own class."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def padded(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, S]."""
    longest = max(map(len, rows))
    batch, mask = (torch.full((len(rows), longest), fill) for fill in (RESERVED, 0))
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        batch[number, place], mask[number, place] = row, 1
    return batch, mask
