"""What a teacher says lies beside the bytes and patches that it is about, however documents are cut and packed."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.pack_examples import in_parts
from helpers.subword_examples import train_tokenizer
from helpers.token_data import cut as cut_row
from helpers.token_data import random_texts, token_dataset

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.vocabulary import NO_TOKEN
from shared.distillation.losses import BEGINNING
from shared.shards.dataset import Dataset
from shared.vocabulary import BOE, BOS, EOS, IGNORED_LABEL, OFFSET
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack
from trainer.data.packing.teacher import SideBySide, TeacherReader


@dataclass(frozen=True)
class NextByteItself:
    """A teacher that is sure of what follows, and of a symbol that depends on the place in the row."""

    dataset: Dataset
    top: int = 2

    def next_bytes(self, shard: int, row: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        index = self.dataset.shard_index(shard)
        columns = self.dataset.batch(shard, int(index.batch[row]))
        text = np.frombuffer(columns.text(int(index.row[row])), np.uint8).astype(np.int16) + OFFSET
        following = np.append(text, EOS) if index.last[row] else text
        assert 0 <= low < high <= len(following)
        symbols = np.stack([following[low:high], np.full(high - low, row, np.int16)], 1)
        return symbols, np.tile(np.float32([0.0, -1.0, -2.0]), (high - low, 1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return train_tokenizer(folder / "data", folder / "tokenizer", 300)


@pytest.fixture(scope="module")
def dataset(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Long and short documents, some of several rows, in two shards."""
    encoder = SubwordEncoder(tokenizer)
    rows = [cut_row(row, encoder) for row in random_texts(3, 40)]
    pieces = [[part for row in rows[n::2] for part in in_parts(row)] for n in range(2)]
    return token_dataset(tmp_path_factory.mktemp("packs") / "train", tokenizer, pieces)


def packs_of(dataset: Dataset, teacher: TeacherReader, count: int, workers: int = 0) -> list[Pack]:
    loader = PackLoader(dataset, PackLimits(96, 90), packs_per_step=2, workers=workers, teacher=teacher)
    packs = iter(loader)
    return [next(packs) for _ in range(count)]


def test_every_label_has_the_target_of_its_own_byte(dataset: Dataset) -> None:
    continued = ended = 0
    for pack in packs_of(dataset, TeacherReader(NextByteItself(dataset), None), 60):
        targets = pack.batch.teacher
        assert targets is not None
        assert targets.symbols.shape == (96, 2)
        real = pack.batch.labels != IGNORED_LABEL
        assert (targets.symbols[real, 0] == pack.batch.labels[real]).all()
        assert (targets.logs[real, 1] == -1).all()
        continued += int((pack.ids == BOE).sum())
        ended += int(pack.ended.sum())
    assert continued > 5
    assert ended > 20


def test_patches_are_the_tokens_that_the_tokenizer_makes(dataset: Dataset, tokenizer: Path) -> None:
    subwords = SubwordEncoder(tokenizer).subwords
    for pack in packs_of(dataset, TeacherReader(None, tokenizer), 20):
        assert pack.patch_lengths is not None
        assert pack.teacher_tokens is not None
        assert pack.batch.teacher is not None
        assert pack.batch.teacher.symbols.shape == (96, 0)
        starts = np.cumsum(pack.patch_lengths, dtype=np.int64) - pack.patch_lengths
        first = pack.ids[starts]
        assert (pack.teacher_tokens[first == BOS] == BEGINNING).all()
        assert (pack.teacher_tokens[first == BOE] == NO_TOKEN).all()
        text = first >= OFFSET
        assert (subwords.lengths[pack.teacher_tokens[text]] == pack.patch_lengths[text]).all()
        assert (pack.batch.teacher.tokens[len(pack.teacher_tokens) :] == NO_TOKEN).all()


def test_patches_that_are_no_tokens_are_said_to_be_none(tokenizer: Path) -> None:
    reader = TeacherReader(None, tokenizer)
    ids = np.array([BOS, *(byte + OFFSET for byte in b" th zq")], np.int16)
    beginning, known, unknown = reader.tokens(ids, np.array([1, 1, 5], np.uint16)).tolist()
    assert (beginning, known, unknown) == (BEGINNING, 32 + OFFSET, NO_TOKEN)


def test_packs_are_the_same_from_workers_and_after_a_pickle(dataset: Dataset, tokenizer: Path) -> None:
    teacher = TeacherReader(NextByteItself(dataset), tokenizer)
    for ours, sent in zip(packs_of(dataset, teacher, 8), packs_of(dataset, pickle.loads(pickle.dumps(teacher)), 8)):
        for name in ("teacher_symbols", "teacher_logs", "teacher_tokens", "ids"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(sent, name))


def test_shards_of_several_datasets_are_counted_on(dataset: Dataset) -> None:
    one = NextByteItself(dataset)
    both = SideBySide([one, one], [2, 4])
    for shard in range(2):
        np.testing.assert_array_equal(one.next_bytes(shard, 1, 0, 1)[0], both.next_bytes(shard + 2, 1, 0, 1)[0])
    assert both.top == 2
