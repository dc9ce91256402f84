"""What a device holds while a model goes forward and back."""

import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Counts tensors that are made while it is on, as long as anything keeps them: a CPU's allocator keeps no count.

    Storages are counted, so views cost nothing, and at their present size: FSDP empties those of unsharded parameters
    without giving them up. Compiled code is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no types
        self.peak = 0
        """The most bytes that were held at once."""
        self._made: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        options = options or {}
        found = operator(*inputs, **options)
        made = {storage._cdata: storage for storage in storages(found)}
        for storage in storages((inputs, options)) if made else ():
            made.pop(storage._cdata, None)
        if made:
            self._made |= {key: weakref.ref(storage) for key, storage in made.items()}
            self.peak = max(self.peak, self.bytes())
        return found

    def bytes(self, apart: Collection[Tensor] = ()) -> int:
        """What is held now, but for the storages of some tensors."""
        skipped, held = {storage._cdata for storage in storages(list(apart))}, 0
        for key, reference in list(self._made.items()):
            storage = reference()
            if storage is None:
                del self._made[key]
            elif key not in skipped:
                held += storage.nbytes()
        return held


def storages(tree: Any) -> list[UntypedStorage]:
    """The storages of all tensors in nested tuples, lists and dictionaries; of sharded ones this rank's own."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_meta)
    return [(leaf._local_tensor if isinstance(leaf, DTensor) else leaf).untyped_storage() for leaf in tensors]


class Meter:
    """The memory of passes through a model: on CUDA the allocator's figures, elsewhere what tensors hold."""

    def __init__(self, device: torch.device, static: int, reserved: int) -> None:
        """``static`` bytes are there and counted by nobody else on a CPU; ``reserved`` more will be needed later."""
        self.kept = 0
        """The most bytes that one forward pass has left behind, unsharded parameters apart."""
        self._device, self._static, self._reserved = device, static, reserved
        self._held = Held()

    @property
    def peak(self) -> int:
        """The most bytes at once, static and reserved ones included."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._static + self._reserved + self._held.peak

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count as long as the block runs."""
        before = 0

        def begin(*_: Any) -> None:
            nonlocal before
            before = self._now()

        def end(*_: Any) -> None:
            sharded = isinstance(model, FSDPModule)
            unsharded = [one for one in model.parameters() if sharded and not isinstance(one, DTensor)]
            self.kept = max(self.kept, self._now(unsharded) - before)

        hooks = [model.register_forward_pre_hook(begin, prepend=True), model.register_forward_hook(end)]
        try:
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
                place = torch.empty(self._reserved, dtype=torch.uint8, device=self._device)
                yield
                del place
            else:
                with self._held:
                    yield
        finally:
            for hook in hooks:
                hook.remove()

    def _now(self, apart: Collection[Tensor] = ()) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device) - sum(tensor.nbytes for tensor in apart)
        return self._held.bytes(apart)
