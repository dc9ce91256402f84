"""A seeded corpus of small files in every format, good and bad, with what must come of each.

What is expected is counted by whoever makes a file, never by reading it again.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
PIECES = ("a", "Zeile ", "é", "日本", "\n", " ", "0123", "\t", '"', "\\", "\0", "😀")
ROW_GROUP = 7


@dataclass
class Made:
    """A file, and what must come of it."""

    name: str
    content: bytes
    texts: list[bytes] = field(default_factory=list)
    """Of the documents."""
    dead: int = 0
    empty: int = 0


Maker = Callable[["random.Random", str], Made]


def some_text(rng: random.Random, tag: str) -> str:
    return tag + "".join(rng.choices(PIECES, k=rng.randint(1, 30)))


def some_texts(rng: random.Random, tag: str, most: int = 20) -> list[str]:
    return [some_text(rng, f"{tag}/{i} ") for i in range(rng.randint(2, most))]


def encoded(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def packed(rng: random.Random, made: Made) -> Made:
    """The same file, perhaps compressed, perhaps in several frames."""
    suffix = rng.choice(("", *PACKERS))
    if suffix:
        cut = rng.randint(0, len(made.content))
        frames = [made.content[:cut], made.content[cut:]] if rng.random() < 0.5 else [made.content]
        made.content = b"".join(map(PACKERS[suffix], frames))
        made.name += suffix
    return made


def json_lines(rng: random.Random, tag: str) -> Made:
    made = Made(f"{tag}.jsonl", b"")
    lines = []
    bad = [
        b'{"text": "bro', b'["text"]', b'{"text": 5}', b'{"text": null}', b'{"id": "no text"}', b'{"text": "\\ud800"}',
        b'{"text": "caf\xe9"}', b"null", b"\x00\x01", b'{"text": "t"} {"text": "u"}', b'{"text": ["a"]}',
    ]  # fmt: skip
    for text in some_texts(rng, tag):
        lines.append(json.dumps({"text": text, "id": rng.choice([None, 7, "twin"])}).encode())
        made.texts.append(text.encode())
        what = rng.random()
        if what < 0.15:
            lines.append(rng.choice(bad))
            made.dead += 1
        elif what < 0.2:
            lines.append(b'{"text": ""}')
            made.empty += 1
        elif what < 0.25:
            lines.append(b"  ")
    made.content = (
        rng.choice([b"", b"\xef\xbb\xbf"]) + rng.choice([b"\n", b"\r\n"]).join(lines) + rng.choice([b"", b"\n"])
    )
    return packed(rng, made)


def cut_json_lines(rng: random.Random, tag: str) -> Made:
    """Each line is a frame of its own; the file ends just after one of them has begun."""
    suffix, pack = rng.choice(list(PACKERS.items()))
    texts = some_texts(rng, tag)
    frames = [pack(json.dumps({"text": text}).encode() + b"\n") for text in texts]
    kept = rng.randrange(len(frames))
    return Made(f"{tag}.jsonl{suffix}", b"".join(frames[:kept]) + frames[kept][:5], encoded(texts[:kept]), dead=1)


def text_file(rng: random.Random, tag: str) -> Made:
    suffix = rng.choice([".txt", ".py", ".md", ""])
    content = rng.randbytes(rng.randint(1, 2000))
    if not suffix:  # nothing but the content says that it is a text
        content = content.translate(bytes(32 + i % 95 for i in range(256)))
    content = tag.encode() + content
    made = Made(tag + suffix, content, [content])
    return packed(rng, made) if made.name.endswith(".txt") else made


def cut_text_file(rng: random.Random, tag: str) -> Made:
    suffix, pack = rng.choice(list(PACKERS.items()))
    whole = pack(rng.randbytes(3000))
    return Made(f"{tag}.txt{suffix}", whole[: rng.randint(1, len(whole) - 1)], dead=1)


def empty_file(rng: random.Random, tag: str) -> Made:
    suffixes = (".txt", ".jsonl", ".jsonl.zst", ".parquet", ".arrow", ".tar", ".warc.wet", ".tar.gz")
    return Made(tag + rng.choice(suffixes), b"", empty=1)


def column(rng: random.Random, texts: list[str | None]) -> pa.Array:
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view())
    array = pa.array(texts, pa.string()).cast(rng.choice(kinds))
    return array.dictionary_encode() if rng.random() < 0.3 and array.type != pa.string_view() else array


def table(rng: random.Random, tag: str, views: bool = True) -> tuple[pa.Table, Made]:
    """Rows of good, missing and empty texts among other columns."""
    texts: list[str | None] = []
    made = Made(tag, b"")
    for text in some_texts(rng, tag):
        texts.append(text)
        made.texts.append(text.encode())
        if rng.random() < 0.1:
            texts.append(None)
            made.dead += 1
        elif rng.random() < 0.1:
            texts.append("")
            made.empty += 1
    array = column(rng, texts)
    if not views and array.type == pa.string_view():
        array = array.cast(pa.string())
    names = {"id": list(range(len(texts))), "text": array, "nested": [{"a": [i]} for i in range(len(texts))]}
    return pa.table(names), made


def parquet(rng: random.Random, tag: str) -> Made:
    rows, made = table(rng, tag, views=False)
    made.name += ".parquet"
    made.content = parquet_bytes(rows, compression=rng.choice(["zstd", "snappy", "none", "gzip"]))
    return made


def parquet_bytes(rows: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, **options)
    return sink.getvalue().to_pybytes()


def bad_parquet(rng: random.Random, tag: str) -> Made:
    """Cut, without the column, of another type, or never a Parquet file."""
    texts = some_texts(rng, tag)
    whole = parquet_bytes(pa.table({"text": texts}))
    content = rng.choice([
        whole[: rng.randint(1, len(whole) - 1)],
        parquet_bytes(pa.table({"body": texts})),
        parquet_bytes(pa.table({"text": list(range(30))})),
        b"PAR1 this was never one PAR1",
    ])  # fmt: skip
    return Made(f"{tag}.parquet", content, dead=1)


def flipped_parquet(rng: random.Random, tag: str) -> Made:
    """One bit of a page is flipped; its checksum tells, and costs the rows of one row group."""
    texts = some_texts(rng, tag, 40)
    content = bytearray(parquet_bytes(pa.table({"text": texts}), use_dictionary=False, write_page_checksum=True))
    metadata = pq.read_metadata(io.BytesIO(content))
    group = rng.randrange(metadata.num_row_groups)
    chunk = metadata.row_group(group).column(0)
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    kept = texts[: group * ROW_GROUP] + texts[(group + 1) * ROW_GROUP :]
    return Made(f"{tag}.parquet", bytes(content), encoded(kept), dead=1)


def arrow(rng: random.Random, tag: str) -> Made:
    rows, made = table(rng, tag)
    sink = pa.BufferOutputStream()
    make = rng.choice([pa.ipc.new_file, pa.ipc.new_stream])
    options = pa.ipc.IpcWriteOptions(compression=rng.choice([None, "zstd", "lz4"]))
    with make(sink, rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=ROW_GROUP)
    made.content = sink.getvalue().to_pybytes()
    made.name += rng.choice([".arrow", ".feather"])
    return made


def cut_arrow(rng: random.Random, tag: str) -> Made:
    """A stream that ends inside a batch, or between two of them, which plain readers take for its end."""
    texts = some_texts(rng, tag)
    sink = pa.BufferOutputStream()
    ends, schema = [], pa.schema([("text", pa.string())])
    with pa.ipc.new_stream(sink, schema) as writer:
        for text in texts:
            writer.write_batch(pa.record_batch([[text]], schema=schema))
            ends.append(sink.tell())
    content = sink.getvalue().to_pybytes()
    kept = rng.randint(1, len(texts) - 1)
    cut = ends[kept - 1] + rng.choice([0, 3, 20, ends[kept] - ends[kept - 1] - 1])
    return Made(f"{tag}.arrow", content[:cut], encoded(texts[:kept]), dead=1)


def bad_arrow(rng: random.Random, tag: str) -> Made:
    sink = pa.BufferOutputStream()
    rows = pa.table({rng.choice(["text", "body"]): [1, 2, 3]})
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    garbage = rng.choice([b"FEA1 an older format", b"{}", rng.randbytes(300), b"ARROW1\0\0"])
    return Made(f"{tag}.arrow", rng.choice([sink.getvalue().to_pybytes(), garbage]), dead=1)


class Tar:
    """An archive in the making, which knows where its members begin."""

    def __init__(self, rng: random.Random) -> None:
        self._sink = io.BytesIO()
        form = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        self._tar = tarfile.TarFile(fileobj=self._sink, mode="w", format=form)

    def add(self, name: str, content: bytes) -> int:
        """Add a member; returns where it ends."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(content), 1.5  # type: ignore[assignment]
        self._tar.addfile(member, io.BytesIO(content))
        return self._tar.offset

    def content(self) -> bytes:
        self._tar.close()
        return self._sink.getvalue()


