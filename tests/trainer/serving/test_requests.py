"""Requests of strangers are read as they are meant, or refused in one line that names the field."""

import json
from typing import Any

import numpy as np
import pytest

from shared.text.chat import Turn
from shared.vocabulary import BOS, EOS, OFFSET
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.serving.requests import (
    DEFAULT_BYTES,
    ChatRequest,
    CompletionRequest,
    RequestError,
    choice_seed,
    prompt_of_ids,
    prompt_of_text,
    read_request,
)

MESSAGES = [{"role": "user", "content": "hello"}]


def completion(**fields: Any) -> CompletionRequest:
    return read_request(json.dumps(fields).encode(), CompletionRequest)


def chat(**fields: Any) -> ChatRequest:
    return read_request(json.dumps({"messages": MESSAGES} | fields).encode(), ChatRequest)


def test_every_field_reaches_the_settings() -> None:
    asked = completion(
        prompt="a",
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        seed=9,
        stop=["x", "é"],
        utf8=True,
        subset="de",
        theta=1.5,
        logprobs=4,
    )
    sampling = SamplingSettings(temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=9)
    assert asked.settings(5) == GenerateSettings(
        length=7, sampling=sampling, stop=(b"x", "é".encode()), utf8=True, subset="de", theta=1.5, logprobs=4
    )


def test_what_is_not_given_is_as_the_api_has_it() -> None:
    settings = completion(prompt=None, stop=None, seed=None, user="me", metadata={"a": 1}).settings(5)
    assert settings == GenerateSettings(length=DEFAULT_BYTES, sampling=SamplingSettings(temperature=1, seed=5))
    assert completion().prompts == [""]
    assert completion(frequency_penalty=0, logit_bias={}, presence_penalty=0.0).n == 1
    assert chat(response_format={"type": "text"}, store=True).length == DEFAULT_BYTES


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", ""], ["ab", ""]),
        ([5, 6], [[5, 6]]),
        ([[5], []], [[5], []]),
        ([], [[]]),  # no ids: the beginning of a document
        ("\0\U0001f600", ["\0\U0001f600"]),
    ],
)
def test_prompts_are_texts_or_ids_one_or_many(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_turns_of_a_chat() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]
    assert chat(messages=[*MESSAGES, {"role": "assistant", "content": parts, "name": "x"}]).turns == [
        Turn("user", b"hello"),
        Turn("assistant", "aé".encode()),
    ]
    assert (chat().scores, chat(logprobs=True).scores, chat(logprobs=True, top_logprobs=3).scores) == (None, 0, 3)
    assert (chat(max_tokens=4).length, chat(max_completion_tokens=5).length) == (4, 5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"timeout": 0}, "timeout"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"max_token": 5}, "max_token"),
        ({"": 5}, ""),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(fields: dict[str, object], param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        completion(**fields)
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert param is None or param in str(caught.value)


def test_too_many_stops_are_told_how_many_there_may_be() -> None:
    with pytest.raises(RequestError, match="16"):
        completion(stop=["x"] * 17)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": 1, "content": "x"}]},
        {"messages": "x"},
        {"tools": [{"type": "function"}]},
        {"top_logprobs": 2},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"prompt": "x"},
    ],
)
def test_what_is_no_chat_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        chat(**fields)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a\0b"}',
        rb'{"prompt": "\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": 1' + b"0" * 5000 + b"}",
        b'{"n": 1, "n": 2}',
        b'{"prompt": "a", "stream_options": {"include_usage": true, "include_usage": false}}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt":' + b"[" * 150 + b"]" * 150 + b"}",
    ],
)
def test_what_is_not_json_of_one_meaning_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(body, CompletionRequest)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 500


def test_ids_are_those_of_the_model() -> None:
    assert prompt_of_text("aé").tolist() == [BOS, *(byte + OFFSET for byte in "aé".encode())]
    assert prompt_of_ids([OFFSET, 259], 260).tolist() == [BOS, OFFSET, 259]
    assert prompt_of_ids([BOS, 261], 262).tolist() == [BOS, 261]
    assert prompt_of_ids([], 260).dtype == np.int16
    for wrong in ([EOS], [5, BOS], [260], [-1], [2**70]):
        with pytest.raises(RequestError, match=str(wrong[-1])):
            prompt_of_ids(wrong, 260)


def test_the_first_of_several_texts_has_the_seed_of_one() -> None:
    seeds = [choice_seed(7, choice) for choice in range(100)]
    assert seeds[0] == 7
    assert len({*seeds, *(choice_seed(8, choice) for choice in range(100))}) == 200
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_options_of_a_stream_may_be_null() -> None:
    asked = completion(stream=True, stream_options={"include_usage": None, "include_obfuscation": None})
    assert asked.stream_options is not None
    assert not asked.stream_options.include_usage
