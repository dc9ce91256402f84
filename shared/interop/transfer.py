"""Tensors between our files and theirs: what is to be written and where its rows come from, one tensor at a time."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.counts.table import ENTROPIES, KEYS, ROOT
from shared.interop.names import HF, InteropError, Part
from shared.model_folder.tensor_header import check_shapes
from shared.model_folder.tensors import Entry, TensorSource

Produce = Callable[[str], Tensor | Iterable[Tensor]]
Contents = tuple[list[Entry], Produce]
"""The plan of a file, and what makes each of its tensors."""
_BUFFERS = ("rotary_emb.inv_freq", "rope.freqs_cis")
"""Tables of rotary positions that some files hold: worked out from the settings, not learned."""


def split(source: TensorSource, correspondence: Sequence[Part], dtype: torch.dtype) -> Contents:
    """Our tensors as theirs: the plan of a file, and what makes each. Raises InteropError as `check` does."""
    check(source, _whole(correspondence))
    by_name = {part.theirs: part for part in correspondence}

    def produce(name: str) -> Tensor:
        part = by_name[name]
        return source.read(part.ours, part.rows)

    return [(part.theirs, part.shape, dtype) for part in correspondence], produce


def join(source: TensorSource, correspondence: Sequence[Part]) -> Contents:
    """Their tensors as ours, in fp32. What is left over in the source is the caller's to judge."""
    by_name: dict[str, list[str]] = {}
    for part in correspondence:
        by_name.setdefault(part.ours, []).append(part.theirs)

    def produce(name: str) -> Iterator[Tensor]:
        return (source.read(theirs) for theirs in by_name[name])

    return [(name, shape, torch.float32) for name, shape in _whole(correspondence).items()], produce


TABLE = {KEYS: (torch.int64, torch.int64), ENTROPIES: (torch.float32, torch.int32), ROOT: (torch.float32, torch.int32)}
"""Tensors of a table of counts: the dtype here, and there, where what is no parameter may be rounded with the model."""


_COUNTS = f"{HF.root}count_table."
"""What stands before their names."""


def table_of_counts(source: TensorSource) -> Contents:
    """A table of counts as theirs: the bits of its entropies as integers, which no cast of a model touches."""

    def produce(name: str) -> Tensor:
        ours = name.removeprefix(_COUNTS)
        return source.read(ours).view(TABLE[ours][1])

    return [(f"{_COUNTS}{name}", source.shape(name), there) for name, (_, there) in TABLE.items()], produce


COUNT_TENSORS = tuple(f"{_COUNTS}{name}" for name in TABLE)


def counts_of_table(source: TensorSource) -> dict[str, np.ndarray]:
    """The same as ours again. Raises InteropError where a tensor is missing or has another dtype or length."""
    found, slots = {}, None
    for name, (here, there) in TABLE.items():
        theirs = f"{_COUNTS}{name}"
        if theirs not in source.names() or source.dtype(theirs) != there or len(source.shape(theirs)) != 1:
            raise InteropError(f"tensor {theirs} is not there as {there} [N]: the folder has no table of counts")
        slots = slots or source.shape(theirs)[0]
        wanted = 1 if name == ROOT else slots
        if source.shape(theirs) != (wanted,):
            raise InteropError(
                f"tensor {theirs} is {list(source.shape(theirs))}, not [{wanted}] as its table of counts"
            )
        found[name] = source.read(theirs).view(here).numpy()
    return found


def both(first: Contents, second: Contents) -> Contents:
    """The tensors of two in one file."""
    names = {name for name, _, _ in first[0]}
    return [*first[0], *second[0]], lambda name: (first if name in names else second)[1](name)


def check(
    source: TensorSource, wanted: Mapping[str, tuple[int, ...]], ignored: Collection[str] = (), where: str = ""
) -> None:
    """Raise InteropError at the first tensor that is missing, has another shape, is not of floats, or is left over.

    ``ignored``: tensors that may be left over. ``where`` stands before messages.
    """
    names = {name for name in source.names() if not name.endswith(_BUFFERS)} - set(ignored)
    check_shapes({name: source.shape(name) for name in names}, wanted, InteropError, where)
    for name in wanted:
        if not source.dtype(name).is_floating_point:
            raise InteropError(f"{where}tensor {name} is {source.dtype(name)}: quantised weights cannot be read")


def shapes(correspondence: Iterable[Part]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of their tensors."""
    return {part.theirs: part.shape for part in correspondence}


def _whole(correspondence: Iterable[Part]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our tensors."""
    return {part.ours: (part.rows.stop, *part.shape[1:]) for part in correspondence}
