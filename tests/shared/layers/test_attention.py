"""The one self-attention primitive against a dense oracle, and its cost."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.rounding import assert_equal_but_rounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from shared.layers import attention as module
from shared.layers import tiled_attention as tiles
from shared.layers.attention import AttentionMask, attention, segment_ids
from shared.layers.batch import segments
from shared.layers.tile_sizes import carried_length


@pytest.fixture(params=["tiles", "batched"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How attention is computed: as on a CPU, or as on an accelerator in fp32."""
    if request.param == "batched":
        monkeypatch.setattr("shared.layers.attention.takes_tiles", lambda device: False)
    return request.param


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The oracle: every score, masked by ``seen`` [queries, keys]."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hqk,khc->qhc", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def visible(documents: Tensor, window: int | None) -> Tensor:
    place = torch.arange(len(documents))
    distance = place[:, None] - place
    seen = (documents[:, None] == documents) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def heads(count: int, n: int, seed: int) -> Tensor:
    return torch.randn(n, count, 8, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.numerics
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=5),
    window=st.one_of(st.none(), st.sampled_from([1, 2, 24, 63, 64, 65, 100, 128, 129])),
    grouped=st.booleans(),
)
def test_values_and_gradients_equal_those_of_a_dense_mask(
    way: str, lengths: list[int], window: int | None, grouped: bool
) -> None:
    documents = segments(lengths)
    n, groups = sum(lengths), 2 if grouped else 4
    inputs = [heads(4, n, 0), heads(groups, n, 1), heads(groups, n, 2)]
    outgoing = torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(3))

    def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, inputs, outgoing.to(out.dtype))]

    found = with_gradients(attention(*inputs, AttentionMask.of(documents, torch.float32, window)), inputs)
    seen, wide = visible(documents.ids, window), [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(dense(*wide, seen), wide)
    assert_equal_but_rounded(found, with_gradients(dense(*inputs, seen), inputs), exact, terms=1.0)


@pytest.mark.numerics
@pytest.mark.parametrize("window", [1, 64, 65, 100])
@pytest.mark.parametrize("cut", [1, 64, 130, 200])
def test_carried_keys_stand_in_for_the_part_before_a_cut(way: str, window: int, cut: int) -> None:
    n, reach = 300, carried_length(window)
    q, k, v = (heads(2, n, seed) for seed in range(3))
    whole = attention(q, k, v, AttentionMask.of(segments([n]), torch.float32, window))
    before = torch.full((reach,), -1)
    before[max(0, reach - cut) :] = 0
    held_k, held_v = (
        torch.cat([torch.full((max(0, reach - cut), 2, 8), 9.0), x[max(0, cut - reach) : cut]]) for x in (k, v)
    )
    tail = segments([n - cut], np.arange(cut, n))
    mask = AttentionMask.of(tail, torch.float32, window, before=before)
    found = attention(q[cut:], torch.cat([held_k, k[cut:]]), torch.cat([held_v, v[cut:]]), mask)
    exact = dense(q.double(), k.double(), v.double(), visible(torch.zeros(n), window))
    assert_equal_but_rounded(found, whole[cut:], exact[cut:])


@pytest.mark.numerics
def test_carried_keys_are_invisible_to_a_document_that_begins(way: str) -> None:
    q, k, v = (heads(2, 70, seed) for seed in range(3))
    mask = AttentionMask.of(segments([30, 40]), torch.float32, 64, before=torch.zeros(64, dtype=torch.int64))
    held = torch.full((64, 2, 8), 5.0)
    found = attention(q, torch.cat([held, k]), torch.cat([held, v]), mask)
    documents = segments([30, 40])
    exact = dense(q.double(), k.double(), v.double(), visible(documents.ids, 64))
    assert_equal_but_rounded(found, attention(q, k, v, AttentionMask.of(documents, torch.float32, 64)), exact)


def test_stretches_count_documents_and_openings_and_keep_0_for_what_goes_on() -> None:
    opening = torch.tensor([False, False, True, False, False, True])
    assert segment_ids(segments([3, 3]), opening).tolist() == [1, 1, 2, 3, 3, 4]
    continued = segments([3, 3], np.array([7, 8, 9, 0, 1, 2]))
    assert segment_ids(continued, opening).tolist() == [0, 0, 1, 2, 2, 3]
    assert segment_ids(segments([2, 2], np.array([7, 8, 3, 4]))).tolist() == [0, 0, 1, 1]


@pytest.mark.numerics
def test_scores_are_taken_in_fp32_whatever_the_dtype(way: str) -> None:
    q, k, v = (heads(2, 200, seed).detach().bfloat16() for seed in range(3))
    for window in (None, 64):
        found = attention(q, k, v, AttentionMask.of(segments([200]), q.dtype, window))
        wanted = dense(q.float(), k.float(), v.float(), visible(torch.zeros(200), window))
        assert found.dtype == torch.bfloat16
        # Rounded once, at the end: to half a unit in the last place of 8 bits, and what fp32 may differ by before.
        assert ((found - wanted).abs() <= wanted.abs() * 2**-8 + 1e-5).all()


@pytest.mark.parametrize("window", [None, 100])
def test_the_operator_keeps_what_compilers_rely_on(window: int | None) -> None:
    """Shapes, strides and aliases as declared, gradients registered."""
    ids = segments([70, 200]).ids
    inputs = [heads(4, 270, 0), heads(2, 270, 1), heads(2, 270, 2)]
    torch.library.opcheck(tiles._attention, (*inputs, ids, ids, window or 0))


@pytest.mark.parametrize("lengths", [[300], [64] * 8, [1] * 300, [5, 290, 5]])
@pytest.mark.parametrize("window", [None, 1, 100, 512])
def test_tiles_take_each_query_once_and_no_more_keys_than_needed(lengths: list[int], window: int | None) -> None:
    ids = segments(lengths).ids
    found = list(tiles._tiles(ids, ids, window or 0))
    size = tiles.BAND if window else tiles.WHOLE
    assert [tile.queries.start for tile in found] == list(range(0, len(ids), size))
    assert found[-1].queries.stop == len(ids)
    for tile in found:
        assert tile.keys.stop == tile.queries.stop
        assert all(bias.shape[0] == tile.queries.stop - tile.queries.start for _, bias in tile.biases)
        assert ids[tile.keys.start] == ids[tile.queries.start]  # nothing of an earlier document
        if window:
            assert tile.queries.start - tile.keys.start <= carried_length(window)


def test_many_documents_without_a_window_cost_no_more_than_their_own_squares(largest_tensor) -> None:
    for count in (20, 40):
        n = 50 * count
        inputs = [heads(2, n, seed) for seed in range(3)]
        assert (
            largest_tensor(
                lambda x=inputs, c=count: (
                    attention(*x, AttentionMask.of(segments([50] * c), torch.float32)).sum().backward()
                )
            )
            <= n * 16
        )


def kernel(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)) -> Tensor:  # type: ignore[no-untyped-def]
    """What torch 2.11's varlen_attn computes, by its documentation: causal from the bottom right, equal heads."""
    assert q.shape[1] == k.shape[1]
    assert cu_seq_q.diff().max() <= max_q and cu_seq_k.diff().max() <= max_k  # noqa: PT018
    left, right = window_size
    out = []
    for first, last, first_key, last_key in zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:]):
        place = torch.arange(int(last - first))[:, None] + int((last_key - first_key) - (last - first))
        distance = place - torch.arange(int(last_key - first_key))
        seen = (distance >= -right) & ((distance <= left) | (left < 0))
        out.append(dense(q[first:last], k[first_key:last_key], v[first_key:last_key], seen))
    return torch.cat(out)


