"""Copies of what is saved, so that training may go on while it is written."""

from functools import lru_cache
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class Stager:
    """Copies to host memory, kept for the next time where torch can; pinned where a device copies faster so."""

    def __init__(self, pinned: bool) -> None:
        self._options = StagingOptions(
            use_pinned_memory=pinned, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=pinned
        )
        self._stager = DefaultStager(self._options)

    def stage(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same with all tensors on the host; later changes of ``state`` do not reach it."""
        if not _serves_again():
            self._stager = DefaultStager(self._options)
        return self._stager.stage(state)  # type: ignore[return-value]


@lru_cache
def _serves_again() -> bool:
    """Whether a stager of this torch can be used more than once: that of 2.11 closes itself (KeyError)."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        for _ in range(2):
            stager.stage({"tensor": torch.zeros(1)})
    except KeyError:
        return False
    return True
