"""Hash n-gram embeddings: golden values, an oracle in whole numbers, isolation."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.layers.batch import segments
from shared.layers.ngrams import PRIMES, NgramEmbedding, ngram_rows
from shared.model_settings import NgramSettings

GOLDEN_IDS = [1, 76, 105, 112, 112, 115, 2]
GOLDEN = {
    3: [443987, 124875, 393970, 386145, 358223, 190185, 428891],
    8: [172383, 205585, 456240, 129346, 299568, 322649, 281399],
}


def oracle(ids: list[int], size: int, prime: int, rows: int) -> list[int]:
    """Python's unbounded integers, wrapped to int64 at the end."""
    out = []
    for t in range(len(ids)):
        window = [ids[i] if i >= 0 else 0 for i in range(t - size + 1, t + 1)]
        total = sum(token * prime**j for j, token in enumerate(window))
        out.append(((total + 2**63) % 2**64 - 2**63) % rows)
    return out


def test_hashes_are_those_of_the_released_model() -> None:
    ids = torch.tensor(GOLDEN_IDS)
    rows = ngram_rows(ids, segments([len(ids)]), NgramSettings(sizes=(3, 8), rows=500_002))
    assert rows[:, 0].tolist() == GOLDEN[3]
    assert (rows[:, 1] - 500_002).tolist() == GOLDEN[8]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 259), min_size=1, max_size=12), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    functions=st.integers(1, 11),
    rows=st.integers(1, 1 << 20),
)
def test_each_document_hashes_as_if_alone_with_zeros_before_it(
    texts: list[list[int]], sizes: list[int], functions: int, rows: int
) -> None:
    flat = torch.tensor([token for text in texts for token in text])
    choice = NgramSettings(sizes=tuple(sizes), rows=rows, functions=functions)
    found = ngram_rows(flat, segments([len(text) for text in texts]), choice)
    for function in range(functions):
        for i, size in enumerate(sizes):
            table = function * len(sizes) + i
            wanted = [row for text in texts for row in oracle(text, size, PRIMES[function], rows)]
            assert (found[:, table] - table * rows).tolist() == wanted


def test_the_embedding_is_the_sum_over_tables_and_its_gradient_reaches_the_rows_read() -> None:
    choice = NgramSettings(sizes=(2, 3), rows=50, functions=2)
    module = NgramEmbedding(choice, 8)
    ids, documents = torch.tensor(GOLDEN_IDS), segments([4, 3])
    rows = ngram_rows(ids, documents, choice)
    found = module(ids, documents)
    torch.testing.assert_close(found, module.weight[rows].sum(1))
    found.sum().backward()
    touched = torch.zeros(200).index_add(0, rows.flatten(), torch.ones(rows.numel()))
    torch.testing.assert_close(module.weight.grad, touched[:, None].expand(-1, 8))


def test_no_sizes_means_no_embedding() -> None:
    module = NgramEmbedding(NgramSettings(sizes=()), 8)
    assert torch.equal(module(torch.tensor([1, 2]), segments([2])), torch.zeros(2, 8))
