"""Compressors on the bytes of a dataset: real streams, that give the bytes back."""

import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from helpers.pack_examples import SPECIALS, in_parts, make_dataset, random_documents, with_spans
from helpers.shard_examples import by_subset

from shared.vocabulary import token_bytes
from trainer.evaluation.baselines.compressors import compress, stream_size, target_texts


def _zstd(text: bytes) -> int:
    stream = zstandard.ZstdCompressor(level=19).compressobj()
    written = stream.compress(text) + stream.flush()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(written) == text
    return len(written)


SIZES = {
    "gzip -9": lambda text: len(zlib.compress(text, 9, 16 + zlib.MAX_WBITS)),
    "zstd -19": _zstd,
    "xz -9": lambda text: len(lzma.compress(text, preset=9)),
}


def test_streams_are_those_of_each_compressor(tmp_path: Path) -> None:
    rows = by_subset(random_documents(3, 6, mean=60))
    stored = [part for row in rows for part in in_parts(row)]
    found = compress(make_dataset(tmp_path, [stored]))
    texts = [row.text for row in rows]
    size = sum(map(len, texts))
    for one in found:
        measured = SIZES[one.compressor]
        assert one.together == pytest.approx(8 * measured(b"".join(texts)) / size, rel=1e-6)
        assert one.alone == pytest.approx(8 * sum(map(measured, texts)) / size, rel=1e-6)
        assert one.together < one.alone


def test_what_is_not_trained_on_is_not_compressed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [with_spans(row, rng) for row in by_subset(random_documents(3, 20))]
    data = make_dataset(tmp_path, [rows], specials=SPECIALS)
    texts = list(target_texts(data))
    assert texts == [token_bytes(row.tokens(False)[row.target_mask(False)]) for row in rows]
    assert sum(map(len, texts)) == data.manifest.totals.target_bytes


def test_a_stream_of_nothing_is_its_header() -> None:
    assert stream_size("gzip -9", [], 0) == 20
    assert all(stream_size(one, [b""], 0) == stream_size(one, [], 0) for one in ("gzip -9", "zstd -19", "xz -9"))
