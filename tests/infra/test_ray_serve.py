"""Replicas on a local Ray cluster: one is killed under load, and more is asked than there is room for."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.ray_helpers import free_ports
from helpers.serving import PATIENCE, alone, chat_model, sampled, text_of

from trainer.generation.generator import Generator

pytestmark = pytest.mark.drill

BYTES = 200
REPLICAS = 2
REQUESTS = 24
WAITING = 16
"""In the ingress."""
EACH = 12
"""Requests in a replica."""
AT_ONCE = 4
"""Of these, how many are written at a time."""


@dataclass
class Cluster:
    """`python -m infra.ray_serve` in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    folder: Path

    def replicas(self) -> set[int]:
        """Processes that hold the model."""
        return self.processes(rb"ray::ServeReplica:\w+:Replica")

    def processes(self, title: bytes) -> set[int]:
        """Processes with titles that begin so, among those that the command has started."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = set()
        for number in parents:
            above: int | None = number
            while above and above != self.process.pid:
                above = parents.get(above)
            try:
                found_title = Path(f"/proc/{number}/cmdline").read_bytes()
            except OSError:
                continue
            if above and re.match(title, found_title):
                found.add(number)
        return found

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, trust_env=False, limits=limits)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = chat_model(tmp_path_factory.mktemp("cluster"))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "infra.ray_serve", str(folder), "--port", str(port), "--device", "cpu"]
    command += ["--threads", "1", "--replicas", str(REPLICAS), "--max-batch", str(AT_ONCE), "--memory", "0.5"]
    command += ["--max-ongoing", str(EACH), "--target-ongoing", str(EACH), "--queue", str(WAITING), "--grace", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving "):
                break
        else:
            raise AssertionError("".join(said))
        yield Cluster(f"http://127.0.0.1:{port}", process, folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@dataclass
class Answer:
    """What a client got: texts, then the end, or an error."""

    text: str = ""
    done: bool = False
    error: dict[str, Any] | None = None
    status: int = 0
    retry_after: str | None = None


def asked_for(number: int) -> dict[str, Any]:
    """Every sixth answer is whole, the others are streams."""
    return {"prompt": f"text {number}", "max_tokens": BYTES, "seed": number, "stream": number % 6 != 0}


async def ask(client: httpx.AsyncClient, body: dict[str, Any], answer: Answer) -> Answer:
    async with client.stream("POST", "/v1/completions", json=body) as response:
        answer.status = response.status_code
        answer.retry_after = response.headers.get("Retry-After")
        if not (body["stream"] and answer.status == 200):
            values = json.loads(await response.aread())
            answer.error, answer.done = values.get("error"), "error" not in values
            answer.text = "".join(choice["text"] for choice in values.get("choices", ()))
            return answer
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                answer.done = True
            elif line:
                values = json.loads(line.removeprefix("data: "))
                answer.error = values.get("error")
                answer.text += "".join(choice["text"] for choice in values.get("choices", ()))
    return answer


def test_a_machine_that_starts_processes_slowly_is_waited_for(cluster: Cluster) -> None:
    (controller,) = cluster.processes(rb"ray::ServeController")
    environment = Path(f"/proc/{controller}/environ").read_bytes().split(b"\0")
    assert b"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60" in environment


def test_of_a_replica_that_is_killed_only_streams_that_have_begun_are_lost(cluster: Cluster) -> None:
    before = cluster.replicas()
    assert len(before) == REPLICAS

    async def under_load() -> list[Answer]:
        answers = [Answer() for _ in range(REQUESTS)]
        async with cluster.client() as client:
            tasks = [asyncio.create_task(ask(client, asked_for(n), answer)) for n, answer in enumerate(answers)]
            # One writes no more than AT_ONCE, so that with two more each of both writes two or more.
            while sum(bool(answer.text) and not answer.done for answer in answers) < AT_ONCE + 2:
                assert not all(task.done() for task in tasks), "both replicas never wrote at the same time"
                await asyncio.sleep(0.01)
            os.kill(min(before), signal.SIGKILL)
            await asyncio.gather(*tasks)
        return answers

    single = alone(Generator(cluster.folder))
    lost = 0
    for number, answer in enumerate(asyncio.run(under_load())):
        whole = text_of(single(f"text {number}", sampled(BYTES, seed=number))).decode("utf-8", "replace")
        if answer.error is None:
            assert (answer.status, answer.done, answer.text) == (200, True, whole), number
        else:
            lost += 1
            assert asked_for(number)["stream"], "a whole answer has not begun before it is there"
            assert answer.text, "nor has a stream before its first event"
            assert whole.startswith(answer.text.rstrip("\ufffd"))
            assert (answer.error["code"], answer.error["type"]) == ("replica_lost", "server_error")
            assert not answer.done
    assert lost >= 1, "the replica was writing streams"

    deadline = time.monotonic() + PATIENCE
    while len(now := cluster.replicas()) < REPLICAS or min(before) in now:
        assert time.monotonic() < deadline, "no new replica"
        time.sleep(0.1)
    (new,) = now - before
    with httpx.Client(base_url=cluster.url, timeout=PATIENCE, trust_env=False) as client:
        while client.get("/health").json() != {"status": "ok", "replicas": REPLICAS}:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        # Alone it has to be the new one that answers.
        (old,) = now - {new}
        os.kill(old, signal.SIGKILL)
        answer = client.post("/v1/completions", json=asked_for(0))
    whole = text_of(single("text 0", sampled(BYTES, seed=0))).decode("utf-8", "replace")
    assert answer.json()["choices"][0]["text"] == whole


def test_what_there_is_no_room_for_is_sent_away(cluster: Cluster) -> None:
    deadline = time.monotonic() + PATIENCE
    with httpx.Client(base_url=cluster.url, timeout=PATIENCE, trust_env=False) as client:
        while client.get("/health").json().get("replicas") != REPLICAS:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    async def burst() -> list[Answer]:
        async with cluster.client() as client:
            count = 2 * (REPLICAS * EACH + WAITING)
            return await asyncio.gather(*(ask(client, asked_for(n), Answer()) for n in range(count)))

    answers = asyncio.run(burst())
    refused = [answer for answer in answers if answer.status != 200]
    assert refused
    assert {answer.status for answer in refused} == {429}
    assert all(answer.error and answer.error["type"] == "rate_limit_error" for answer in refused)
    assert all(int(answer.retry_after or 0) >= 1 for answer in refused)
    assert all(answer.done for answer in answers if answer.status == 200)
    assert len(answers) - len(refused) >= REPLICAS * EACH
