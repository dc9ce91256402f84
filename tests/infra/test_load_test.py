"""The load test: its numbers, and what it finds in answers."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from infra.load_test import Findings, Question, ask, compare, percentile, questions, text_of

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


def test_an_answer_unlike_the_single_run_is_counted() -> None:
    async def run() -> tuple[int, int]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=events("ab")))
        found = Findings(answers=[(QUESTION, "ab"), (QUESTION, "ac"), (QUESTION, "ab")])
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await compare(client, None, found), found.differing

    assert asyncio.run(run()) == (1, 1)
