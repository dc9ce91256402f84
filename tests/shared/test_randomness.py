"""Random values and permutations are pure functions of key and number, and never change."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.randomness import Permutation, mixed, shuffled, stream_key, uniform


def test_random_values_never_change() -> None:
    """Packs of a run that began with another version must stay the same: these values are fixed for ever."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # SplitMix64 from seed 0
    assert mixed(np.arange(1, 4), np.uint64(0)).tolist() == published
    key = stream_key(3, "documents", 0)
    assert int(key) == 12249957161889768746
    assert shuffled(np.arange(6), key).tolist() == [0, 3, 2, 1, 5, 4]


def test_permutations_never_change() -> None:
    key = stream_key(3, "shards", 0)
    assert Permutation(7, key)(np.arange(7)).tolist() == [3, 5, 0, 6, 4, 1, 2]
    assert Permutation(10**6, key)(np.arange(3)).tolist() == [350433, 414129, 14056]


def test_uniform_values_fill_the_unit_interval_evenly() -> None:
    values = uniform(np.arange(100_000), stream_key("uniform"))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert counts == pytest.approx(np.full(20, 5000), rel=0.06)


def test_a_permutation_holds_every_number_once() -> None:
    for size in range(1, 400):
        permutation = Permutation(size, stream_key(size))
        order = permutation(np.arange(size))
        assert np.array_equal(np.sort(order), np.arange(size)), size
        assert np.array_equal(permutation.inverse(order), np.arange(size)), size


@given(st.integers(1, 2**40), st.integers(0, 2**64 - 1), st.data())
def test_places_of_a_large_permutation_are_found_again(size: int, key: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    permutation = Permutation(size, np.uint64(key))
    numbers = permutation(places)
    assert ((numbers >= 0) & (numbers < size)).all()
    assert np.array_equal(permutation.inverse(numbers), places)
    assert np.array_equal(permutation(places[:1]), numbers[:1]), "one at a time or many"


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_numbers_are_equally_likely(size: int) -> None:
    draws, orders = 12 * math.factorial(size), math.factorial(size)
    keys = mixed(np.arange(draws), np.uint64(1))
    found = Counter(tuple(Permutation(size, key)(np.arange(size)).tolist()) for key in keys)
    chi_squared = sum((found[order] - 12) ** 2 / 12 for order in permutations(range(size)))
    assert chi_squared < orders - 1 + 5 * math.sqrt(2 * orders)


def test_neighbours_are_spread_evenly_over_a_large_permutation() -> None:
    """As many as chance says in each tenth, and steps between neighbours as large as between numbers at random."""
    size = 10**7 + 3
    order = Permutation(size, stream_key("spread"))(np.arange(20_000) + 777)
    counts = np.histogram(order, 10, (0, size))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 40
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.03)
