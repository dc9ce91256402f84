"""Opening datasets, local or behind a URL, by the folder that holds them."""

from pathlib import Path
from typing import Any

from shared.bpe.folder import MADE_BY_FILE, TOKENIZER_FILE
from shared.errors import DatasetError, DeniedError, ModelFileError
from shared.io.display.log import LOG
from shared.io.files.atomic import write_atomic
from shared.io.stores.locations import below, location_of, read_whole, without_query
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE, model_sha256
from shared.shards.cache import FileCache, Lease, default_cache
from shared.shards.dataset import Dataset
from shared.shards.formats.sidecar import sidecar_name
from shared.shards.manifest import (
    ENTROPY_MODEL_FOLDER,
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    TOKENIZER_FOLDER,
    Manifest,
    load_manifest,
    not_a_dataset,
)

# ---- Datasets behind fsspec URLs: their files come into a cache when they are first used.


MOST_MODEL_BYTES = 2**33
"""Of a file of the entropy model or tokenizer behind a URL: the manifest has hashes of these files, and no sizes."""


class RemoteDataset(Dataset):
    """A dataset whose files are fetched and checked one by one."""

    def __init__(self, url: str, manifest: Manifest, cache: FileCache) -> None:
        super().__init__(cache.folder, manifest)
        self._url = url.rstrip("/")
        self._cache = cache

    @property
    def where(self) -> str:
        return self._url

    @property
    def entropy_model(self) -> Path:
        """Folder of the entropy model, fetched unless it is here whole. Other ranks may read it meanwhile.

        Raises DatasetError when there is none, StorageError when it does not arrive.
        """
        entropy_model = self.manifest.identity.entropy_model
        if entropy_model is None:
            raise DatasetError(f"{self._url} was made without an entropy model")
        folder = self._cache.folder / f"{ENTROPY_MODEL_FOLDER}-{entropy_model.sha256}"
        if not _is_whole(folder, entropy_model.sha256):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                write_atomic(folder / name, read_whole(f"{self._url}/{ENTROPY_MODEL_FOLDER}/{name}", MOST_MODEL_BYTES))
        return folder

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer, fetched unless it is here. Raises DatasetError when the rule is not bpe."""
        recorded = self.manifest.identity.patching.tokenizer
        if recorded is None:
            raise DatasetError(f"{self._url} was made without a tokenizer")
        folder = self._cache.folder / f"{TOKENIZER_FOLDER}-{recorded.sha256}"
        if not (folder / MADE_BY_FILE).exists():
            for name in (TOKENIZER_FILE, MADE_BY_FILE):
                write_atomic(folder / name, read_whole(f"{self._url}/{TOKENIZER_FOLDER}/{name}", MOST_MODEL_BYTES))
        return folder

    @property
    def remote(self) -> bool:
        return True

    def fetch(self, shard: int, sidecar: bool = False) -> bool:
        entry = self.shard(shard)
        here = self._cache.fetch(f"{self._url}/{entry.name}", entry.sha256, entry.bytes_on_disk)
        if not sidecar or entry.sidecar_sha256 is None or entry.sidecar_bytes is None:
            return here
        name = sidecar_name(entry.name)
        return self._cache.fetch(f"{self._url}/{name}", entry.sidecar_sha256, entry.sidecar_bytes) and here

    def _file(self, name: str, sha256: str, size: int) -> Lease:
        return self._cache.hold(f"{self._url}/{name}", sha256, size)

    def _read_again(self, name: str, sha256: str, size: int) -> Lease:
        """What is in the cache was compared when it was fetched: who wants to read the URL gives a cache of its own."""
        return self._file(name, sha256, size)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "manifest": self.manifest, "cache": self._cache}


def _is_whole(folder: Path, sha256: str) -> bool:
    try:
        return model_sha256(folder) == sha256
    except ModelFileError:
        return False


def open_dataset(folder: Path | str, cache: FileCache | None = None, manifest: Manifest | None = None) -> Dataset:
    """Open a finished dataset in a folder or behind a URL, whose files then come into the cache.

    ``manifest``: the dataset's, where it has been read before.

    Raises DatasetError when there is none, or its manifest cannot be used; StorageError when a URL cannot be read.
    """
    folder = location_of(folder)
    manifest = manifest or load_manifest(folder)
    rule = manifest.identity.patching.rule
    LOG.debug("opened %s: %d shards, rule %s", without_query(str(folder)), manifest.shard_count, rule)
    if isinstance(folder, Path):
        return Dataset(folder, manifest)
    return RemoteDataset(folder, manifest, cache or FileCache(default_cache()))


def dataset_folders(path: Path) -> list[Path]:
    """The datasets that a path stands for: itself, or its train/ and validation/; none if it is something else.

    Raises DatasetError for a folder that cannot be read.
    """
    if _has_local_manifest(path):
        return [path]
    return [*filter(_has_local_manifest, (path / "train", path / "validation"))]


def _has_local_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_NAME).is_file()
    except OSError as error:
        raise DatasetError(f"the folder {folder} cannot be read: {error.strerror}") from None


def find_datasets(folder: Path | str) -> list[Path]:
    """The same. Raises DatasetError when there is none."""
    if not (found := dataset_folders(Path(folder))):
        raise DatasetError(not_a_dataset(folder))
    return found


def find_remote_datasets(url: str) -> list[str]:
    """The same of a URL. Raises DatasetError, StorageError."""
    if not (found := remote_datasets(url)):
        raise DatasetError(not_a_dataset(url))
    return found


def remote_datasets(url: str) -> list[str]:
    """The same; none if there is something else. Raises DeniedError if it cannot be told."""
    found, denied = list[str](), list[DeniedError]()
    for place in (url, f"{url}/train", f"{url}/validation"):
        try:
            found += [place] if _has_manifest(place) else []
        except DeniedError as error:  # a store says so of what is not there, too, to those who may not list it
            denied.append(error)
    if denied and not found:
        raise denied[0]
    return found


def _has_manifest(url: str) -> bool:
    try:
        read_whole(below(url, MANIFEST_NAME), MOST_MANIFEST_BYTES)
    except FileNotFoundError:
        return False
    return True
