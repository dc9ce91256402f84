"""A real server asked by the real client of OpenAI: answers, streams, errors, and clients that misbehave."""

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from helpers.serving import PATIENCE, Alone, Running, alone, chat_model, running, sampled, text_of, until

from shared.text.chat import Turn
from shared.vocabulary import BOS, EOS, OFFSET
from trainer.generation.generator import Generator
from trainer.generation.sampling import WRITABLE, SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.serving.requests import choice_seed

if TYPE_CHECKING:
    import openai


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(chat_model(tmp_path_factory.mktemp("http")))


@pytest.fixture(scope="module")
def server(generator: Generator) -> Iterator[Running]:
    with running({"tiny": generator}, prefix_memory=1 << 24) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Running) -> "openai.OpenAI":
    return server.openai()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    # Another generator: that of the server belongs to its thread.
    return alone(Generator(chat_model(tmp_path_factory.mktemp("single"))))


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text ends by itself."""
    writable = WRITABLE.copy()
    writable[EOS] = False
    monkeypatch.setattr("trainer.generation.sampling.WRITABLE", writable)


def shown(pieces: list[Any]) -> str:
    return text_of(pieces).decode("utf-8", "replace")


# ---- Completions.


def test_a_completion_is_the_single_run(client: "openai.OpenAI", single: Alone) -> None:
    answer = client.completions.create(model="tiny", prompt="The patch", max_tokens=20, seed=3, user="me")
    pieces = single("The patch", sampled(20, seed=3))
    (choice,) = answer.choices
    assert choice.text == shown(pieces)
    assert choice.finish_reason == ("length" if len(pieces) == 20 else "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, len(pieces))
    patches = answer.usage.model_extra["patches"]
    assert patches["completion"] == sum(piece.starts for piece in pieces)
    assert 0 < patches["prompt"] <= 9


def test_several_prompts_and_texts_come_in_order(client: "openai.OpenAI", single: Alone) -> None:
    answer = client.completions.create(model="tiny", prompt=["one", "two", ""], max_tokens=8, seed=5, n=2)
    expected = [
        shown(single(prompt, sampled(8, seed=choice_seed(5, choice))))
        for prompt in ("one", "two", "")
        for choice in range(2)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(6))


def test_ids_are_bytes_and_special_ids(client: "openai.OpenAI", single: Alone) -> None:
    ids = [byte + OFFSET for byte in b"ab"]
    options = {"model": "tiny", "max_tokens": 9, "seed": 1}
    texts = [
        client.completions.create(prompt=prompt, **options).choices[0].text for prompt in (ids, [BOS, *ids], [ids])
    ]
    assert texts == [shown(single("ab", sampled(9, seed=1)))] * 3
    special = client.completions.create(prompt=[261, *ids], echo=True, **options)
    assert special.choices[0].text.startswith("<user>ab")


def test_every_way_to_choose_reaches_the_model(client: "openai.OpenAI", single: Alone) -> None:
    sampling = SamplingSettings(temperature=0.7, top_p=0.9, top_k=50, min_p=0.001, seed=11)
    theta = 5.0
    settings = GenerateSettings(length=15, sampling=sampling, utf8=True, theta=theta)
    more = {"top_k": 50, "min_p": 0.001, "utf8": True, "theta": theta, "timeout": 100, "details": True}
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=15, temperature=0.7, top_p=0.9, seed=11, extra_body=more
    )
    pieces = single("x", settings)
    (choice,) = answer.choices
    assert choice.text == shown(pieces)
    details = choice.model_extra["details"]
    assert b"".join(bytes.fromhex(entry["hex"]) for entry in details) == text_of(pieces)
    assert [entry["starts"] for entry in details] == [piece.starts for piece in pieces]
    assert [entry["entropy"] for entry in details] == pytest.approx([piece.entropy for piece in pieces], abs=1e-3)
    assert answer.model_extra["rates"]["bytes_per_second"] > 0


def test_a_stop_string_is_not_shown(client: "openai.OpenAI", single: Alone) -> None:
    whole = shown(single("x", sampled(40, seed=2, utf8=True)))
    stop = whole[5:7]
    for stops in (stop, ["never there", stop]):
        answer = client.completions.create(
            model="tiny", prompt="x", max_tokens=40, seed=2, stop=stops, extra_body={"utf8": True}
        )
        assert answer.choices[0].text == whole.partition(stop)[0]
        assert answer.choices[0].finish_reason == "stop"


def test_without_a_seed_texts_differ(client: "openai.OpenAI") -> None:
    texts = {client.completions.create(model="tiny", prompt="x", max_tokens=30).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_a_prompt_is_scored_without_writing(client: "openai.OpenAI") -> None:
    answer = client.completions.create(
        model="tiny", prompt="naïve", max_tokens=0, echo=True, logprobs=3, extra_body={"details": True}
    )
    (choice,) = answer.choices
    assert choice.text == "naïve"
    scores = choice.logprobs
    assert scores is not None
    assert scores.tokens == ["n", "a", r"bytes:\xc3", r"bytes:\xaf", "v", "e"]
    assert scores.text_offset == [0, 1, 2, 2, 3, 4]
    assert scores.token_logprobs is not None
    assert all(value < 0 for value in scores.token_logprobs)
    for token, value, likeliest in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs or []):
        assert likeliest[token] == value
        assert 3 <= len(likeliest) <= 4
    assert all(entry["prompt"] and "logprob" in entry for entry in choice.model_extra["details"])


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_written_after_a_scored_prompt_is_one_entry_even_where_it_is_the_end(
    client: "openai.OpenAI", monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The harness leaves the last entry out, whatever it is."""
    writable = np.zeros_like(WRITABLE)
    writable[EOS if ends else OFFSET + ord("x")] = True
    monkeypatch.setattr("trainer.generation.sampling.WRITABLE", writable)
    ids = [BOS, *(byte + OFFSET for byte in b"ab")]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=1, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == ("ab" if ends else "abx")
    assert choice.finish_reason == ("stop" if ends else "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["<bos>", "a", "b", "<eos>" if ends else "x"]
    first, *scores = choice.logprobs.token_logprobs or []
    assert first is None
    assert all(score is not None and score < 0 for score in scores)


# ---- Chats.


def test_a_chat_is_answered(client: "openai.OpenAI", generator: Generator, tmp_path: Path) -> None:
    turns = [Turn("system", b"be short"), Turn("user", "grüß".encode())]
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "be short"}, {"role": "user", "content": "grüß"}],
        max_tokens=20,
        seed=6,
        logprobs=True,
        top_logprobs=2,
    )
    own = Generator(chat_model(tmp_path))
    pieces = [piece for _, piece in own.write_batch([turns], sampled(20, seed=6, logprobs=2)) if not piece.from_prompt]
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", shown(pieces))
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    written = [entry for entry in content if entry.bytes is not None]
    assert bytes(byte for entry in written for byte in entry.bytes or []) == text_of(pieces)
    assert [entry.logprob for entry in written] == pytest.approx(
        [piece.score.logprob for piece in pieces if piece.score], abs=1e-3
    )
    assert {len(entry.top_logprobs) for entry in content} == {2}


