"""The tokens of a tokenizer and their ids, read from its file alone: no library is needed to turn patches into ids.

V ids. Of a tokenizer that was trained here: the four special ones, the 256 bytes at byte + 4, and from 260 on a token
for each merge, in order of learning. Of one of another model: that model's own.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from shared.bpe.folder import MOST_BYTES, TOKENIZER_FILE
from shared.errors import DatasetError
from shared.io.files.json_reader import read_bounded
from shared.model_settings import MOST_IDS
from shared.vocabulary import OFFSET

BYTES = 256
NO_TOKEN = -1
SPACE_MARK = "\u2581"
"""What stands for a space in the vocabularies of SentencePiece."""
MOST_GAPS = 1024
"""Ids without a token beyond as many as there are tokens: memory is that of a file, not of a number in it."""
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""A byte in these vocabularies, of a character that is no token."""
_FACTOR = 0x9E3779B97F4A7C15
"""Of the polynomial hash of a token: 2^64 over the golden ratio, whose bits spread well. Odd, so that it has an inverse
modulo 2^64, by which the hash of any range follows from two sums."""
_INVERSE = pow(_FACTOR, -1, 2**64)

Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


class _Model(BaseModel):
    vocab: dict[str, Id] = Field(max_length=MOST_IDS)
    byte_fallback: bool = False
    """The vocabulary is SentencePiece's: characters, and bytes for what is none of them. Else it is of bytes."""


class _AddedToken(BaseModel):
    id: Id
    content: str
    special: bool


class _TokenizerFile(BaseModel):
    """What is read here of the library's own file."""

    model: _Model
    added_tokens: list[_AddedToken] = Field(default=[], max_length=MOST_IDS)


