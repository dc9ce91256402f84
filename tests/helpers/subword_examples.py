"""A small text with words that are worth merging, and a tokenizer trained on it."""

import random
from pathlib import Path

from pipeline.rewriting.tokenizer import write_tokenizer
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard

WORDS = [b"the", b"tokens", b"text", b"it's", b"merge", "größer".encode(), "大きさ".encode(), b"12345", b"and", b"so"]
LINES = [b" ".join(random.Random(seed).choices(WORDS, k=9)) for seed in range(40)]


def text_dataset(folder: Path, split: str, texts: list[bytes]) -> Path:
    """An unpatched dataset of these documents in two subsets."""
    rows = [Row(f"{split}-{number}", ("a", "b")[number % 2], text) for number, text in enumerate(texts)]
    entry = write_shard(folder, "shard-00000", rows, "arrow", "none")
    none = PatchingSettings(rule="none")
    identity = DatasetIdentity(
        split=split, format="arrow", sidecar="none", patching=none, entropy_model=None, source="a test"
    )
    commit_dataset(folder, identity, [entry])
    return folder


def train_tokenizer(data: Path, out: Path, vocabulary: int) -> Path:
    """The folder of a tokenizer of so many ids, trained on the lines."""
    write_tokenizer(open_dataset(text_dataset(data, "train", [*LINES, b"\xff\xfe binary " * 4])), vocabulary, out)
    return out
