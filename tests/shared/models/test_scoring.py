"""Laws 2, 3 and 5 for entropies: the same bits alone, packed, with any neighbours, at any place, across any cut."""

import copy

import numpy as np
import pytest
import torch
from helpers.model_examples import chat_tokens, entropy_model, entropy_settings, random_text
from helpers.rounding import assert_equal_but_rounded, in_fp64
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.layers.batch import segments
from shared.model_settings import EntropyModelSettings
from shared.models.entropy_model import EntropyModel, entropy
from shared.models.scoring import Scorer, probe
from shared.vocabulary import document_tokens

pytestmark = pytest.mark.numerics

DTYPES = ("float32", "bfloat16")
STREAM = 256
MODELS = {
    "plain": entropy_settings(),
    "newline reset": entropy_settings(newline_reset=True),
    "grouped heads, window of two bands": entropy_settings(heads=4, kv_heads=1, window=128, width=64),
    "a window that ends within a band": entropy_settings(window=100),
    "a window of the byte alone": entropy_settings(window=1),
}
SCORERS = {(name, dtype): Scorer(entropy_model(s), STREAM, dtype) for name, s in MODELS.items() for dtype in DTYPES}


def tokens(length: int, seed: int) -> np.ndarray:
    return document_tokens(random_text(length, seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(
    length=st.one_of(st.integers(0, 70), st.integers(0, 900)),
    before=st.lists(st.one_of(st.integers(0, 66), st.integers(0, 600)), max_size=4),
    after=st.lists(st.integers(0, 200), max_size=2),
    seed=st.integers(0, 2**32),
)
def test_entropies_of_a_document_are_the_same_bits_alone_and_between_any_neighbours(
    name: str, dtype: str, length: int, before: list[int], after: list[int], seed: int
) -> None:
    scorer = SCORERS[name, dtype]
    document = tokens(length, seed)
    neighbours = [tokens(n, seed + 1 + i) for i, n in enumerate(before + after)]
    (alone,) = scorer.score([document])
    packed = list(scorer.score([*neighbours[: len(before)], document, *neighbours[len(before) :]]))
    assert len(packed) == len(neighbours) + 1
    np.testing.assert_array_equal(alone.view(np.int32), packed[len(before)].view(np.int32))


def test_the_bits_hold_where_activations_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that multiply bfloat16 faster than fp32."""
    monkeypatch.setattr("shared.layers.blocks._multiplies_bfloat16", lambda: True)
    scorer = Scorer(entropy_model(), STREAM, "bfloat16")
    documents = [tokens(n, n) for n in (5, 300, 64, 63, 62, 700)]
    packed = list(scorer.score(documents))
    for i in range(len(documents)):
        np.testing.assert_array_equal(next(scorer.score([documents[i]])), packed[i])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_hold_at_a_size_where_products_are_split_between_threads(threads: int, dtype: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = entropy_model(EntropyModelSettings(width=128, layers=4, heads=4, window=128))
        scorer = Scorer(model, 64 * 3 * 16, dtype)
        documents = [tokens(n, n) for n in (5, 70, 1900, 333, 8000, 64, 63, 62, 2500)]
        packed = list(scorer.score(documents))
        for order in ([8, 2, 4, 0, 1, 3, 5, 6, 7], *([i] for i in range(9))):
            for i, found in zip(order, scorer.score([documents[i] for i in order])):
                np.testing.assert_array_equal(found, packed[i])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [0, 1, 62, 63, 64, 254, 255, 256, 257, 1000])
def test_streams_with_carried_state_equal_one_pass_over_the_whole_document(name: str, length: int) -> None:
    document = tokens(length, seed=length)
    model = entropy_model(MODELS[name])
    ids = torch.from_numpy(document[:-1].astype(np.int64))

    def run(model: EntropyModel) -> torch.Tensor:
        return entropy(model(ids, segments([len(ids)])))

    with torch.no_grad():
        whole, exact = run(model), in_fp64(model, run)
    (streamed,) = SCORERS[name, "float32"].score([document])
    assert streamed.dtype == np.float32
    assert streamed.shape == (length + 1,)
    assert_equal_but_rounded(streamed, whole, exact)


@pytest.mark.parametrize("window", [1, 64, 77])
@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_carried_state_may_be_cut_anywhere_so_that_generation_finds_the_same_entropies(size: int, window: int) -> None:
    """Law 2: byte by byte, or in slices of any length, from nothing but the carry."""
    model = entropy_model(entropy_settings(newline_reset=True, window=window))
    ids = torch.from_numpy(tokens(120, 5)[:-1].astype(np.int64))
    carry, parts = model.empty_carry(), []
    with torch.no_grad():
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            logits, carry = model.forward_with_cache(
                part, segments([len(part)], np.arange(start, start + len(part))), carry
            )
            parts.append(logits)
        whole = model(ids, segments([len(ids)]))
        exact = in_fp64(model, lambda model: model(ids, segments([len(ids)])))
    assert_equal_but_rounded(torch.cat(parts), whole, exact)


def test_a_newline_opens_a_new_context_in_which_only_the_position_goes_on() -> None:
    model = entropy_model(entropy_settings(newline_reset=True, layers=2))
    first, second = b"some line before it", b"\nthe line that counts"
    ids = torch.from_numpy(document_tokens(first + second)[:-1].astype(np.int64))
    other = ids.clone()
    other[1 : 1 + len(first)] = torch.from_numpy(document_tokens(b"something else here")[1:-1].astype(np.int64))
    tail = ids[1 + len(first) :]
    positions = np.arange(1 + len(first), len(ids))
    with torch.no_grad():
        found, changed = (model(x, segments([len(x)]))[1 + len(first) :] for x in (ids, other))
        alone = model(tail, segments([len(tail)], positions))
        exact = in_fp64(model, lambda model: model(tail, segments([len(tail)], positions)))
    assert torch.equal(found, changed)
    assert_equal_but_rounded(found, alone, exact)
    plain = entropy_model(entropy_settings())
    with torch.no_grad():
        a, b = (plain(x, segments([len(x)])) for x in (ids, other))
    assert not torch.equal(a[-1], b[-1])


def test_entropy_is_that_of_the_softmax_in_nats() -> None:
    logits = torch.randn(50, 260, generator=torch.Generator().manual_seed(0)) * 8
    oracle = torch.distributions.Categorical(logits=logits.double()).entropy()
    plain = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    assert_equal_but_rounded(entropy(logits), plain, oracle)
    assert entropy(torch.zeros(1, 260)).item() == pytest.approx(np.log(260))
    certain = torch.full((1, 260), -1e4)
    certain[0, 7] = 0
    assert entropy(certain).item() == 0


def test_documents_come_in_order_while_later_ones_are_still_unread() -> None:
    read = []

    def source():
        for i in range(40):
            read.append(i)
            yield tokens(100, i)

    results = SCORERS["plain", "float32"].score(source())
    next(results)
    assert len(read) <= 4  # one stream holds two documents of 101 inputs
    assert sum(1 for _ in results) == 39


def test_the_probe_tells_models_apart_and_repeats() -> None:
    scorer = SCORERS["plain", "float32"]
    assert probe(scorer) == probe(Scorer(scorer.model, STREAM)) != probe(Scorer(entropy_model(seed=1), STREAM))
    assert probe(scorer) != probe(SCORERS["plain", "bfloat16"])
    assert len(probe(scorer)) == 64


def test_scoring_leaves_the_model_as_it_is_and_no_documents_give_nothing() -> None:
    model = entropy_model()
    before = copy.deepcopy(model.state_dict())
    scorer = Scorer(model, STREAM, "bfloat16")
    assert list(scorer.score([])) == []
    assert all(torch.equal(before[k], v) and v.dtype == torch.float32 for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("length", [0, -64, 100])
def test_a_stream_that_is_no_multiple_of_the_band_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"stream_length {length} .*64"):
        Scorer(entropy_model(), length)


@pytest.mark.parametrize("in_flight", [2, 5])
def test_streams_in_flight_change_nothing(in_flight: int) -> None:
    scorer = SCORERS["plain", "float32"]
    documents = [tokens(size, size) for size in (5, 700, 1, 64, 300, 90, 1200)]
    ahead = Scorer(scorer.model, STREAM, in_flight=in_flight)
    for some in (documents, documents[:1], []):
        for one, other in zip(scorer.score(some), ahead.score(some), strict=True):
            np.testing.assert_array_equal(one, other)


def test_named_special_ids_are_scored_as_the_reserved_one() -> None:
    scorer = Scorer(entropy_model(), 256)
    tokens = chat_tokens(300, seed=1)
    (named,), (reserved,) = (list(scorer.score([ids])) for ids in (tokens, np.where(tokens >= 260, 3, tokens)))
    assert (tokens >= 260).any()
    assert named.tobytes() == reserved.tobytes()