def test_a_role_without_a_special_id_is_refused(client: "openai.OpenAI") -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="tool") as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}], max_tokens=5
        )
    with pytest.raises(openai.BadRequestError, match="special id 'developer'") as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "developer", "content": "x"}], max_tokens=5)
    assert caught.value.param == "messages"
    assert "/" not in str(caught.value).replace("docs/finetuning", "")


# ---- Streams.


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_stream_is_the_whole_in_characters(client: "openai.OpenAI", single: Alone, kind: str) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 60, "seed": 8, "n": 2, "extra_body": {"utf8": True}}
    if kind == "chat":
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = [
            choice.message.content for choice in client.chat.completions.create(messages=messages, **options).choices
        ]
        stream: Any = client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **options
        )
    else:
        whole = [shown(single("naïve", sampled(60, seed=choice_seed(8, choice), utf8=True))) for choice in range(2)]
        stream = client.completions.create(
            prompt="naïve", stream=True, stream_options={"include_usage": True}, **options
        )
    texts, ends, usages, chunks = ["", ""], ["", ""], [], 0
    for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            text = (choice.delta.content if kind == "chat" else choice.text) or ""
            assert "\ufffd" not in text
            chunks += 1
            texts[choice.index] += text
            ends[choice.index] += choice.finish_reason or ""
    assert texts == whole
    assert set(ends) <= {"length", "stop"}  # told once for each
    assert chunks > 10
    assert usages[-1] is not None
    assert set(usages[:-1]) == {None}


