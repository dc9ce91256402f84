"""What bytes are by how they begin: compressed, a table, an archive, an image, text in some encoding."""

import re
import struct
from typing import Literal

HEAD = 2**16
"""Bytes of content that are looked at: more than the first line of most files of JSON lines has."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Of UTF-8."""
Compressor = Literal["gzip", "zstd", "bzip2", "xz"]
Container = Literal["parquet", "arrow", "wet", "webdataset"]
_COMPRESSORS: tuple[tuple[bytes, Compressor], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
)
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL)
_ZSTD_SKIPPED = range(0x184D2A50, 0x184D2A60)
_FOREIGN = {
    "zip archive": (b"PK\x03\x04", b"PK\x05\x06"),
    "PNG image": (b"\x89PNG",),
    "JPEG image": (b"\xff\xd8\xff",),
    "GIF image": (b"GIF8",),
    "PDF": (b"%PDF-",),
    "program": (b"\x7fELF", b"MZ\x90\0", b"\xca\xfe\xba\xbe"),
    "7z archive": (b"7z\xbc\xaf\x27\x1c",),
    "rar archive": (b"Rar!\x1a\x07",),
    "lz4": (b"\x04\x22\x4d\x18",),
    "snappy": (b"\xff\x06\0\0sNaPpY",),
    "SQLite database": (b"SQLite format 3\0",),
    "HDF5": (b"\x89HDF\r\n\x1a\n",),
    "NumPy array": (b"\x93NUMPY",),
    "ORC table": (b"ORC",),
    "Avro table": (b"Obj\x01",),
    "encrypted Parquet": (b"PARE",),
    "Feather of version 1": (b"FEA1",),
    "pickle": (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    "font": (b"wOFF", b"wOF2"),
    "sound": (b"OggS", b"ID3", b"fLaC"),
    "note of an editor": (b"b0VIM ",),
}
_BINARY_AFTER = 8
"""A short magic word of letters counts only where NUL or other bytes that no text has follow in so many KiB."""
_UTF16_MARKS, _UTF32_MARKS = (b"\xff\xfe", b"\xfe\xff"), (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_NO_TEXT_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1a\x1b")) + b"\x7f"
_TAR_BLOCK = 512
_CONTAINERS: dict[Container, tuple[str, str]] = {
    "parquet": ("Parquet", "give it a name that ends in .parquet"),
    "arrow": ("Arrow", "give it a name that ends in .arrow"),
    "wet": ("web archive", "make a dataset of it with `python -m pipeline preprocess`"),
    "webdataset": ("tar archive", "unpack it, or make a dataset of it with `python -m pipeline preprocess`"),
}


def compressor(head: bytes) -> Compressor | None:
    """What compressed a file that begins so."""
    for magic, found in _COMPRESSORS:
        if head.startswith(magic):
            return found
    if _BZIP2.match(head):
        return "bzip2"
    if len(head) >= 4 and struct.unpack_from("<I", head)[0] in _ZSTD_SKIPPED:
        return "zstd"
    return None


def container(head: bytes) -> Container | None:
    """The format with records that begins so and that is read, but for JSON, which has no magic bytes."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(FILE_MAGIC + b"\0\0") or _is_stream(head):
        return "arrow"
    if head.startswith(b"WARC/1."):
        return "wet"
    return "webdataset" if is_tar_header(head[:_TAR_BLOCK]) else None


def _is_stream(head: bytes) -> bool:
    """Whether an Arrow stream begins so: a mark, the length of a message, then a flatbuffer's table inside it."""
    if len(head) < 16 or head[:4] != b"\xff\xff\xff\xff":
        return False
    length, root = struct.unpack_from("<iI", head, 4)
    # Metadata is padded to 8 bytes, and hundreds of megabytes of it would be no schema.
    return bool(0 < length < 2**28 and length % 8 == 0 and 0 < root < length)


def foreign(head: bytes) -> str | None:
    """What content is that begins with the magic bytes of a format that is not read."""
    for what, magics in _FOREIGN.items():
        found = next(filter(head.startswith, magics), None)
        # A text may begin with magic words that are letters, as a word: then the bytes after them decide.
        if found is not None and not (found.isalnum() and is_text(head[: _BINARY_AFTER * 2**10])):
            return what
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
        return "sound or pictures"
    return None


def wide_encoding(data: bytes) -> Literal["UTF-16", "UTF-32"] | None:
    """The encoding of text in units of two or four bytes, also of a part that begins inside a unit."""
    if data.startswith(_UTF32_MARKS):
        return "UTF-32"
    if data.startswith(_UTF16_MARKS):
        return "UTF-16"
    if b"\0" not in data or b"\0\0" in data:
        return None
    # Of text in Latin letters every second byte is 0, half of the data; text in other scripts has a byte order mark.
    return "UTF-16" if max(data[::2].count(0), data[1::2].count(0)) > 0.3 * len(data) else None


def is_text(head: bytes) -> bool:
    """Whether bytes look like text in some encoding: no NUL, but in UTF-16, and hardly any control characters."""
    if wide_encoding(head) is not None:
        return True
    return b"\0" not in head and 100 * (len(head) - len(head.translate(None, _NO_TEXT_BYTES))) <= len(head)


def not_plain_text(head: bytes) -> str | None:
    """What content that begins so is instead of plain text in UTF-8 or a like encoding, and what would be right."""
    if (packed := compressor(head)) is not None:
        return f"compressed ({packed}): decompress it, or make a dataset of it with `python -m pipeline preprocess`"
    if (kind := container(head)) is not None:
        what, remedy = _CONTAINERS[kind]
        return f"not plain text ({what}): {remedy}"
    if (other := foreign(head)) is not None:
        return f"not plain text ({other}): {'unpack it' if other.endswith('archive') else 'give a file of text'}"
    if (encoding := wide_encoding(head)) is not None:
        return f"text in {encoding}: {to_utf8(encoding)}"
    return None if is_text(head) else "not plain text (binary): give a file of text"


def to_utf8(encoding: str) -> str:
    """What would be right in place of another encoding."""
    return f"convert it to UTF-8 (iconv -f {encoding} -t UTF-8)"


def is_tar_header(block: bytes) -> bool:
    """Whether bytes are the header of a member of a tar, by its checksum."""
    if len(block) < _TAR_BLOCK or not block[0]:
        return False
    try:
        checksum = tar_number(block[148:156])
    except ValueError:
        return False
    return checksum == tar_checksum(block)


def tar_checksum(block: bytes) -> int:
    """What the checksum of a tar's header has to be."""
    return sum(block) - sum(block[148:156]) + 8 * ord(" ")


def tar_number(field: bytes) -> int:
    """A number in octal, or, with the highest bit set, in binary. Raises ValueError for what is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if not digits.isdigit():
        raise ValueError
    return int(digits, 8)


FILE_MAGIC = b"ARROW1"
