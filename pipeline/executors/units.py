"""One function over many small arguments: in a few processes of this machine, or on Ray."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pipeline.executors import process_pool
from pipeline.settings import RayWorkers

Result = TypeVar("Result")
Workers = int | RayWorkers
"""Processes of this machine, or workers on Ray. Nothing here reaches a byte of what is made."""


def each(function: Callable[[int], Result], numbers: Sequence[int], workers: Workers) -> Iterator[tuple[int, Result]]:
    """(number, function(number)) for each number, as they are done, in any order.

    Raises what the function raises, and PipelineError when its workers die.
    """
    if isinstance(workers, int):
        return process_pool.each(function, numbers, workers)
    from pipeline.executors.ray_units import each_on_ray

    return each_on_ray(function, numbers, workers)