def test_a_stream_ends_with_done_and_has_details(server: Running) -> None:
    with server.http() as http:
        asked = {"prompt": "ab", "max_tokens": 5, "seed": 1, "stream": True, "echo": True, "details": True}
        answer = http.post("/v1/completions", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    details = [entry for chunk in chunks for choice in chunk["choices"] for entry in choice["details"]]
    assert [entry.get("prompt", False) for entry in details] == [True] * 2 + [False] * (len(details) - 2)
    assert b"".join(bytes.fromhex(entry["hex"]) for entry in details).startswith(b"ab")
    assert chunks[-1]["rates"]["seconds"] > 0


def test_the_program_of_the_page_runs(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    with running({"blt": generator}) as served:
        exec(program.replace("http://127.0.0.1:8000", served.url), {})
    assert "prompt_tokens=4" in capsys.readouterr().out


# ---- Errors.


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in the format of the API, and nothing else."""
    values = answer.json()
    assert values.keys() == {"error"}
    assert values["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return values["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"temperature": NaN}', 400),
        (b'{"n": 1, "n": 1}', 400),
        (b'{"prompt": "\0"}', 400),
        (rb'{"prompt": "\udc00"}', 400),
        (b'{"prompt": 5}', 400),
        (b'{"max_tokens": 1e9}', 400),
        (b'{"max_tokens": 2000000000}', 400),
        (b'{"prompt": [2]}', 400),
        (b'{"subset": "none"}', 400),
        (b'{"model": "other"}', 404),
        (b'{"prompt": "' + b"x" * (10 << 20) + b'"}', 413),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_wrong_with_a_request_is_said(server: Running, body: bytes, status: int) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"


def test_what_is_asked_in_another_way_is_refused(server: Running) -> None:
    with server.http() as http:
        # A page of somebody else could send this without asking the browser.
        plain = http.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
        assert (plain.status_code, http.get("/v1/completions").status_code) == (415, 405)
        assert http.get("/v1/other").status_code == 404
        error_of(plain)
        packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        packed_answer = http.post("/v1/completions", content=gzip.compress(b"{}"), headers=packed)
        assert packed_answer.status_code == 415
        assert "Content-Encoding 'gzip'" in error_of(packed_answer)["message"]
        error_of(http.get("/v1/other"))
        error_of(http.get("/v1/completions"))


def test_it_says_what_it_serves_and_counts(server: Running, client: "openai.OpenAI") -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").model_extra["specials"] == ["system", "user", "assistant", "end"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    client.completions.create(model="tiny", prompt="x" * 300, max_tokens=4)
    with server.http() as http:
        assert http.get("/health").json() == {"status": "ok"}
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['patchwork_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(values['patchwork_written_bytes_total{model="tiny"}']) >= 4
    assert float(values['patchwork_prompt_bytes_total{model="tiny"}']) >= 300
    assert float(values['patchwork_first_byte_seconds_count{model="tiny"}']) >= 1
    assert float(values['patchwork_between_bytes_seconds_count{model="tiny"}']) >= 3
    assert float(values['patchwork_memory_limit_bytes{model="tiny"}']) == server.engine.budget.memory


def test_a_key_is_needed_where_there_is_one(generator: Generator) -> None:
    import openai

    with running({"tiny": generator}, keys=[b"first", b"second"]) as served:
        assert served.openai("second").models.list().data[0].id == "tiny"
        for wrong in ("none", "firs", "first second"):
            with pytest.raises(openai.AuthenticationError):
                served.openai(wrong).models.list()
        with served.http() as http:
            refused = http.post("/v1/completions", json={})
            assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
            assert http.get("/metrics").status_code == 401
            assert http.get("/health").status_code == 200


def test_a_name_that_was_made_to_mean_this_machine_gets_nothing(generator: Generator) -> None:
    with running({"tiny": generator}, hosts=("127.0.0.1", "localhost")) as served, served.http() as http:
        assert http.get("/v1/models").status_code == 200
        assert http.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200
        assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421


def test_two_models_are_served_by_their_names(generator: Generator, tmp_path: Path) -> None:
    with running({"one": generator, "two": Generator(chat_model(tmp_path))}) as served, served.http() as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["one", "two"]
        for name in ("one", "two"):
            answer = http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 2})
            assert answer.json()["model"] == name
        assert error_of(http.post("/v1/completions", json={"prompt": "x"}))["param"] == "model"


@pytest.mark.usefixtures("endless")
def test_a_full_queue_says_when_to_come_back(generator: Generator) -> None:
    with running({"tiny": generator}, queue=1, most_rows=1) as served, served.http() as http:
        # One is written for as long as this test needs, one waits.
        asked = {"prompt": "x", "max_tokens": 10_000, "stream": True}
        with http.stream("POST", "/v1/completions", json=asked) as first:
            parts = first.iter_raw()  # kept: an iterator that goes closes its connection
            next(parts)
            with http.stream("POST", "/v1/completions", json=asked):
                refused = http.post("/v1/completions", json=asked)
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 120


@pytest.mark.usefixtures("endless")
def test_a_request_ends_at_its_timeout(server: Running) -> None:
    with server.http() as http:
        asked = {"prompt": "x", "max_tokens": 100_000, "timeout": 0.2}
        answer = http.post("/v1/completions", json=asked)
        assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
        streamed = http.post("/v1/completions", json=asked | {"stream": True}).text
    last = json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "timeout"


# ---- Clients that misbehave.


def raw_request(served: Running, **fields: Any) -> socket.socket:
    """A connection on which something has been asked."""
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", "max_tokens": 100_000} | fields).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a client that does not read is soon behind
    connection.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def cancelled(served: Running, reason: str) -> float:
    return served.service.metrics.cancelled.labels("tiny", reason)._value.get()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("endless")
def test_who_hangs_up_is_written_for_no_more(generator: Generator, stream: bool) -> None:
    with running({"tiny": generator}, most_rows=1) as served, served.http() as http:
        connection = raw_request(served, stream=stream)
        if stream:
            connection.recv(1)
        else:
            until(lambda: not served.engine.idle)
        connection.close()
        # With one text at a time this is answered only when the other has been given up.
        answer = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
        assert answer.status_code == 200
        assert cancelled(served, "disconnected") == 1


def test_who_hangs_up_before_the_end_of_a_request_is_no_fault(
    server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    before = float(server.service.metrics.requests.labels("/v1/completions", "499")._value.get())
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        connection.sendall(head)
    until(lambda: server.service.metrics.requests.labels("/v1/completions", "499")._value.get() > before)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("endless")
def test_a_slow_reader_is_given_up_and_holds_up_nobody(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.serving.exchange.MOST_BEHIND", 64)
    with running({"tiny": generator}, most_rows=8, send_buffer=4096) as served, served.http() as http:
        connection = raw_request(served, stream=True, n=7, details=True, logprobs=20, max_tokens=3_000)
        until(lambda: not served.engine.idle)
        answer = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 200})
        assert answer.status_code == 200
        # Nobody reads that connection: with all rows taken, this waits until it has been given up.
        assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2, "n": 8}).status_code == 200
        assert cancelled(served, "slow") == 1
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("endless")
def test_a_shutdown_tells_who_is_still_waiting(generator: Generator, stream: bool) -> None:
    with running({"tiny": generator}, grace=0) as served, served.http() as http:
        asked = {"prompt": "x", "max_tokens": 100_000, "stream": stream}
        if stream:
            with http.stream("POST", "/v1/completions", json=asked) as answer:
                parts = answer.iter_raw()
                text = next(parts)
                served.server.stop()
                text += b"".join(parts)
            assert json.loads(text.strip().split(b"\n\n")[-1][6:])["error"]["code"] == "shutting_down"
        else:
            connection = raw_request(served)
            until(lambda: not served.engine.idle)
            served.server.stop()
            status = b""
            while b"\r\n" not in status:
                status += connection.recv(100)
            assert status.startswith(b"HTTP/1.1 503")
            connection.close()
        served.thread.join()


@pytest.mark.usefixtures("endless")
def test_a_shutdown_lets_what_is_written_be_finished(
    generator: Generator, single: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running({"tiny": generator}) as served, served.http() as http, served.http() as other:
        asked = {"prompt": "end", "max_tokens": 100, "seed": 41, "stream": True}
        # After some bytes the engine waits for this test.
        asked_again, turns = Event(), iter(range(6))
        monkeypatch.setattr(served.engine, "_expire", lambda: next(turns, None) is None and asked_again.wait(PATIENCE))
        with http.stream("POST", "/v1/completions", json=asked) as answer:
            parts = answer.iter_raw()
            text = next(parts)
            served.server.stop()
            until(lambda: served.service.draining)
            # As long as that one is written, new ones get to know why not.
            refused = other.get("/health")
            asked_again.set()
            text += b"".join(parts)
        assert refused.status_code == 503
        chunks = [json.loads(line[6:]) for line in text.decode().strip().split("\n\n")[:-1]]
        expected = single("end", sampled(100, seed=41))
        assert len(expected) == 100
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == shown(expected)
        served.thread.join()
