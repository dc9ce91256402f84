"""The load test: its numbers, and what it finds in answers."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from infra.load_test import (
    Findings,
    Question,
    Rounding,
    Single,
    ask,
    compare,
    main,
    percentile,
    questions,
    rounding_of,
    single_of,
    text_of,
)
from shared.errors import ConfigError

QUESTION = Question("a", 4, 1, True)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 1.0)] == [10, 19, 20]
    assert percentile([3.0], 0.5) == 3


def test_bytes_that_come_together_share_what_it_took() -> None:
    found = Findings()
    found.arrived("é", 2.0, True)
    found.arrived("abcd", 1.0, False)
    found.arrived("", 9.0, False)
    assert (found.first, found.between, found.written) == ([2.0], [0.25] * 4, 6)


def test_questions_are_the_same_for_a_seed_and_have_the_lengths() -> None:
    asked = questions(6, [16, 100], 8, 1, False)
    assert asked == questions(6, [16, 100], 8, 1, False) != questions(6, [16, 100], 8, 2, False)
    assert [len(question.prompt) for question in asked] == [16, 100] * 3
    assert len(set(asked)) == 6


def test_only_429_is_no_failure() -> None:
    found = Findings()
    found.statuses.update({"200": 5, "429": 3})
    assert found.failed == 0
    found.statuses.update(["stream", "503", "connection"])
    assert found.failed == 3


def test_lines_of_a_stream() -> None:
    assert text_of('data: {"choices": [{"text": "a"}]}') == ("a", False)
    assert text_of("data: [DONE]") == text_of("") == ("", False)
    assert text_of('data: {"error": {}}') == ("", True)


def events(*texts: str, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps({'choices': [{'text': text}]})}\n\n" for text in texts) + end


def asked_of(answer: httpx.Response) -> tuple[Any, Findings]:
    async def run() -> tuple[Any, Findings]:
        transport, found = httpx.MockTransport(lambda _: answer), Findings()
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await ask(client, QUESTION, None, found), found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "text", "status"),
    [
        (httpx.Response(200, text=events("a", "b")), "ab", "200"),
        (httpx.Response(200, text=events("a", end='data: {"error": {}}\n\n')), None, "stream"),
        (httpx.Response(200, text=events("a", end="")), None, "stream"),
        (httpx.Response(429, headers={"Retry-After": "7"}), None, "429"),
        (httpx.Response(500), None, "500"),
    ],
)
def test_the_status_of_an_answer(answer: httpx.Response, text: str | None, status: str) -> None:
    (found, wait), findings = asked_of(answer)
    assert (found, dict(findings.statuses)) == (text, {status: 1})
    assert wait == (7 if status == "429" else 1 if status == "500" else 0)


PATCHING = {"rule": "entropy", "theta": 1.5, "theta_rise": None, "entropy_model": "entropy"}
FINE = Rounding(1e-4, PATCHING)


def choice(text: str, seconds: list[float], entropies: list[float | None], prompt: str = "") -> dict[str, Any]:
    """A single run's: each place has the logprob -0.5, and its runner-up this one; one more place is the end."""
    places = [(byte, {"prompt": True}) for byte in prompt.encode()] + [(byte, {}) for byte in text.encode()]
    details = [{"hex": f"{byte:02x}", "entropy": entropy, **more} for (byte, more), entropy in zip(places, entropies)]
    likeliest = [{"x": -0.5, "y": second} for second in seconds]
    scores = {"token_logprobs": [-0.5] * len(seconds), "top_logprobs": likeliest}
    return {"text": prompt + text, "details": details, "logprobs": scores}


def test_bytes_that_rounding_could_decide() -> None:
    found = choice("abcd", [-2.0, -0.50009, -0.5002, -0.5], [1.0, 1.49995, 1.4998, None])
    counts = Rounding(1e-4, PATCHING | {"entropy_model": "counts"})
    assert single_of(found, counts) == single_of(found, FINE) == Single(b"abcd", (1, 3))
    assert single_of(found, Rounding(1e-4, PATCHING | {"theta": 1.00005})) == Single(b"abcd", (0, 1, 3))
    assert single_of(found, Rounding(1e-4, PATCHING | {"rule": "static", "theta": None})) == Single(b"abcd", (1, 3))
    assert single_of(found, Rounding(1e-3, PATCHING)).close == (1, 2, 3), "smaller weights round more"
    rising = PATCHING | {"rule": "monotonic", "theta": 0.49995}
    assert single_of(choice("ab", [-2.0] * 2, [1.0, 1.5]), Rounding(1e-4, rising)).close == (1,)
    both = PATCHING | {"rule": "entropy_rise", "theta": 1.0, "theta_rise": 0.5}
    assert single_of(choice("abc", [-2.0] * 3, [1.0, 1.3, 1.8]), Rounding(1e-4, both)).close == (0, 2)


