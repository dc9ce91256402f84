"""Pieces of text as the objects of the OpenAI API: choices whole and in chunks, probabilities, usage, errors.

Free of torch and of HTTP. One token of the API is one byte here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigError
from shared.vocabulary import BOE, BOS, EOS, OFFSET, RESERVED, VOCABULARY_SIZE
from trainer.generation.piece import Ending, Piece, TokenScore
from trainer.generation.text import Characters
from trainer.serving.requests import RequestError

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""
SPECIAL_NAMES = {BOE: "<boe>", BOS: "<bos>", EOS: "<eos>", RESERVED: "<reserved>"}


def error_object(error: Exception) -> dict[str, Any]:
    """What a client is told of an error; of a fault of ours nothing but that there is one."""
    told = RequestError("internal error", code="internal_error", status=500)
    if isinstance(error, RequestError):
        told = error
    elif isinstance(error, ConfigError):
        told = RequestError(str(error))
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(told.status, "server_error" if told.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(told), "type": kind, "param": told.param, "code": told.code}}


def token_text(token: int, specials: Sequence[str] = ()) -> str:
    r"""The name of an id: an ASCII character, bytes:\xNN for any other byte, a name in angle brackets."""
    if OFFSET <= token < VOCABULARY_SIZE:
        return chr(token - OFFSET) if token - OFFSET < 128 else f"bytes:\\x{token - OFFSET:02x}"
    return SPECIAL_NAMES[token] if token < OFFSET else f"<{specials[token - VOCABULARY_SIZE]}>"


@dataclass(frozen=True, slots=True)
class Token:
    """A byte or special id as the API shows it."""

    text: str
    data: bytes
    score: TokenScore | None
    offset: int
    """Characters of the text before the one that it belongs to."""


def token_of(piece: Piece, offset: int) -> Token:
    """That of a piece."""
    name = f"<{piece.special}>" if piece.special is not None else token_text(piece.byte[0] + OFFSET)
    return Token(name, piece.byte, piece.score, offset)


@dataclass
class Choice:
    """One text on its way to a client: characters go out when they are whole."""

    index: int
    specials: Sequence[str]
    scored: bool
    details: bool
    ended: Ending | None = None
    _characters: Characters = field(default_factory=Characters)
    _texts: list[str] = field(default_factory=list)
    _tokens: list[Token] = field(default_factory=list)
    _details: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0
    _closed: bool = False
    """Whether the end has been sent."""

    def begin(self, token: int) -> None:
        """A special id that the client has put before its prompt: a token of its own without a text."""
        if self.scored:
            self._tokens.append(Token(token_text(token, self.specials), b"", None, 0))

    def push(self, pieces: Iterable[Piece]) -> None:
        """Take pieces of the prompt or of the text."""
        for piece in pieces:
            self._take(self._characters.push(piece))

    def end(self, ended: Ending, token: int | None, score: TokenScore | None) -> None:
        """Take the end, and the special id that it came by."""
        self._take(self._characters.end())
        self.ended = ended
        if self.scored and token is not None:
            self._tokens.append(Token(token_text(token, self.specials), b"", score, self._offset))

    def _take(self, characters: Iterable[tuple[str, list[Piece]]]) -> None:
        for text, pieces in characters:
            self._texts.append(text)
            if self.scored:
                self._tokens += [token_of(piece, self._offset) for piece in pieces]
            if self.details:
                self._details += map(detail, pieces)
            self._offset += len(text)

    @property
    def finish_reason(self) -> str | None:
        """In the words of the API."""
        return None if self.ended is None else "length" if self.ended == "length" else "stop"

    @property
    def has_news(self) -> bool:
        """Whether anything has come since `pop` was called last."""
        return bool(self._texts or self._tokens or (self.ended is not None and not self._closed))

    def pop(self) -> tuple[str, list[Token], list[dict[str, Any]]]:
        """What has come since this was asked last."""
        taken = "".join(self._texts), self._tokens, self._details
        self._texts, self._tokens, self._details = [], [], []
        self._closed = self.ended is not None
        return taken


def detail(piece: Piece) -> dict[str, Any]:
    """One byte or special id for a page that draws patches."""
    entry: dict[str, Any] = {"hex": piece.byte.hex(), "starts": piece.starts, "entropy": finite(piece.entropy)}
    if piece.score is not None:
        entry["logprob"] = logprob(piece.score.logprob)
    if piece.from_prompt:
        entry["prompt"] = True
    if piece.special is not None:
        entry["special"] = piece.special
    return entry


def finite(value: float | None) -> float | None:
    """Rounded to what fp32 has; None for what JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def logprob(value: float) -> float:
    """A number that JSON has."""
    return value if value > LEAST_LOGPROB else LEAST_LOGPROB


class CompletionFormat:
    """Choices of /v1/completions."""

    prefix, object_name, chunk_name = "cmpl", "text_completion", "text_completion"

    @staticmethod
    def logprobs(tokens: Sequence[Token], specials: Sequence[str]) -> dict[str, Any]:
        """Four lists with an entry for each token."""
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [None if token.score is None else logprob(token.score.logprob) for token in tokens],
            "top_logprobs": [
                # The token itself is there too, as the API has it.
                None
                if token.score is None
                else {token_text(id, specials): logprob(value) for id, value in token.score.likeliest}
                | {token.text: logprob(token.score.logprob)}
                for token in tokens
            ],
            "text_offset": [token.offset for token in tokens],
        }

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A choice that has ended."""
        return self.chunks(choice)[0]

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks before the first byte."""
        return []

    def chunks(self, choice: Choice) -> list[dict[str, Any]]:
        """What has come of it since the last chunk; none where nothing has."""
        if not choice.has_news:
            return []
        text, tokens, details = choice.pop()
        scores = self.logprobs(tokens, choice.specials) if choice.scored else None
        found = {"index": choice.index, "text": text, "logprobs": scores, "finish_reason": choice.finish_reason}
        return [found | ({"details": details} if choice.details else {})]


class ChatFormat:
    """Choices of /v1/chat/completions."""

    prefix, object_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    @staticmethod
    def logprobs(tokens: Sequence[Token], specials: Sequence[str]) -> dict[str, Any]:
        """An object for each token."""

        def shown(text: str, data: bytes, value: float) -> dict[str, Any]:
            return {"token": text, "logprob": logprob(value), "bytes": list(data) if data else None}

        def likely(id: int, value: float) -> dict[str, Any]:
            return shown(
                token_text(id, specials), bytes((id - OFFSET,)) if OFFSET <= id < VOCABULARY_SIZE else b"", value
            )

        return {
            "content": [
                shown(token.text, token.data, token.score.logprob)
                | {"top_logprobs": [likely(id, value) for id, value in token.score.likeliest]}
                for token in tokens
                if token.score is not None
            ],
            "refusal": None,
        }

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A choice that has ended."""
        text, tokens, details = choice.pop()
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self.logprobs(tokens, choice.specials) if choice.scored else None,
            "finish_reason": choice.finish_reason,
        } | ({"details": details} if choice.details else {})

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks before the first byte."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunks(self, choice: Choice) -> list[dict[str, Any]]:
        """What has come of it since the last chunk; none where nothing has."""
        if not choice.has_news:
            return []
        text, tokens, details = choice.pop()
        return [
            {
                "index": choice.index,
                "delta": {"content": text} if text else {},
                "logprobs": self.logprobs(tokens, choice.specials) if choice.scored else None,
                "finish_reason": choice.finish_reason,
            }
            | ({"details": details} if choice.details else {})
        ]


Format = CompletionFormat | ChatFormat