class Subwords:
    """The tokens of a vocabulary, found by their bytes."""

    def __init__(self, tokens: Sequence[bytes | None], spare: Collection[int] = ()) -> None:
        """The tokens by their ids; None for ids that stand for no bytes.

        Several ids may have the same bytes: then the lowest is theirs. ``spare``: ids that are it only where no other
        is. ValueError for a token of no bytes, and unless each byte is a token.
        """
        if b"" in tokens:
            raise ValueError(f"token {tokens.index(b'')} has no bytes")
        self.vocabulary = len(tokens)
        """V."""
        self.lengths = np.array([len(token or b"") for token in tokens], np.int64)
        """int64 [V], bytes of each token; 0 for ids without."""
        self._text = np.frombuffer(b"".join(token or b"" for token in tokens), np.uint8)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._find_by_hash(np.isin(np.arange(len(tokens)), list(spare)))
        self.byte_ids = self.ids(np.arange(BYTES, dtype=np.uint8), np.ones(BYTES, np.int64))
        """int32 [256], the id of each byte."""
        if len(missing := np.flatnonzero(self.byte_ids == NO_TOKEN)):
            raise ValueError(f"the byte {int(missing[0]):#04x} is no token, so that some texts have none")

    def _find_by_hash(self, spare: np.ndarray) -> None:
        """Order the ids by the hash of their bytes, one id for the same bytes. ``spare`` bool [V]."""
        ids = np.flatnonzero(self.lengths)
        hashes = _hashes(self._text, self.lengths[ids])
        order = np.lexsort((ids, spare[ids], hashes))
        ids, hashes = ids[order], hashes[order]
        first = np.append(True, hashes[1:] != hashes[:-1])
        for place in np.flatnonzero(~first).tolist():
            if self._token(ids[place]) != self._token(ids[place - 1]):
                raise ValueError(f"the tokens {int(ids[place - 1])} and {int(ids[place])} have one hash")
        self._hashes, self._ids = hashes[first], ids[first]

    def _token(self, number: int) -> bytes:
        return self._text[self._starts[number] : self._starts[number] + self.lengths[number]].tobytes()

    @property
    def tokens(self) -> list[bytes | None]:
        """The bytes of each id; None for ids that stand for none, as special ones do."""
        text, starts = self._text.tobytes(), self._starts.tolist()
        return [text[start : start + size] or None for start, size in zip(starts, self.lengths.tolist())]

    @property
    def trained_here(self) -> bool:
        """Whether ids are as those of tokenizers that were trained here: 0 to 3 special, byte b at b + 4."""
        own = np.array_equal(self.byte_ids, np.arange(BYTES) + OFFSET)
        return own and not self.lengths[:OFFSET].any() and bool(self.lengths[OFFSET:].all())

    def ids(self, text: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [P]: the id of each patch of a text, NO_TOKEN where it is no token; a few passes over the bytes.

        text uint8 [T]; lengths int64 [P], bytes of each patch, at least 1, together T.
        """
        hashes = _hashes(text, lengths)
        ids = self._ids[np.minimum(np.searchsorted(self._hashes, hashes), len(self._ids) - 1)]
        # An equal hash is a hint; the bytes decide.
        found = self.lengths[ids] == lengths
        starts = np.cumsum(lengths) - lengths
        shift = np.where(found, self._starts[ids] - starts, -starts)
        places = np.repeat(shift, lengths) + np.arange(len(text))
        equal = self._text[np.minimum(places, len(self._text) - 1)] == text
        found &= np.logical_and.reduceat(equal, starts) if len(lengths) else True
        return np.where(found, ids, NO_TOKEN).astype(np.int32)


def _hashes(text: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """uint64 [P]: of each patch the sum of (byte + 1) * factor^place, modulo 2^64; the same wherever the patch lies.

    Prefix sums over the whole text, shifted back by the inverse of the factor.
    """
    powers, inverses = _powers(1 << max(len(text) - 1, 0).bit_length())
    sums = np.zeros(len(text) + 1, np.uint64)
    np.cumsum((text.astype(np.uint64) + np.uint64(1)) * powers[: len(text)], out=sums[1:])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    hashes: np.ndarray = (sums[ends] - sums[starts]) * inverses[starts]
    return hashes


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [count] twice: powers of the factor, and of its inverse."""
    factors = np.full((2, count), [[_FACTOR], [_INVERSE]], np.uint64)
    factors[:, 0] = 1
    powers, inverses = np.multiply.accumulate(factors, axis=1)
    return powers, inverses


def load_subwords(folder: Path) -> Subwords:
    """The tokens of the tokenizer in a folder. Raises DatasetError when its file is none that is read here."""
    path = folder / TOKENIZER_FILE
    try:
        return _subwords_of(_TokenizerFile.model_validate_json(read_bounded(path, MOST_BYTES)))
    except OSError as error:
        what = f"{TOKENIZER_FILE} cannot be read ({error.strerror})"
        raise DatasetError(f"{folder} is not a tokenizer's folder: {what}") from None
    except (KeyError, ValidationError):
        raise DatasetError(f"{path} is not a byte-level BPE tokenizer") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def _subwords_of(file: _TokenizerFile) -> Subwords:
    """Raises KeyError for a token that stands for no bytes, ValueError as `Subwords` does."""
    model = file.model
    tokens = {token.id: None if token.special else token.content.encode() for token in file.added_tokens}
    # Added tokens are found in a text before it is cut into words, so bytes that they have are theirs alone.
    added, added_bytes = set(tokens), set(tokens.values())
    values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    spare = []
    for text, number in model.vocab.items():
        if number in added:
            continue
        if number in tokens:
            raise ValueError(f"two tokens have the id {number}")
        byte = _BYTE_TOKEN.fullmatch(text) if model.byte_fallback else None
        if byte:
            token = bytes.fromhex(byte[1])
        elif model.byte_fallback:
            token = text.replace(SPACE_MARK, " ").encode()
        else:
            token = bytes(values[symbol] for symbol in text)
        if byte or token in added_bytes:
            spare.append(number)  # a character's own token comes first
        tokens[number] = token
    size = max(tokens, default=-1) + 1
    if size > 2 * len(tokens) + MOST_GAPS:
        raise ValueError(f"ids reach {size - 1}, but there are {len(tokens)} tokens only")
    return Subwords([tokens.get(number) for number in range(size)], spare)


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: itself if it prints, else one past 255."""
    symbols, spare = [], 256
    for byte in range(256):
        printable = unicodedata.category(chr(byte))[0] not in "CZ"
        symbols.append(chr(byte if printable else spare))
        spare += not printable
    return symbols