def test_the_end_and_the_prompt_could_be_decided_by_rounding_too() -> None:
    """The end has a place among the probabilities, and no details; a prompt may be cut at another place."""
    assert single_of(choice("a", [-2.0, -0.5], [1.0]), FINE) == Single(b"a", (1,))
    found = choice("ab", [-0.5] * 2 + [-2.0] * 2, [1.5, 1.0, 1.0, 1.0], prompt="pq")
    assert single_of(found, FINE) == Single(b"ab", (0,)), "what is given is not chosen, however likely"


def test_a_byte_that_is_not_among_the_likeliest_is_tied_with_its_equals() -> None:
    """As where the likeliest are no well-formed text: only what is as likely as the byte itself counts."""
    likeliest = {"bytes:\\x80": -0.1, "bytes:\\x81": -0.1, "a": -3.0, "b": -3.0001}
    found = choice("ab", [-2.0] * 2, [1.0, 1.0])
    found["logprobs"] = {"token_logprobs": [-3.0, -4.0], "top_logprobs": [likeliest, likeliest]}
    assert single_of(found, FINE).close == (0,)


@pytest.mark.parametrize("kind", ["entropy", "counts"])
def test_answers_unlike_the_single_run_are_counted_and_those_by_rounding_apart(kind: str) -> None:
    """The third byte is tied; at the second one an entropy is at the threshold, which for counts explains nothing."""
    models = {"data": [{"id": "model", "weights": "float32", "patching": PATCHING | {"entropy_model": kind}}]}
    answer = {"choices": [choice("abc", [-2.0, -2.0, -0.5], [1.0, 1.5, 1.0])]}
    busy = [httpx.Response(429, json={}, headers={"Retry-After": "0.01"})]

    async def run() -> tuple[str, Findings]:
        def answered(request: httpx.Request) -> httpx.Response:
            if request.method == "POST" and busy:
                return busy.pop()
            return httpx.Response(200, json=models if request.method == "GET" else answer)

        texts = ["abc", "abd", "aXc", "Xbc", "ab"]
        found = Findings(answers=[(QUESTION, text) for text in texts])
        async with httpx.AsyncClient(transport=httpx.MockTransport(answered), base_url="http://test") as client:
            return await compare(client, None, await rounding_of(client, None), found), found

    said, found = asyncio.run(run())
    # "abd" and "ab" differ where bytes are tied, "aXc" where the entropy is at the threshold, "Xbc" before all that.
    assert (found.rounded, found.differing) == ((3, 1) if kind == "entropy" else (2, 2))
    close = 2 if kind == "entropy" else 1
    assert f"{found.differing} unlike the single run, {found.rounded} by rounding alone; {close} of 3 bytes" in said
    assert not busy, "a server that is busy is asked again"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["127.0.0.1:1"], "does not begin with http://"),
        (["http://127.0.0.1:1", "--clients", "0"], "--clients"),
        (["http://127.0.0.1:1", "--seconds", "1"], "http://127.0.0.1:1: no server of this project answers"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(words)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("patchwork: error: ")
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "model", "line"),
    [
        (httpx.Response(401, json={"error": {"message": "give a key"}}), None, "401: give a key"),
        (httpx.Response(200, text="<html>"), None, "no server of this project"),
        (httpx.Response(200, json={"data": [{"id": "a"}]}), None, "no server of this version"),
        (httpx.Response(200, json=[]), None, "no server of this version"),
        (httpx.Response(200, json={"data": [{"id": "a", "patching": {}}, {"id": "b", "patching": {}}]}), None, "a, b"),
        (httpx.Response(200, json={"data": [{"id": "a", "patching": {}}]}), "b", "--model b: there is no such model"),
    ],
)
def test_a_server_that_cannot_be_asked_is_named_with_the_reason(
    answer: httpx.Response, model: str | None, line: str
) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer), base_url="http://x") as client:
            await rounding_of(client, model)

    with pytest.raises(ConfigError, match=re.escape(line)):
        asyncio.run(run())
