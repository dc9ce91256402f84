"""Boundaries by credit, smoothing and the ratio loss, each against the same written out token by token."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.layers.batch import patch_room, segments
from shared.layers.routing import Router, Routing, patch_ends, ratio_loss, smoothed, straight_through
from shared.patching.credit import PatchCredit


def ends_one_by_one(wanted: list[bool], credit: PatchCredit, max_length: int) -> list[bool]:
    """Of one document, as docs/glossary.md defines them: the free boundaries by credit, then the forced ones."""
    ends, held, latest = [True], credit.full, 0
    for place, wants in enumerate(wanted[1:], 1):
        held = min(held + 1, credit.full)
        paid = wants and held >= credit.tokens
        held -= credit.tokens if paid else 0
        end = paid or place - latest == max_length
        latest = place if end else latest
        ends.append(end)
    return ends


@st.composite
def packs(draw):
    """Documents of wanted boundaries, dense and sparse."""
    count = draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [
        (generator.random(generator.integers(1, 90)) < generator.choice([0.02, 0.3, 0.5, 1.0])).tolist()
        for _ in range(count)
    ]


@settings(max_examples=100)
@given(packs(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 20))
def test_boundaries_are_those_found_token_by_token(documents, most, tokens, longer):
    credit = PatchCredit(most, tokens)
    max_length = (most + 1) * tokens + longer
    flat = torch.tensor([*chain(*documents)])
    found = patch_ends(flat, segments(list(map(len, documents))), credit, max_length)
    wanted = [ends_one_by_one(document, credit, max_length) for document in documents]
    assert found.tolist() == [*chain(*wanted)]
    for ends in wanted:  # for every beginning of a document
        assert (np.cumsum(ends) <= credit.bound(np.arange(1, len(ends) + 1))).all()


@settings(max_examples=25)
@given(packs(), st.integers(0, 89))
def test_a_later_token_moves_no_earlier_boundary_and_no_other_documents(documents, place):
    credit, lengths = PatchCredit(3, 2), list(map(len, documents))
    flat = torch.tensor([*chain(*documents)])
    place %= len(flat)
    other = flat.clone()
    other[place] = ~other[place]
    before, after = (patch_ends(wanted, segments(lengths), credit, 9) for wanted in (flat, other))
    number = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
    end = sum(lengths[: number + 1])
    assert torch.equal(before[:place], after[:place])
    assert torch.equal(before[end:], after[end:])


def test_a_refused_boundary_is_dropped_and_credit_comes_back():
    credit = PatchCredit(2, 3)
    wanted = torch.ones(12, dtype=torch.bool)
    found = patch_ends(wanted, segments([12]), credit, 100)
    # In thirds: 6 - 3, 4 - 3, then 2, 3 - 3, and so on.
    assert found.nonzero()[:, 0].tolist() == [0, 1, 2, 4, 7, 10]


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64])
def test_smoothing_is_the_recurrence_one_by_one_and_so_are_its_gradients(count):
    generator = torch.Generator().manual_seed(count)
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    share[::5] = 1.0
    share.requires_grad_()
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def one_by_one(share, x):
        y = [torch.zeros(3, dtype=torch.float64)]
        for p, row in zip(share, x):
            y.append(p * row + (1 - p) * y[-1])
        return torch.stack(y[1:])

    weights = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    found, wanted = smoothed(share, x), one_by_one(share, x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    for own, other in zip(
        torch.autograd.grad((found * weights).sum(), (share, x)),
        torch.autograd.grad((wanted * weights).sum(), (share, x)),
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_smoothed_across_a_document():
    share = torch.tensor([1.0, 0.5, 1.0, 0.25])
    x = torch.tensor([[8.0], [2.0], [5.0], [9.0]])
    assert smoothed(share, x).flatten().tolist() == [8.0, 5.0, 5.0, 6.0]
    other = x.clone()
    other[:2] = 1e6
    assert torch.equal(smoothed(share, other)[2:], smoothed(share, x)[2:])


def test_the_router_sees_two_tokens_of_one_document():
    torch.manual_seed(0)
    router, x = Router(8), torch.randn(10, 8)
    opens = torch.arange(10) % 5 == 0
    found = router(x, opens)
    assert found[opens].tolist() == [1.0, 1.0]
    query, key = router.query(x), router.key(x)
    for place in (1, 2, 7, 9):
        cosine = torch.dot(query[place], key[place - 1]) / query[place].norm() / key[place - 1].norm()
        assert found[place].item() == pytest.approx((1 - cosine.item()) / 2, abs=1e-6)


def test_confidence_is_one_with_the_gradient_of_what_was_decided():
    p = torch.tensor([0.9, 0.2, 0.6], requires_grad=True)
    ends = torch.tensor([True, False, False])  # the last one was wanted and refused
    factor = straight_through(Routing(p, p >= 0.5, ends))
    factor.sum().backward()
    assert factor.tolist() == [1.0, 1.0, 1.0]
    assert p.grad.tolist() == [1.0, -1.0, -1.0]


def test_the_ratio_loss_is_least_at_its_target_and_leads_there():
    def loss(share: float, target: float = 4.0) -> tuple[float, float]:
        ends = torch.arange(1000) < 1000 * share
        p = torch.full((1000,), share, requires_grad=True)
        found = ratio_loss(Routing(p, ends, ends), torch.ones(1000, dtype=torch.bool), target)
        found.backward()
        return float(found.detach()), float(p.grad.sum())

    assert loss(0.25)[0] == pytest.approx(1.0)
    assert loss(0.5)[0] > 1.0
    assert loss(0.5)[1] > 0 > loss(0.1)[1]  # p falls where there are too many, and rises where there are too few


def test_padding_is_not_in_the_ratio_loss():
    p, ends = torch.tensor([1.0, 0.3, 0.8, 0.9, 0.9]), torch.tensor([True, False, True, True, False])
    real = torch.tensor([True, True, True, False, False])
    whole = ratio_loss(Routing(p[:3], ends[:3], ends[:3]), real[:3], 3.0)
    assert ratio_loss(Routing(p, ends, ends), real, 3.0) == pytest.approx(float(whole))


def test_room_is_each_documents_bound_and_padding_has_the_rest():
    credit = PatchCredit(2, 3)
    room = patch_room([1, 10, 4], credit, tokens=20, patches=16)
    assert room.documents.lengths == (1, 6, 4, 5)
    assert room.first.tolist() == [0] + [1] * 10 + [7] * 4 + [11] * 5
    assert room.real.tolist() == [True] * 15 + [False] * 5
    assert room.count == 16
