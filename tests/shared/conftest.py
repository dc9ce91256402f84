"""Fixtures that the tests of shared code have in common."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LargestTensor(TorchDispatchMode):
    """Sees every operation, backward included, and keeps the size of the largest storage that one makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.fixture
def largest_tensor() -> Callable[[Callable[[], object]], int]:
    """A function that runs another and returns how many elements the largest tensor made on the way has."""

    def measure(run: Callable[[], object]) -> int:
        with _LargestTensor() as mode:
            run()
        return mode.elements

    return measure
