"""The most recently used of some large values."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What says how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class Recent(Generic[K, V]):
    """Values by key, the latest always and earlier ones up to ``limit`` bytes in all."""

    def __init__(self, limit: int, make: Callable[[K], V]) -> None:
        """``make`` must not hold who holds this: memory of a ring is freed long after it was last used."""
        self._limit, self._make = limit, make
        self._values: OrderedDict[K, V] = OrderedDict()
        self._held = 0

    def __getitem__(self, key: K) -> V:
        """The value of a key, made if it is not held."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        value = self._values[key] = self._make(key)
        self._held += value.nbytes
        while self._held > self._limit and len(self._values) > 1:
            self._held -= self._values.popitem(last=False)[1].nbytes
        return value
