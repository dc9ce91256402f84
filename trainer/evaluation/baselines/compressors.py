"""What general compressors make of the same bytes, to be read beside a model's bits per byte.

A model's bits per byte are what an arithmetic coder driven by it would write, to within a few bits a stream, model
left out; documents are coded each alone, since the model sees no other.
"""

import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import zstandard

from shared.io.display.tables import aligned
from shared.shards.in_memory import Documents, whole_documents
from shared.vocabulary import token_bytes

Compressor = Literal["gzip -9", "zstd -19", "xz -9"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)
"""At the levels that the commands of these names call so."""


@dataclass(frozen=True)
class Compression:
    """A compressor on a dataset, in bits a byte of text."""

    compressor: Compressor
    together: float
    """All documents one after the other in one stream."""
    alone: float
    """Each document in a stream of its own, headers included."""


def target_texts(dataset: Documents) -> Iterator[bytes]:
    """The targets of each document: its text, or what its spans leave of it. Raises DatasetError."""
    for row in whole_documents(dataset):
        yield token_bytes(row.tokens(False)[row.target_mask(False)]) if row.spans else row.text


def compress(dataset: Documents) -> list[Compression]:
    """All compressors on a dataset; it is read twice for each. Raises DatasetError."""
    bits_per_byte = 8 / max(dataset.totals.target_bytes, 1)
    return [
        Compression(
            compressor,
            stream_size(compressor, target_texts(dataset), dataset.totals.target_bytes) * bits_per_byte,
            sum(stream_size(compressor, [text], len(text)) for text in target_texts(dataset)) * bits_per_byte,
        )
        for compressor in COMPRESSORS
    ]


def stream_size(compressor: Compressor, texts: Iterable[bytes], text_bytes: int) -> int:
    """Bytes of one stream that holds texts, ``text_bytes`` together, one after the other; in memory for one of them."""
    stream = _opened(compressor, text_bytes)
    return sum(len(stream.compress(text)) for text in texts) + len(stream.flush())


def _opened(compressor: Compressor, text_bytes: int) -> Any:
    if compressor == "gzip -9":
        return zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    if compressor == "zstd -19":
        return zstandard.ZstdCompressor(level=19).compressobj()
    # The level's own dictionary is 64 MiB, to be set up for the shortest text; more than the text changes nothing.
    dictionary = min(max(text_bytes, 2**12), 2**26)
    return lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}])


def table(found: Sequence[Compression], model: float) -> str:
    """Bits a byte of each compressor, in one stream and document by document, under the model's own."""
    lines = [
        ("the model, ideally coded", "-", f"{model:.4f}"),
        *((one.compressor, f"{one.together:.4f}", f"{one.alone:.4f}") for one in found),
    ]
    return aligned(["bits/byte as compressed", "one stream", "each document alone"], lines)
