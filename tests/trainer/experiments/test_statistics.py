"""Intervals over few seeds and over many documents."""

import math
import random

import numpy as np
import pytest

from shared.errors import ConfigError
from trainer.experiments.results.statistics import (
    bootstrap_interval,
    require_scipy,
    student_interval,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.3026527297),
        (0.975, 4, 2.7764451052),
        (0.975, 30, 2.0422724563),
        (0.95, 9, 1.8331129327),
        (0.995, 3, 5.8409093097),
        (0.975, 100_000, 1.9599877077),
    ],
)
def test_quantiles_are_those_of_the_published_tables(probability: float, degrees: int, quantile: float) -> None:
    values = np.repeat([0.0, 1.0], [degrees, 1])  # their standard deviation is that of one among so many
    found = student_interval(values.tolist(), 2 * probability - 1)
    spread = float(np.std(values, ddof=1)) / math.sqrt(degrees + 1)
    assert found.high is not None
    assert (found.high - found.mean) / spread == pytest.approx(quantile, rel=1e-8)


def test_without_scipy_a_comparison_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.experiments.results.statistics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\[reports\]"):
        require_scipy()


def test_an_interval_over_pairs_is_students() -> None:
    found = student_interval([0.10, 0.14])
    assert found.mean == pytest.approx(0.12)
    reach = 12.7062047362 * math.sqrt(2 * 0.02**2) / math.sqrt(2)
    assert (found.low, found.high) == (pytest.approx(0.12 - reach), pytest.approx(0.12 + reach))
    wider, narrow = student_interval([0.10, 0.14], 0.99), student_interval([0.10, 0.14, 0.12, 0.12, 0.12])
    assert wider.low < found.low
    assert narrow.low > 0


def test_one_pair_has_no_interval() -> None:
    assert student_interval([0.5]) == student_interval((0.5,))
    assert student_interval([0.5]).low is None
    assert student_interval([0.5]).high is None


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(4)
    covered = 0
    for _ in range(1000):
        found = student_interval([draw.gauss(1.0, 0.3) for _ in range(4)], 0.9)
        covered += found.low <= 1.0 <= found.high
    assert 870 <= covered <= 930


def test_a_bootstrap_over_documents_weighs_them_by_their_bytes() -> None:
    sizes = np.array([100.0, 900.0, 500.0] * 40)
    rng = np.random.Generator(np.random.PCG64(1))
    bits = sizes * 0.2 + rng.normal(0, 10, len(sizes))
    found = bootstrap_interval(bits, sizes)
    assert found.mean == pytest.approx(bits.sum() / sizes.sum())
    assert found.low < found.mean < found.high
    # The standard error of a ratio (Cochran 1977, 6.13) gives about the same reach.
    error = np.std(bits - found.mean * sizes, ddof=1) / math.sqrt(len(sizes)) / sizes.mean()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert bootstrap_interval(bits, sizes) == found
    assert bootstrap_interval(bits, sizes, seed=2) != found


def test_one_document_has_no_interval() -> None:
    found = bootstrap_interval(np.array([3.0]), np.array([6.0]))
    assert (found.mean, found.low, found.high) == (0.5, None, None)
