"""The baselines, against plain Python."""

import lzma
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from helpers.pack_examples import document, in_parts, make_dataset, random_documents

import trainer.evaluation.baselines.order_2
from shared.shards.dataset import Dataset
from shared.vocabulary import BOS, EOS, OFFSET, VOCABULARY_SIZE, document_tokens
from trainer.evaluation.baselines.order_2 import Order2Model, xz_baseline


def plain_order2(training: list[bytes], text: bytes) -> float:
    """Nats of a document under interpolated Witten-Bell, by dictionaries."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for one in training:
        tokens = [BOS, *document_tokens(one).tolist()]
        for i in range(2, len(tokens)):
            for history in ((), (tokens[i - 1],), (tokens[i - 2], tokens[i - 1])):
                counts[history][tokens[i]] += 1

    def probability(history: tuple[int, ...], token: int) -> float:
        shorter = probability(history[1:], token) if history else 1 / 257
        seen = counts.get(history, Counter())
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (sum(seen.values()) + len(seen))

    tokens = [BOS, *document_tokens(text).tolist()]
    return -sum(math.log(probability((tokens[i - 2], tokens[i - 1]), tokens[i])) for i in range(2, len(tokens)))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    rows = random_documents(6, 80, mean=40)
    parts = [part for row in rows[:50] for part in (in_parts(row) if len(row.text) > 50 else [row])]
    folder = tmp_path_factory.mktemp("splits")
    odd = document("odd", "d", b"\x80\x81 never seen")
    return make_dataset(folder / "train", [parts]), make_dataset(folder / "validation", [[*rows[50:], odd]])


@pytest.mark.parametrize("chunk", [2**24, 199])
def test_the_order_2_model_is_interpolated_witten_bell(
    splits: tuple[Dataset, Dataset], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By subset, with EOS and BOS contexts, and whatever the chunks that it is counted in."""
    monkeypatch.setattr(trainer.evaluation.baselines.order_2, "CHUNK", chunk)
    train, validation = splits
    texts: list[bytes] = []
    for row in train.rows():
        if row.part:
            texts[-1] += row.text
        else:
            texts.append(row.text)
    nats: dict[str, float] = defaultdict(float)
    for row in validation.rows():
        nats[row.subset] += plain_order2(texts, row.text)
    found = Order2Model(train).baseline(validation)
    totals = validation.manifest
    for name, value in nats.items():
        assert found.by_subset[name] == pytest.approx(value / math.log(2) / totals.subsets[name].bytes)
    assert found.total == pytest.approx(sum(nats.values()) / math.log(2) / totals.totals.bytes)


def test_the_order_2_model_gives_probabilities(splits: tuple[Dataset, Dataset]) -> None:
    model = Order2Model(splits[0])
    targets = np.array([EOS, *range(OFFSET, VOCABULARY_SIZE)], np.int16)
    for first, second in ((BOS, BOS), (BOS, ord("a") + OFFSET), (ord("a") + OFFSET, ord(" ") + OFFSET), (200, 201)):
        contexts = np.stack([np.full(257, first, np.int16), np.full(257, second, np.int16), targets])
        p = model.probabilities(contexts)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1)


def test_xz_is_that_of_the_command(splits: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    validation = splits[1]
    text = b"".join(row.text for row in validation.rows())
    found = xz_baseline(validation)
    assert found.total == pytest.approx(8 * len(lzma.compress(text, preset=9)) / len(text))
    assert found.by_subset == {}
