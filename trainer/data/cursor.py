"""The whole state of the training data: small, JSON-able, and independent of ranks and loader workers (law 5)."""

from pydantic import Field

from shared.identity import IdentityError
from shared.model_settings import Settings
from shared.shards.dataset import Dataset


class Cursor(Settings):
    """Where the stream of packs stands: everything before pack number ``pack`` has been handed out."""

    seed: int
    pack: int = Field(ge=0)
    """Number of the next pack."""
    drawn: dict[str, int]
    """Documents of each subset's stream that are used up."""
    offset: int = Field(ge=0)
    """Inputs of the next document that are used up: above 0 when the last pack cut it."""
    fingerprint: str
    """Of the dataset."""


def first_cursor(dataset: Dataset, seed: int) -> Cursor:
    """The cursor of a run that begins."""
    drawn = dict.fromkeys(dataset.subset_names, 0)
    return Cursor(seed=seed, pack=0, drawn=drawn, offset=0, fingerprint=dataset.fingerprint)


def check_cursor(cursor: Cursor, dataset: Dataset) -> None:
    """Raise IdentityError when the cursor belongs to other data than this."""
    if cursor.fingerprint != dataset.fingerprint:
        raise IdentityError(
            f"{dataset.folder} is not the data that this run began with: "
            f"its fingerprint is {dataset.fingerprint[:16]}, the checkpoint's {cursor.fingerprint[:16]}"
        )
