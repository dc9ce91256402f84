"""Targets of datasets from a teacher of random logits, and the folder that holds them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.subword_examples import train_tokenizer
from helpers.tiny_runs import STACK
from shared.distillation.byte_targets import TokenTree
from shared.distillation.stored_targets import StoredTargets, TargetFormat, stored_targets
from shared.distillation.targets_folder import Targets, TargetsIdentity, TeacherIdentity, open_targets
from shared.distillation.targets_writer import TargetsWriter, commit_targets
from shared.model_folder.files import build_model, save_model
from shared.model_settings import FlatSettings
from shared.models.initialise import initialise
from shared.shards.dataset import Dataset
from shared.vocabulary import EOS

TOKENS: list[bytes | None] = [None, *(bytes([byte]) for byte in range(256)), b"re", b"ret", b"in", b"an"]
"""Of the teacher; its one special id ends a document."""
TREE = TokenTree(TOKENS)
TEACHER = TeacherIdentity(sha256="0" * 64, vocabulary=len(TOKENS), tokenizer="1" * 64, context=8)


def token_ids(text: bytes) -> np.ndarray:
    """int64 [N]: the longest token each time, and the end."""
    found, at = [], 0
    while at < len(text):
        size = next(size for size in (3, 2, 1) if text[at : at + size] in TOKENS)
        found.append(TOKENS.index(text[at : at + size]))
        at += size
    return np.array([*found, 0])


def targets_of(text: bytes, form: TargetFormat) -> StoredTargets:
    """Those of a document: what the teacher says follows from the text alone."""
    ids = token_ids(text)
    generator = torch.Generator().manual_seed(len(text) + sum(text))
    logits = torch.randn(len(ids), len(TOKENS), generator=generator, dtype=torch.float64) * 3
    return stored_targets(TREE.targets(logits, ids), [EOS], form)


def document_texts(dataset: Dataset, shard: int) -> Iterator[bytes]:
    """The documents of a shard, whole."""
    text = b""
    index = dataset.shard_index(shard)
    rows = (row for batch in range(dataset.batch_count(shard)) for row in dataset.batch_rows(shard, batch, False))
    for row, last in zip(rows, index.last):
        text += row.text
        if last:
            yield text
            text = b""


def write_targets(folder: Path, dataset: Dataset, form: TargetFormat | None = None) -> Targets:
    """A finished folder, opened."""
    form = form or TargetFormat(top=4)
    entries = []
    for shard in range(dataset.shard_count):
        with TargetsWriter(folder, dataset, shard, form) as writer:
            for text in document_texts(dataset, shard):
                writer.add(targets_of(text, form))
        entries.append(writer.entry)
    commit_targets(folder, TargetsIdentity(teacher=TEACHER, form=form), entries, dataset)
    return open_targets(folder, dataset)


def teacher_folder(folder: Path, **settings: Any) -> Path:
    """An untrained flat model over byte-pair tokens, whose probabilities are far from even."""
    tokenizer = train_tokenizer(folder / "seen", folder / "tokenizer", 300)
    chosen = FlatSettings.model_validate(STACK | {"vocabulary": 300} | settings)
    model = build_model(chosen)
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    save_model(model, chosen, folder / "teacher", tokenizer=tokenizer)
    return folder / "teacher"
