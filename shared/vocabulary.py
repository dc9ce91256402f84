"""Token ids: four special ids, the 256 bytes, and from 260 on the special ids that a dataset or model names."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

BOE = 0  # begins a slice of a document that a pack has cut
BOS = 1  # begins a document
EOS = 2  # ends a document
RESERVED = 3
OFFSET = 4  # byte b has id b + OFFSET
VOCABULARY_SIZE: Final = 260
"""Ids that every model has; the k-th named special id of a dataset or model is VOCABULARY_SIZE + k."""

NEWLINE = ord("\n") + OFFSET
IGNORED_LABEL = -100

Tokens = np.ndarray  # int16 [N]


def byte_tokens(text: bytes | memoryview | np.ndarray) -> Tokens:
    """Token ids of raw bytes, without special ids: int16 [n]. Any byte string is valid, UTF-8 or not."""
    return np.frombuffer(text, np.uint8).astype(np.int16) + np.int16(OFFSET)


def document_tokens(text: bytes | memoryview | np.ndarray) -> Tokens:
    """Token ids of a whole document [BOS, b1..bn, EOS]: int16 [n + 2]."""
    data = np.frombuffer(text, np.uint8)
    tokens = np.empty(len(data) + 2, np.int16)
    tokens[0], tokens[-1] = BOS, EOS
    np.add(data, OFFSET, out=tokens[1:-1], casting="unsafe", dtype=np.int16)
    return tokens


def token_bytes(tokens: np.ndarray) -> bytes:
    """The text of token ids; special ids are left out."""
    tokens = np.asarray(tokens)
    return np.asarray(tokens[~is_special(tokens)] - OFFSET, np.uint8).tobytes()


def is_special(ids: Any) -> Any:
    """Whether ids are no bytes: of an int, an array of numpy's or a tensor of torch's. A special id ends its patch."""
    return (ids < OFFSET) | (ids >= VOCABULARY_SIZE)


def without_named(ids: Any) -> Any:
    """Ids as the entropy model and the rules see them, of the same kinds: every named special id is RESERVED."""
    return ids - (ids - RESERVED) * (ids >= VOCABULARY_SIZE)


def special_id(name: str, specials: Sequence[str]) -> int:
    """The id of a named special id. Raises ValueError when there is none of that name."""
    if name not in specials:
        raise ValueError(f"there is no special id {name!r}; there are {', '.join(specials) or 'none'}")
    return VOCABULARY_SIZE + specials.index(name)
