"""The whole state of the training data: small, JSON-able, and independent of ranks and loader workers (law 5)."""

from pydantic import Field

from shared.identity import IdentityError
from shared.model_settings import Settings
from shared.shards.dataset import Dataset


class Lane(Settings):
    """A sequence of documents that packs are cut from by turns, and the document that its last pack cut."""

    document: int = Field(default=0, ge=0)
    """Number in the dataset; without meaning when offset is 0."""
    offset: int = Field(default=0, ge=0)
    """Inputs of the document that are used up: 0 when the lane goes on with a document that no pack has begun."""


class Cursor(Settings):
    """Where the stream of packs stands: everything before pack number ``pack`` has been handed out."""

    seed: int
    pack: int = Field(ge=0)
    """Number of the next pack."""
    drawn: dict[str, int]
    """Documents of each subset's stream that are used up, or begun by a lane."""
    lanes: tuple[Lane, ...]
    """Pack p is cut from lane p modulo their number."""
    fingerprint: str
    """Of the dataset."""


def first_cursor(dataset: Dataset, seed: int, lanes: int) -> Cursor:
    """The cursor of a run that begins."""
    drawn = dict.fromkeys(dataset.subset_names, 0)
    return Cursor(seed=seed, pack=0, drawn=drawn, lanes=(Lane(),) * lanes, fingerprint=dataset.fingerprint)


def check_cursor(cursor: Cursor, dataset: Dataset) -> None:
    """Raise IdentityError when the cursor belongs to other data than this."""
    if cursor.fingerprint != dataset.fingerprint:
        raise IdentityError(
            f"{dataset.folder} is not the data that this run began with: "
            f"its fingerprint is {dataset.fingerprint[:16]}, the checkpoint's {cursor.fingerprint[:16]}"
        )
