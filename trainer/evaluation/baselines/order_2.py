"""What a model has to beat, on the same text bytes: an order-2 byte model counted on the training split, and xz.

V = 260 ids, every named special id is RESERVED. Every target of a document counts, EOS included, where the loss is on;
contexts begin with BOS.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, stored_settings
from shared.model_settings import CountsSettings
from shared.shards.content import with_last
from shared.shards.in_memory import Documents
from shared.vocabulary import BOS, OFFSET, VOCABULARY_SIZE, without_named
from trainer.evaluation.baselines.compressors import stream_size, target_texts
from trainer.evaluation.compatibility import score_folder
from trainer.evaluation.scores import Column
from trainer.metrics.subset_score import NATS_PER_BIT, bits_per_byte, total_of

CHUNK = 2**24
"""Tokens looked at together; bounds memory, changes nothing."""
TARGETS = VOCABULARY_SIZE - OFFSET + 1
"""Ids that can be a target: every byte, and EOS."""


def token_chunks(dataset: Documents) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All documents one after the other: contexts and targets int16 [3, N], and the subset of each int32 [N].

    Rows of the first array: the token two before, the token before, the target. Before a document there is BOS only.
    """
    codes = {name: code for code, name in enumerate(dataset.subset_names)}
    pieces: list[np.ndarray] = []
    is_target: list[np.ndarray] = []
    owners: list[int] = []
    held, before = 0, np.full(2, BOS, np.int16)
    for row, last in with_last(dataset.rows()):
        pieces.append(without_named(row.tokens(last)))
        is_target.append(row.target_mask(last))
        owners.append(codes[row.subset])
        held += len(pieces[-1])
        if held >= CHUNK:
            yield _contexts(before, pieces, is_target, np.array(owners, np.int32))
            before = np.concatenate([before, *pieces])[-2:]
            pieces, is_target, owners, held = [], [], [], 0
    if pieces:
        yield _contexts(before, pieces, is_target, np.array(owners, np.int32))


def _contexts(
    before: np.ndarray, pieces: list[np.ndarray], is_target: list[np.ndarray], subsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.concatenate([before, *pieces])
    owner = np.repeat(subsets, [len(piece) for piece in pieces])
    first, second, target = tokens[:-2].copy(), tokens[1:-1], tokens[2:]
    first[second == BOS] = BOS  # not the EOS of the document before
    counted = (target != BOS) & np.concatenate(is_target)
    return np.stack([first, second, target])[:, counted], owner[counted]


class Order2Model:
    """Next-byte probabilities from the two tokens before, interpolated down to order 0 (Witten and Bell 1991, C).

    p(w | h) = (count(h w) + kinds(h) p(w | shorter h)) / (count(h) + kinds(h)), kinds(h) being how many different
    tokens were seen after h; below order 0 all targets are equally likely.
    """

    def __init__(self, dataset: Documents) -> None:
        """Count a dataset: 140 MB of counts, whatever its size."""
        shape = (VOCABULARY_SIZE,) * 3
        self._counts = np.zeros(math.prod(shape), np.int64)
        self._targets = TARGETS + bool(dataset.specials)
        for contexts, _ in token_chunks(dataset):
            flat = np.ravel_multi_index(tuple(contexts.astype(np.int64)), shape)
            self._counts += np.bincount(flat, minlength=len(self._counts))
        by_order = self._counts.reshape(shape)
        self._orders = [by_order, by_order.sum(axis=0), by_order.sum(axis=(0, 1))]
        self._seen = [counts.sum(axis=-1) for counts in self._orders]
        self._kinds = [(counts > 0).sum(axis=-1) for counts in self._orders]

    def probabilities(self, contexts: np.ndarray) -> np.ndarray:
        """float64 [N] for tokens int16 [3, N]: of each target after the two tokens before it."""
        p = np.full(contexts.shape[1], 1 / self._targets)
        first, second, target = contexts.astype(np.int64)
        for order, history in ((2, ()), (1, (second,)), (0, (first, second))):
            kinds = self._kinds[order][history]
            mixed = (self._orders[order][(*history, target)] + kinds * p) / np.maximum(
                self._seen[order][history] + kinds, 1
            )
            p = np.where(kinds > 0, mixed, p)  # nothing was seen after this history: the shorter one alone
        return p

    def baseline(self, dataset: Documents) -> Column:
        """Bits per byte on a dataset."""
        nats = np.zeros(len(dataset.subset_names))
        for contexts, subset in token_chunks(dataset):
            nats += np.bincount(subset, -np.log(self.probabilities(contexts)), len(nats))
        totals = dataset.subsets
        figures = {
            name: bits_per_byte(float(own), totals[name].target_bytes) for name, own in zip(dataset.subset_names, nats)
        }
        return Column("order-2", bits_per_byte(float(nats.sum()), dataset.totals.target_bytes), figures)


def entropy_model_baseline(
    folder: Path, dataset: Documents, tokens: int, device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> list[Column]:
    """The entropy model that a folder carries, on the same text; nothing if it carries none, or one that counts."""
    own = folder / ENTROPY_MODEL_FOLDER
    if not own.is_dir() or isinstance(stored_settings(own), CountsSettings):
        return []
    scores = score_folder(own, dataset, tokens, device, dtype).by_subset()
    by_subset = {name: score.bits_per_byte for name, score in scores.items()}
    return [Column("entropy model", total_of(scores).bits_per_byte, by_subset)]


def xz_baseline(dataset: Documents) -> Column:
    """All targets of the texts, one after the other in one `xz -9` stream; bits a byte of it."""
    text = dataset.totals.target_bytes
    size = stream_size("xz -9", target_texts(dataset), text)
    return Column("xz -9", bits_per_byte(8 * size * NATS_PER_BIT, text))
