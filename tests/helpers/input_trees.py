"""Files of inputs in folders and archives, and what is read from them."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.read import read_split
from pipeline.records import DeadLetter, Record, Records
from pipeline.run.driver import make_plan
from pipeline.settings import ReadSettings

TEXTS = [f'text number {i}: \\ "quoted" é {{[\n' for i in range(5)]


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for i, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return sink.getvalue()


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(*inputs: object, **options: object) -> list[Record | DeadLetter]:
    reading = ReadSettings(**options)
    plan = make_plan(inputs, reading)
    return [found for split in plan.splits for found in one_by_one(read_split(split, reading))]


def one_by_one(found: Iterable[Records | DeadLetter]) -> Iterator[Record | DeadLetter]:
    """What is read, each record by itself."""
    for some in found:
        if isinstance(some, Records):
            yield from some
        else:
            yield some