def newer_kernel(q, k, v, *rest, window_size=(-1, -1), enable_gqa=False, num_splits=None) -> Tensor:  # type: ignore[no-untyped-def]
    """The same with the options of torch 2.13: heads may share keys if they say so, and nothing is split."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert num_splits == 1
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return kernel(q, k, v, *rest, window_size=window_size)


@pytest.mark.numerics
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 24, 100])
@pytest.mark.parametrize("made_of", [kernel, newer_kernel])
def test_the_kernel_is_asked_for_what_tiles_compute_whatever_options_it_has(
    made_of: Callable[..., Tensor], window: int | None, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_kernel", made_of)
    monkeypatch.setattr(module, "_options", module.options_of(made_of))
    n, carried, positions, before = 200, 0, None, None
    if window is not None:  # the first document goes on: 40 of its keys are carried, or as many as there is room for
        carried, positions = carried_length(window), np.concatenate([np.arange(40, 130), [0], np.arange(109)])
        before = torch.full((carried,), -1)
        before[-40:] = 0
    documents = segments([90, 1, 109], positions)
    q, k, v = heads(4, n, 0), heads(groups, carried + n, 1), heads(groups, carried + n, 2)
    wanted = attention(q, k, v, AttentionMask.of(documents, torch.float32, window, before=before))
    found = module._variable_length(q, k, v, AttentionMask(documents, window, before, longest=128))
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("carried", [0, 64])
def test_the_kernel_of_this_torch_takes_what_it_is_given(groups: int, carried: int) -> None:
    """Its arguments and shapes, on tensors without values: it runs on accelerators only."""
    pytest.importorskip("torch.nn.attention.varlen", reason="this build of torch has no such kernel")
    module.load_kernel()
    documents = segments([100, 30])
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (
            torch.empty(count, width, 16, dtype=torch.bfloat16, requires_grad=True)
            for count, width in ((130, 4), (carried + 130, groups), (carried + 130, groups))
        )
        before = torch.zeros(carried, dtype=torch.int64) if carried else None
        found = module._variable_length(q, k, v, AttentionMask(documents, 64 if carried else None, before, longest=128))
        found.sum().backward()
        assert found.shape == q.shape
        assert k.grad is not None and k.grad.shape == k.shape  # noqa: PT018


def test_layers_with_a_window_see_as_much_by_tiles_and_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands are for devices without tiles or kernel; a window that no document fills makes none."""
    documents = segments([5, 300, 40])
    q, k, v = (torch.randn(345, 2, 8) for _ in range(3))
    whole = AttentionMask.of(documents, q.dtype)
    tiles = {window: attention(q, k, v, whole.within(window, q.dtype)) for window in (7, 299, 300, None)}
    monkeypatch.setattr("shared.layers.attention.takes_tiles", lambda _: False)
    whole = AttentionMask.of(documents, q.dtype)
    for window, wanted in tiles.items():
        mask = whole.within(window, q.dtype)
        assert (mask.bias is None) == (window in (300, None))
        torch.testing.assert_close(attention(q, k, v, mask), wanted)
    assert whole.within(1 << 30, q.dtype) is whole
    assert not torch.equal(tiles[299], tiles[300])
