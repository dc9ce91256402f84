"""Runs of the pipeline on an object store: what they left, as the hashes that a run in a folder has."""

import hashlib

from shared.io.stores.store import Store, open_store

PARTS = ("train/", "validation/", "dead-letters/", "empty-records/")


def remote_hashes(url: str) -> dict[str, str]:
    """As `shard_hashes` of a folder."""
    store = open_store(url)
    return {key: hashlib.sha256(store.read(key)).hexdigest() for part in PARTS for key in sorted(store.list(part))}


def contents(store: Store, *parts: str) -> dict[str, bytes]:
    """Everything below some prefixes."""
    return {key: store.read(key) for part in parts or ("",) for key in store.list(part)}
