"""The whole state of the training data: small, JSON-able, and independent of ranks and loader workers (law 5)."""

from pydantic import Field

from shared.errors import IdentityError
from shared.io.identity import differences, in_short
from shared.settings import Settings
from shared.shards.dataset import Dataset
from trainer.data.mixture import Mixture


class PackStream(Settings):
    """A sequence of documents that packs are cut from by turns, and the document that its last pack cut."""

    document: int = Field(default=0, ge=0)
    """Number in the dataset; without meaning when offset is 0."""
    offset: int = Field(default=0, ge=0)
    """Inputs of the document that are used up: 0 when the stream goes on with a document that no pack has begun."""


class Cursor(Settings):
    """Where the stream of packs stands: everything before pack number ``pack`` has been handed out."""

    seed: int
    pack: int = Field(ge=0)
    """Number of the next pack."""
    sampled: dict[str, int]
    """Documents of each subset's stream that are used up, or begun by a stream."""
    streams: tuple[PackStream, ...]
    """Pack p is cut from stream p modulo their number."""
    fingerprints: dict[str, str]
    """Of the datasets, by split; of several, by NAME/split."""


def first_cursor(dataset: Dataset | Mixture, seed: int, streams: int) -> Cursor:
    """The cursor of a run that begins."""
    sampled = dict.fromkeys(dataset.subset_names, 0)
    return Cursor(
        seed=seed, pack=0, sampled=sampled, streams=(PackStream(),) * streams, fingerprints=dataset.fingerprints
    )


def check_cursor(cursor: Cursor, dataset: Dataset | Mixture) -> None:
    """Raise IdentityError when the cursor belongs to other data than this."""
    lines = differences(cursor.fingerprints, dataset.fingerprints)
    if lines:
        raise IdentityError(
            f"{dataset.where} is not the data that this run began with: fingerprint of {in_short(lines)}"
        )
