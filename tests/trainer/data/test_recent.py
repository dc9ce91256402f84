"""What was used most recently is kept, within its memory."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.pack_examples import document, make_dataset

from shared.shards.document import Row
from trainer.data.packing.slices import SliceReader
from trainer.data.recent import Recent


def test_the_least_recently_used_go_first_and_the_latest_always_stays() -> None:
    made = []

    def make(key: int) -> np.ndarray:
        made.append(key)
        return np.zeros(key, np.uint8)

    recent = Recent(100, make)
    for key in (40, 50, 40, 30, 40, 50, 500, 500, 40):
        assert len(recent[key]) == key
    assert made == [40, 50, 30, 50, 500, 40]


def test_a_reader_that_is_dropped_leaves_nothing_behind(tmp_path: Path) -> None:
    """Up to its whole cache, for the time until the garbage collector finds it."""
    reader = SliceReader(make_dataset(tmp_path, [[document("a", "x", b"text")]]))
    left = weakref.ref(reader)
    gc.disable()
    try:
        del reader
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "rows",
    [
        [document("a" * 1000, "x", b"a name longer than its text")] * 200,
        [document("a", "x", b"")] * 5000,
        [Row("a", "x", b"text", 0, document("", "", b"text").patch_lengths, meta='{"a": "' + "b" * 900 + '"}')] * 200,
    ],
    ids=["long ids", "short rows", "metadata"],
)
def test_what_a_batch_holds_is_counted_whole(tmp_path: Path, rows: list[Row]) -> None:
    dataset = make_dataset(tmp_path, [rows])
    dataset.shard_index(0)
    before = pa.system_memory_pool().bytes_allocated()
    batch = dataset.batch(0, 0)
    held = pa.system_memory_pool().bytes_allocated() - before
    assert 0.8 * held <= batch.nbytes <= 1.2 * held
