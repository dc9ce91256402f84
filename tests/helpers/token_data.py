"""Datasets of byte-pair tokens, made as users make them, and what their packs must be, in plain Python."""

from pathlib import Path
from typing import Any

import numpy as np

from helpers.pack_examples import make_dataset, random_documents
from helpers.tiny_runs import STACK
from pipeline.__main__ import main as pipeline
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import TOKENIZER_FILE, copy_tokenizer, load_making
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.vocabulary import BOE, BOS, EOS, IGNORED_LABEL

VOCABULARY = 290
FLAT = STACK | {"kind": "flat", "vocabulary": VOCABULARY}
__all__ = ["FLAT", "TOKENIZER_FILE", "VOCABULARY"]


def in_tokens(plain: Path, folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """A dataset of the documents of an unpatched one, cut into tokens that are targets from its training split."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    learn = ["tokenizer", plain, "--vocabulary", vocabulary, "--out", tokenizer]
    assert pipeline([*map(str, learn)]) == 0
    cut = ["recut", plain, "--rule", "bpe", "--tokenizer", tokenizer, "--out", folder, "--workers", 1]
    assert pipeline([*map(str, cut)]) == 0
    return folder


def patching_of(tokenizer: Path) -> PatchingSettings:
    making = load_making(tokenizer)
    return PatchingSettings(rule="bpe", tokenizer=making.identity, max_length=making.longest)


def cut(row: Row, encoder: SubwordEncoder) -> Row:
    """The same document with tokens as its patches."""
    lengths = np.concatenate([[1], encoder.lengths(row.text), [1]]).astype(np.uint16)
    return Row(row.id, row.subset, row.text, 0, lengths, spans=row.spans)


def token_dataset(folder: Path, tokenizer: Path, pieces: list[list[Row]]) -> Dataset:
    """A finished dataset of rows that are cut already."""
    dataset = make_dataset(folder, pieces, patching=patching_of(tokenizer))
    copy_tokenizer(tokenizer, dataset.tokenizer, load_making(tokenizer).identity)
    return dataset


def random_texts(seed: int, count: int) -> list[Row]:
    """Documents of random bytes and words, some empty."""
    rows = random_documents(seed, count, 40, PatchingSettings(rule="none"))
    words = [b"the patch begins ", b"where the next ", "größer ".encode(), b"\xff", b"hard to guess\n"]
    rng = np.random.default_rng(seed)
    return [
        Row(row.id, row.subset, row.text[::3] + b"".join(rng.choice(np.array(words, object), rng.integers(0, 9))))
        if number % 5
        else row
        for number, row in enumerate(rows)
    ]


def expected_slice(row: Row, start: int, stop: int, encoder: SubwordEncoder) -> dict[str, Any]:
    """The slice of inputs [start, stop) of a document, from the definitions, token by token."""
    trained = [True] * (len(row.text) + 2)
    if row.spans is not None:
        trained = [True, *row.spans.target_mask().tolist(), row.spans.last_loss]
    ids, labels, at, bytes = [BOE if start else BOS], [], 1, 0
    for token in encoder.ids(row.text).tolist():
        size = int(encoder.subwords.lengths[token])
        if start <= at < stop:
            assert at + size <= stop, "a slice ends where a token ends"
            ids.append(token)
            labels.append(token if trained[at] else IGNORED_LABEL)
            bytes += size * trained[at]
        at += size
    ended = stop == len(row.text) + 1
    labels.append(EOS if ended and trained[-1] else IGNORED_LABEL)
    return {"ids": ids, "labels": labels, "bytes": bytes, "targets": bytes + (labels[-1] == EOS)}
