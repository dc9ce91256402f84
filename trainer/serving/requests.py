"""What a client asks for: JSON of the OpenAI API as validated values. Free of torch and of HTTP.

A body comes from a stranger: whatever is in it is read, or refused in one line that names the field.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.errors import PatchworkError
from shared.io.files.json_reader import parse_json
from shared.settings import Settings, first_error, first_problem
from shared.text.chat import Turn
from shared.vocabulary import BOS, OFFSET, VOCABULARY_SIZE, byte_tokens
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

DEFAULT_BYTES = 512
"""Written at most where a request does not say."""
MOST_CHOICES = 128
MOST_BYTES = 2**31
IGNORED = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")
"""Well-known fields that change no answer: whatever is in them, they are taken and forgotten."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "tools": ([],),
    "tool_choice": ("none",),
}
"""Fields that mean nothing here, and the values with which they ask for nothing; any other value is refused."""
UNSUPPORTED = (
    "audio",
    "functions",
    "function_call",
    "prediction",
    "reasoning_effort",
    "verbosity",
)
"""Well-known fields that are refused by name rather than as a slip of the pen."""


class RequestError(PatchworkError):
    """A request that cannot be answered; the message says why."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


Stop = Annotated[str, Field(min_length=1, max_length=4096)]


class StreamOptions(Settings):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against an observer of the lengths of packets: none is sent, which a client may ask for."""


class Request(Settings):
    """What both kinds of requests have in common."""

    # Strict: "1" is no number and 1 is not true.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str | None = Field(default=None, max_length=256)
    """Which model answers; may be left out where one is served."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    """None: another one each time."""
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    """Texts for each prompt."""
    stop: Annotated[list[Stop], Field(max_length=16)] = Field(default_factory=list)
    """The text ends before the first of these that is written; one may stand without a list."""
    utf8: bool = False
    """Write well-formed UTF-8 only."""
    subset: str | None = Field(default=None, max_length=256)
    """Whose threshold places the patches, where subsets have their own."""
    theta: float | None = None
    """A threshold instead of the recorded ones, in nats."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds until the request is given up; at most those of the server."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    details: bool = False
    """Say of each byte how it was cut and how uncertain the entropy model was."""

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _streamed(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream = true")
        return self

    @property
    def length(self) -> int:
        """Bytes to write at most."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def scores(self) -> int | None:
        """How many likeliest ids to report of each byte; None: not even its own probability."""
        raise NotImplementedError

    def settings(self, seed: int) -> GenerateSettings:
        """How to write; ``seed`` where the request has none."""
        sampling = SamplingSettings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=None if self.top_p == 1 else self.top_p,
            min_p=self.min_p,
            seed=seed if self.seed is None else self.seed,
        )
        return GenerateSettings(
            length=self.length,
            sampling=sampling,
            stop=tuple(text.encode() for text in self.stop),
            utf8=self.utf8,
            subset=self.subset,
            theta=self.theta,
            logprobs=self.scores,
        )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several texts after a prompt: the first has that of the request, as it has alone."""
    if choice == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest(), "little")


class CompletionRequest(Request):
    """The body of /v1/completions."""

    prompt: Any = ""
    """A text or ids, or a list of either; see `prompts`."""
    max_tokens: int = Field(default=DEFAULT_BYTES, ge=0, le=MOST_BYTES)
    """Bytes to write at most."""
    echo: bool = False
    """Begin with the prompt."""
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @field_validator("prompt")
    @classmethod
    def _texts_or_ids(cls, value: Any) -> Any:
        several = isinstance(value, list) and not _all(value, int)
        if several and not value:
            raise ValueError("an empty list")
        ones = value if several else [value]
        if not (_all(ones, str) or all(isinstance(one, list) and _all(one, int) for one in ones)):
            raise ValueError("expected a string, a list of strings, a list of ids or a list of lists of ids")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of the prompts."""
        return self.prompt if isinstance(self.prompt, list) and not _all(self.prompt, int) else [self.prompt]

    @property
    def length(self) -> int:
        return self.max_tokens

    @property
    def echoes(self) -> bool:
        return self.echo

    @property
    def scores(self) -> int | None:
        return self.logprobs


def _all(values: Sequence[Any], kind: type) -> bool:
    # An empty list is a prompt without ids; True is an int to Python and not to JSON.
    return all(type(value) is kind for value in values)


class TextPart(Settings):
    """A part of a message: only text can be read."""

    type: Literal["text"]
    text: str


class Message(Settings):
    """A turn of a chat."""

    role: str = Field(min_length=1, max_length=64)
    content: str | list[TextPart]
    name: str | None = None
    """Taken and forgotten."""

    @property
    def turn(self) -> Turn:
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Turn(self.role, "".join(parts).encode())


class ChatRequest(Request):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_BYTES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_BYTES)
    """The newer name of max_tokens."""
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs = true")
        return self

    @property
    def turns(self) -> list[Turn]:
        """The chat so far."""
        return [message.turn for message in self.messages]

    @property
    def length(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_BYTES

    @property
    def scores(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


R = TypeVar("R", CompletionRequest, ChatRequest)


def read_request(body: bytes, kind: type[R]) -> R:
    """The request in a body. Raises RequestError that names the field."""
    try:
        values = parse_json(body)
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        # Not deeper than `parse_json` goes, so this parser, which recurses, may see it.
        json.loads(body, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    # An explicit null is what clients send for what was not given.
    values = {name: value for name, value in values.items() if value is not None and name not in IGNORED}
    for name in UNSUPPORTED:
        if name in values:
            raise RequestError(f"{name} is not supported", name, "unsupported_parameter")
    for name, neutral in NEUTRAL.items():
        if name in values and values.pop(name) not in neutral:
            raise RequestError(
                f"{name} is not supported; leave it out, or give {json.dumps(neutral[0])}", name, "unsupported_value"
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = first_error(error)
        param = str(found["loc"][0])[:256] if found["loc"] else None
        raise RequestError(first_problem(error), param) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:64]!r} is given twice")
        values[name] = value
    return values


def prompt_of_ids(ids: Sequence[int], vocabulary: int) -> np.ndarray:
    """int16: a prompt of a model's own ids, with BOS in front where the client has left it out.

    ``vocabulary`` is how many ids the model has: byte b is b + OFFSET, named special ids come after bytes. Raises
    RequestError for any other id.
    """
    given = ids[1:] if ids and ids[0] == BOS else ids
    wrong = next((token for token in given if not OFFSET <= token < vocabulary), None)
    if wrong is not None:
        raise RequestError(
            f"prompt: id {wrong} is none of a text's: bytes are {OFFSET} to {VOCABULARY_SIZE - 1}"
            + (f", named special ids go up to {vocabulary - 1}" if vocabulary > VOCABULARY_SIZE else "")
            + f", and {BOS} may begin a prompt",
            "prompt",
        )
    return np.array([BOS, *given], np.int16)


def prompt_of_text(text: str) -> np.ndarray:
    """int16: a prompt of the UTF-8 bytes of a text."""
    return np.concatenate([np.array([BOS], np.int16), byte_tokens(text.encode())])
