"""Servers that are busy for a moment, cut an answer, or want a query: read in the end, and no signature is shown."""

import http.server
import re
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.pipeline_helpers import STATIC, letters, preprocess, stored

from pipeline.executors import retry
from shared.io.stores import transient_errors as transient
from shared.io.stores.transient_errors import is_transient, retried

LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(50))
TEXTS = sorted(b"line %d" % i for i in range(50))


class Server(http.server.BaseHTTPRequestHandler):
    """/FAULT/NAME: the first HEAD or GET of each fails as FAULT says."""

    met: ClassVar[Counter[tuple[str, str]]] = Counter()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        fault = self.path.split("/")[1]
        self.met[fault, self.command] += 1
        first = self.met[fault, self.command] == 1
        method, _, kind = fault.partition("-")
        if method == self.command and (first or kind == "always"):
            if kind == "half":
                self.headed(200, len(LINES))
                self.wfile.write(LINES[:100])
                self.close_connection = True
            else:
                self.headed(int(kind) if kind.isdigit() else 503, 0)
            return
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        data = LINES
        if found:
            data = LINES[int(found[1]) : int(found[2] or len(LINES)) + 1]
        self.headed(206 if found else 200, len(data), found and int(found[1]))
        if body:
            self.wfile.write(data)

    def headed(self, status: int, size: int, begin: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin}-{begin + size - 1}/{len(LINES)}")
        self.end_headers()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="the HTTP driver of fsspec needs the package aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(retry, "BACK_OFF_SECONDS", (0.0, 0.0))


@pytest.mark.parametrize("fault", ["GET-503", "GET-429", "GET-500", "GET-502", "GET-half", "HEAD-503"])
def test_a_server_that_fails_once_is_asked_again(tmp_path, address, fault):
    assert preprocess(f"{address}/{fault}/a.jsonl", "--out", tmp_path / "out", *STATIC) == 0
    assert sorted(text for _, _, text in stored(tmp_path / "out")) == TEXTS


def test_a_server_that_fails_always_is_given_up_after_three_attempts(tmp_path, address):
    assert preprocess(f"{address}/GET-always/a.jsonl", "--out", tmp_path / "out", *STATIC) == 1
    assert Server.met["GET-always", "GET"] == transient.ATTEMPTS


@pytest.mark.parametrize("name", ["a.jsonl?download=true", "a.jsonl?X-Amz-Signature=secret&x=1", "get?id=5"])
def test_a_query_is_no_part_of_the_name_and_is_not_shown(tmp_path, address, name, capsys):
    assert preprocess(f"{address}/fine/{name}", "--out", tmp_path / "out", *STATIC) == 0
    found = stored(tmp_path / "out")
    assert sorted(text for _, _, text in found) == TEXTS
    assert letters(tmp_path / "out") == []
    assert preprocess(f"{address}/GET-always/{name}", "--out", tmp_path / "failed", *STATIC) in (1, 2)
    shown = capsys.readouterr()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    said = [shown.out, shown.err, *(path.read_bytes().decode(errors="replace") for path in kept)]
    assert not any("secret" in text for text in (*said, *(i for i, _, _ in found)))


@pytest.mark.parametrize("url", ["simplecache::s3://me:hush-hush@bucket/x", "s3://me:hush-hush@bucket/x"])
def test_no_password_of_a_url_is_shown(tmp_path, url, capsys):
    assert preprocess(url, "--out", tmp_path / "out", *STATIC) == 2
    assert "hush-hush" not in capsys.readouterr().err


def test_no_password_of_the_environment_is_shown(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError("signed with hush-hush-hush")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    monkeypatch.setattr(MemoryFileSystem, "isfile", fail)
    assert preprocess("memory://x", "--out", tmp_path / "out", *STATIC) == 2
    said = capsys.readouterr().err
    assert "signed with" in said
    assert "hush-hush-hush" not in said


def of(module: str, name: str, base: type[Exception], monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """A class that a library would have, where the library is not installed."""
    made = types.ModuleType(module)
    found = type(name, (base,), {})
    setattr(made, name, found)
    monkeypatch.setitem(sys.modules, module, made)
    return found


def test_errors_of_other_libraries_are_told_apart(monkeypatch):
    class Answered(Exception):
        pass

    def answered(**values: object) -> Exception:
        error = Answered()
        error.__dict__.update(values)
        return error

    passing = [
        answered(status=503),
        answered(code=429),
        answered(code="502"),
        answered(status_code=500),
        answered(response=types.SimpleNamespace(status_code=504)),
        answered(response={"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 400}}),
        answered(response={"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 503}}),
        of("botocore.exceptions", "HTTPClientError", Exception, monkeypatch)("cut"),
        of("google.auth.exceptions", "TransportError", Exception, monkeypatch)("no connection"),
        of("httpx", "TransportError", Exception, monkeypatch)("no connection"),
        ConnectionResetError(),
        TimeoutError(),
    ]
    final = [
        answered(status=404),
        answered(code=403),
        answered(code=7),
        answered(response={"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}}),
        FileNotFoundError(2, "no such file"),
        ValueError("a value"),
        OSError(28, "no space left"),
    ]
    assert [is_transient(error) for error in passing] == [True] * len(passing)
    assert [is_transient(error) for error in final] == [False] * len(final)


def test_what_does_not_pass_by_itself_is_tried_once():
    tries = []

    def work() -> None:
        tries.append(1)
        raise ValueError("final")

    with pytest.raises(ValueError, match="final"):
        retried(work)
    assert len(tries) == 1
