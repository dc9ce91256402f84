"""The tokens of a tokenizer and their ids, read from its file alone: no library is needed to turn patches into ids.

V ids: the four special ones, the 256 bytes at byte + 4, and from 260 on a token for each merge, in order of learning.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from shared.bpe.folder import MOST_BYTES, TOKENIZER_FILE
from shared.errors import DatasetError
from shared.io.files.json_reader import read_bounded
from shared.model_settings import MOST_IDS
from shared.vocabulary import OFFSET, VOCABULARY_SIZE

NO_TOKEN = -1
_FACTOR = 0x9E3779B97F4A7C15
"""Of the polynomial hash of a token: 2^64 over the golden ratio, whose bits spread well. Odd, so that it has an inverse
modulo 2^64, by which the hash of any range follows from two sums."""
_INVERSE = pow(_FACTOR, -1, 2**64)


class _Model(BaseModel):
    vocab: dict[str, int] = Field(max_length=MOST_IDS)


class _TokenizerFile(BaseModel):
    """What is read here of the library's own file."""

    model: _Model


class Subwords:
    """The tokens of a vocabulary, found by their bytes."""

    def __init__(self, tokens: list[bytes]) -> None:
        """``tokens`` of ids OFFSET, OFFSET + 1, ...; ValueError unless the bytes come first and no two are equal."""
        if tokens[:256] != [bytes([byte]) for byte in range(256)]:
            raise ValueError(f"ids {OFFSET} to {VOCABULARY_SIZE - 1} must be the bytes in order")
        self.vocabulary = OFFSET + len(tokens)
        """V."""
        self.lengths = np.array([0] * OFFSET + [len(token) for token in tokens], np.int64)
        """int64 [V], bytes of each token; 0 for special ids."""
        self._text = np.frombuffer(b"".join(tokens), np.uint8)
        self._starts = np.cumsum(self.lengths) - self.lengths
        hashes = _hashes(self._text, self.lengths[OFFSET:])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._ids = hashes[order], order + OFFSET
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(same):
            one, two = (tokens[order[place]] for place in (same[0], same[0] + 1))
            raise ValueError(f"the tokens {one!r} and {two!r} are equal or have one hash")

    @property
    def tokens(self) -> list[bytes | None]:
        """The bytes of each id; None for special ids."""
        text, starts = self._text.tobytes(), self._starts.tolist()
        return [text[start : start + size] or None for start, size in zip(starts, self.lengths.tolist())]

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
    """The tokens of the tokenizer in a folder. Raises DatasetError when its file is none of ours."""
    path = folder / TOKENIZER_FILE
    values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    try:
        vocabulary = _TokenizerFile.model_validate_json(read_bounded(path, MOST_BYTES)).model.vocab
        named = sorted((number, bytes(values[symbol] for symbol in token)) for token, number in vocabulary.items())
        if [number for number, _ in named] != list(range(OFFSET, OFFSET + len(named))):
            raise ValueError(f"ids must be {OFFSET} to {OFFSET + len(named) - 1}, each once")
        return Subwords([token for _, token in named])
    except OSError as error:
        what = f"{TOKENIZER_FILE} cannot be read ({error.strerror})"
        raise DatasetError(f"{folder} is not a tokenizer's folder: {what}") from None
    except (KeyError, ValidationError):
        raise DatasetError(f"{path} is not a byte-level BPE tokenizer") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: itself if it prints, else one past 255."""
    symbols, spare = [], 256
    for byte in range(256):
        printable = unicodedata.category(chr(byte))[0] not in "CZ"
        symbols.append(chr(byte if printable else spare))
        spare += not printable
    return symbols
