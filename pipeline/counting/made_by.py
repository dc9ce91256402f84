"""counted.json beside a table: what made it (law 7)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.counting.settings import PIECE
from shared.counts.files import MADE_BY_FILE, made_sha256
from shared.errors import IdentityError, ModelFileError
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import differences, in_short
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings, refused_as
from shared.shards.manifest import Count, Sha256


class Counted(Settings):
    """What was counted, and what of it was kept: two counts with equal ones have equal tables."""

    order: int
    contexts: int
    least: int
    newline_reset: bool
    piece: int = PIECE
    inputs: dict[str, Any]
    """Number, bytes and digest of the files that were read."""
    reading: dict[str, Any]
    """Which records there are, with the sample, and which are of the train split."""


class Making(Settings):
    """What made a table."""

    format_version: Literal[1] = 1
    identity: Counted
    stamps: Sha256
    """Of the times of input files whose content no manifest says; they are no part of the identity."""
    trained_on: dict[str, Sha256]
    """Fingerprints of our own datasets among the input, by folder."""
    content: Sha256
    """Of the documents that were counted, in whatever order and splits."""
    sha256: Sha256
    """Of the model."""
    documents: Count
    bytes: Count
    """Of their text."""
    pieces: Count
    dead_letters: Count = 0
    contexts_by_order: list[Count] = Field(min_length=2, max_length=7)
    """That were kept, from the empty one on."""
    distinct: Count = 0
    """Contexts that there were before any was left out, the empty one not counted; tables of before do not say."""

    def save(self, folder: Path) -> None:
        write_atomic(folder / MADE_BY_FILE, self.model_dump_json(indent=1) + "\n")


def load_counts_making(folder: Path) -> Making:
    """What a folder says about its table, which is checked. Raises ModelFileError; FileNotFoundError without one."""
    path = folder / MADE_BY_FILE
    content = read_bounded(path)
    with refused_as(ModelFileError, f"{path}: "):
        making = Making.model_validate_json(content)
    made_sha256(folder)
    return making


def require_equal(making: Making, wanted: Counted, stamps: str, out: Path) -> None:
    """Raise IdentityError unless a table is what is wanted now."""
    if lines := differences(making.identity.model_dump(mode="json"), wanted.model_dump(mode="json")):
        raise IdentityError(
            f"{out} holds counts that were made otherwise ({in_short(lines)}); choose another --out or restore these"
        )
    if making.stamps != stamps:
        raise IdentityError(
            f"{out} holds counts of this input, but files of it were written to since; choose another --out, or remove "
            f"{out} to count it again"
        )
