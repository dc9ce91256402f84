"""The 260 token ids: four special ids, then the 256 bytes."""

from typing import Final

import numpy as np

BOE = 0  # begins a slice of a document that a pack has cut
BOS = 1  # begins a document
EOS = 2  # ends a document
RESERVED = 3
OFFSET = 4  # byte b has id b + OFFSET
VOCABULARY_SIZE: Final = 260

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
    return (tokens[tokens >= OFFSET] - OFFSET).astype(np.uint8).tobytes()