def webdataset(rng: random.Random, tag: str) -> Made:
    """Samples with pickles and names like ../x among their members; some have no text."""
    tar, made = Tar(rng), Made(f"{tag}.tar", b"")
    for i, text in enumerate(some_texts(rng, tag)):
        key = rng.choice(["", "../../etc/", "a/b/", "ä" * 80 + "/"]) + f"{i:06d}"
        if rng.random() < 0.3:
            tar.add(f"{key}.pkl", pickle.dumps({"never": "loaded"}))
        what = rng.random()
        if what < 0.1:
            tar.add(f"{key}.jpg", b"no text here")
            made.dead += 1
        elif what < 0.2:
            tar.add(f"{key}.txt", b"")
            made.empty += 1
        elif what < 0.3:
            tar.add(f"{key}.json", json.dumps({"text": text, "id": "j"}).encode())
            made.texts.append(text.encode())
        elif what < 0.4:
            tar.add(f"{key}.txt", text.encode())
            tar.add(f"{key}.json", b"{broken")
            made.dead += 1
        else:
            tar.add(key + rng.choice([".txt", ".text", ".bytes", ".TXT"]), text.encode())
            tar.add(f"{key}.json", b'{"id": "twin"}')
            made.texts.append(text.encode())
    made.content = tar.content()
    return packed(rng, made)


