"""Bytes to tokens by the `tokenizers` library: any bytes, and the same tokens however a text arrives.

A text is its stretches of valid UTF-8, each encoded by the library, and between them invalid bytes, a token each. A
token may depend on bytes after it, so a text in chunks is encoded up to where nothing behind can matter: a newline
between two printing ASCII characters, which is a token's end by the patterns that split words (`cutting.py`). Where a
tokenizer has another pattern, a text is encoded as a whole.
"""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.bpe.cutting import ends_at_lines
from shared.bpe.folder import INSTALL, MOST_BYTES, TOKENIZER_FILE
from shared.bpe.vocabulary import SPACE_MARK, load_subwords
from shared.errors import DatasetError
from shared.io.files.json_reader import read_json
from shared.vocabulary import BOS, OFFSET, is_special

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = 2**18
"""Bytes that are encoded at a time, where a text allows it: an encoding takes many times the memory of its text."""
_SAFE = re.compile(rb"[!-~]\n(?=[!-~])")
"""Where a text can be cut without changing its tokens: the pre-tokenizer ends a word at a line end between printable
ASCII characters, whatever stands before and after."""
_INVALID = re.compile("([\udc80-\udcff])")
"""Bytes that are no UTF-8, as "surrogateescape" shows them."""
_INVALID_OR_MARK = re.compile(f"([\udc80-\udcff{SPACE_MARK}])")
"""The same, and the character that these vocabularies have for a space: in a text it is none."""


class TokenizersMissing(DatasetError):
    """The library is not installed."""


def import_tokenizers() -> Any:
    """The library. Raises TokenizersMissing."""
    try:
        import tokenizers
    except ImportError:
        raise TokenizersMissing(INSTALL) from None
    return tokenizers


def pieces_of(text: bytes) -> Iterator[bytes]:
    """A text in pieces that can be encoded one by one; of about PIECE bytes where it has lines."""
    start = 0
    while len(text) - start > PIECE and (found := _SAFE.search(text, start + PIECE)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:] if start else text


def stretches_of(text: bytes, apart: re.Pattern[str] = _INVALID) -> list[str]:
    """Text to encode, what is ``apart``, text to encode, ... : the odd ones are single characters or escaped bytes."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return apart.split(text.decode("utf-8", "surrogateescape"))
    return [decoded] if apart is _INVALID else apart.split(decoded)


class SubwordEncoder:
    """The tokenizer of a folder. Raises TokenizersMissing, DatasetError when it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.subwords = load_subwords(folder)
        self.path = folder / TOKENIZER_FILE
        _ = self.library  # the library knows whether its file is right
        content = read_json(self.path, MOST_BYTES, finite=False)
        self._apart = _INVALID_OR_MARK if content["model"].get("byte_fallback") else _INVALID
        self.cuttable = ends_at_lines(content, self.subwords.tokens)
        """Whether a text's tokens are those of its parts, cut where `_SAFE` says."""

    @cached_property
    def library(self) -> "Tokenizer":
        """The library's own object."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes share the machine already
        try:
            tokenizer: Tokenizer = import_tokenizers().Tokenizer.from_file(str(self.path))
        except TokenizersMissing:
            raise
        except Exception as error:  # tokenizers, written in Rust, raises plain Exception
            raise DatasetError(f"{self.path}: {error}") from None
        tokenizer.encode_special_tokens = True  # a text that looks like a special id is text
        return tokenizer

    def ids(self, text: bytes) -> np.ndarray:
        """int32 [K]: the tokens of a text, without special ids; their bytes are the text.

        Raises DatasetError where the tokenizer does not give them.
        """
        pieces = pieces_of(text) if self.cuttable else [text]
        return np.concatenate([np.zeros(0, np.int32), *(self._piece(piece) for piece in pieces)])

    def lengths(self, text: bytes) -> np.ndarray:
        """uint16 [K]: bytes of each token of a text; they sum to its own."""
        return np.asarray(self.subwords.lengths[self.ids(text)], np.uint16)

    def _piece(self, text: bytes) -> np.ndarray:
        found = self._encoded(stretches_of(text, self._apart))
        if self.subwords.lengths[found].sum() != len(text):
            raise DatasetError(f"{self.path}: its tokens of a text of {len(text)} bytes have other bytes")
        return found

    def _encoded(self, stretches: list[str]) -> np.ndarray:
        if len(stretches) == 1:
            return np.array(self.library.encode(stretches[0], add_special_tokens=False).ids, np.int32)
        encodings = iter(self.library.encode_batch_fast(stretches[::2], add_special_tokens=False))
        found: list[int] = []
        for number, stretch in enumerate(stretches):
            if number % 2:
                found += self.subwords.byte_ids[list(stretch.encode("utf-8", "surrogateescape"))].tolist()
            else:
                found += next(encodings).ids
        return np.array(found, np.int32)


class WholeTokens:
    """The text of one document as it arrives, handed on up to where its tokens are certain to end."""

    def __init__(self, encoder: SubwordEncoder) -> None:
        self._cuttable, self._held = encoder.cuttable, bytearray()

    def add(self, text: bytes, last: bool) -> bytes:
        """What can be encoded now that ``text`` has come; with ``last`` all that is left."""
        searched = max(len(self._held) - 2, 0)
        self._held += text
        end = len(self._held) if last else self._safe_end(searched)
        found = bytes(self._held[:end])
        del self._held[:end]
        return found

    def _safe_end(self, searched: int) -> int:
        """Where the tokens of what is held are certain to end; 0 if that is not known."""
        if not self._cuttable:
            return 0
        at = len(self._held)
        while (at := self._held.rfind(b"\n", searched, at)) >= 0:
            if _SAFE.match(self._held, max(at - 1, 0)):
                return at + 1
        return 0


class ChunkedSubwords:
    """Lengths of the tokens of one document as it arrives, BOS and EOS each alone; as `ChunkedLengths` for rules."""

    def __init__(self, encoder: SubwordEncoder) -> None:
        self._encoder = encoder
        self._text = WholeTokens(encoder)

    def add(self, tokens: np.ndarray, entropies: np.ndarray | None = None, last: bool = False) -> np.ndarray:
        """uint16 [p]: lengths of the tokens that are known to have ended; with ``last`` of all that are left.

        tokens int16 [N] of [BOS, b1..bn, EOS] come next in the document; nothing is made of ``entropies``.
        """
        special = is_special(tokens)
        text = self._text.add((tokens[~special] - OFFSET).astype(np.uint8).tobytes(), last)
        ones = np.ones(int(special.sum()), np.uint16)
        begin = int((tokens[:1] == BOS).sum())
        return np.concatenate([ones[:begin], self._encoder.lengths(text), ones[begin:]])
