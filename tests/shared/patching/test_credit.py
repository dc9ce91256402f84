"""The credit of a model that finds its own patches: what it bounds, and that packs can be planned by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.patching.credit import PatchCredit

CREDITS = st.builds(PatchCredit, st.integers(1, 20), st.integers(1, 9))


@given(CREDITS, st.integers(1, 500))
def test_reach_is_the_longest_piece_whose_patches_fit(credit, patches):
    reach = credit.reach(patches)
    assert credit.bound(reach) <= patches < credit.bound(reach + 1) or credit.tokens == 1
    assert reach >= patches


@given(CREDITS, st.lists(st.integers(1, 400), min_size=1))
def test_the_bound_of_many_is_that_of_each(credit, lengths):
    assert credit.bound(np.array(lengths)).tolist() == [credit.bound(length) for length in lengths]


@pytest.mark.parametrize(("tokens", "patches"), [(1, 1), (2, 2), (5, 5), (6, 5), (7, 6), (100, 37)])
def test_the_bound_is_one_and_b_and_one_for_every_m_tokens(tokens, patches):
    assert PatchCredit(most=3, tokens=3).bound(tokens) == min(tokens, 4 + (tokens - 1) // 3) == patches


def test_credit_grows_up_to_its_most():
    credit = PatchCredit(most=2, tokens=3)
    assert [credit.grown(held) for held in range(7)] == [1, 2, 3, 4, 5, 6, 6]