def cut_webdataset(rng: random.Random, tag: str) -> Made:
    """An archive that ends between members, which plain readers take for its end, or inside one."""
    tar = Tar(rng)
    texts = some_texts(rng, tag)
    ends = [tar.add(f"{i:04d}.txt", text.encode()) for i, text in enumerate(texts)]
    content = tar.content()
    kept = rng.randint(1, len(texts) - 1)
    if rng.random() < 0.3:  # the header after what is kept is damaged
        broken = bytearray(content)
        broken[ends[kept - 1] + 5] ^= 0x40
        return Made(f"{tag}.tar", bytes(broken), encoded(texts[:kept]), dead=1)
    cut = ends[kept - 1] + rng.choice([0, 100, 512, ends[kept] - ends[kept - 1] - 512 + 2])
    return Made(f"{tag}.tar", content[:cut], encoded(texts[:kept]), dead=1)


def warc(kind: str, text: bytes, number: int, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    return (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://example.org/{number}\r\n"
        f"WARC-Record-ID: <urn:uuid:{number}>\r\nContent-Length: {size}\r\n\r\n"
    ).encode() + text + b"\r\n\r\n"  # fmt: skip


def wet(rng: random.Random, tag: str) -> Made:
    """Pages after the record about the file; some headers are broken, some lengths are wrong."""
    made = Made(f"{tag}.warc.wet", b"")
    parts = [warc("warcinfo", b"Software-Info: none\r\n", 0)]
    for i, text in enumerate(some_texts(rng, tag), 1):
        page, what = text.encode() + b".", rng.random()
        if what < 0.6:
            parts.append(warc("conversion", page, i))
            made.texts.append(page)
        elif what < 0.7:
            parts.append(warc("conversion", b"", i))
            made.empty += 1
        else:
            good = warc("conversion", page, i)
            bad = [
                warc("conversion", page, i, max(0, len(page) - 3)),
                warc("conversion", page, i, len(page) + 3),
                good.replace(b"Content-Length", b"Content-Size"),
                good.replace(b"Content-Length: ", b"Content-Length: many"),
                good.replace(b"WARC-Type:", b"WARC-Type"),
                warc("response", page, i),
            ]
            parts.append(rng.choice(bad))
            made.dead += 1
    made.content = b"".join(parts)
    return packed(rng, made)


def cut_wet(rng: random.Random, tag: str) -> Made:
    pages = [text.encode() for text in some_texts(rng, tag)]
    parts = [warc("conversion", page, i) for i, page in enumerate(pages)]
    kept = rng.randint(1, len(parts) - 1)
    cut = rng.choice([10, 60, len(parts[kept]) - 5])
    return Made(f"{tag}.warc.wet", b"".join(parts[:kept]) + parts[kept][:cut], pages[:kept], dead=1)


MAKERS: tuple[Maker, ...] = (
    json_lines, json_lines, cut_json_lines, text_file, text_file, cut_text_file, empty_file, parquet, parquet,
    bad_parquet, flipped_parquet, arrow, arrow, cut_arrow, bad_arrow, webdataset, webdataset, cut_webdataset, wet,
    cut_wet,
)  # fmt: skip


def make_corpus(folder: Path, files: int, seed: int) -> list[Made]:
    """Write so many files into nested folders; returns what must come of each, its path in place of its name."""
    rng = random.Random(seed)
    corpus = []
    for number in range(files):
        made = MAKERS[number % len(MAKERS)](rng, f"f{number:04d}")
        made.name = rng.choice(["", "a/", "b/c/"]) + made.name
        path = folder / made.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.content)
        corpus.append(made)
    return corpus
