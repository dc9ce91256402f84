"""Asks a server from many clients at once, and says how fast and how well it answers.

  python -m infra.load_test http://127.0.0.1:8000 --clients 64 --seconds 60

Completions are streamed, with prompts of mixed lengths; clients ask again as soon as they have an answer, or when a 429
says so. With --check all answers are written greedily and compared with single runs on the server once it is idle.
Rounding can change a byte whose two best candidates are nearly equal, or move a patch whose entropy is close to the
threshold: an answer that first differs at or after such a byte counts as equal. The exit code is 1 where a request
failed with another status than 429, or an answer differed for any other reason.
"""

import argparse
import asyncio
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.errors import ConfigError, PatchworkError
from shared.io.display.log import LOG
from shared.io.display.quantities import counted
from shared.io.display.terminal import end_program, run_program
from shared.io.programs.command_line import Parser, complain, heed_signals
from trainer.commands.running import whole
from trainer.commands.serve import KEY_VARIABLE, at_least

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "be",
)
PATIENCE_SECONDS = 600.0
"""For one part of an answer."""
TIES = {"float32": 1e-4}
COARSE = 2e-2
"""Of other formats, whose numbers have eight bits or less."""
AT_THRESHOLD = 1e-4
"""Nats, in which entropies are computed in fp32 whatever the model is."""
MOST_LOGPROBS = 20
LOST = "connection"
"""The status of a request whose connection could not be made, or broke."""


@dataclass(frozen=True)
class Question:
    """A request; equal ones have equal answers."""

    prompt: str
    length: int
    """Bytes to write at most."""
    seed: int
    greedy: bool

    def body(self, model: str | None) -> dict[str, Any]:
        """As the API takes it. Well-formed UTF-8, so that the text says how many bytes were written."""
        named = {} if model is None else {"model": model}
        return named | {
            "prompt": self.prompt,
            "max_tokens": self.length,
            "seed": self.seed,
            "temperature": 0 if self.greedy else 1,
            "utf8": True,
            "stream": True,
        }


@dataclass
class Findings:
    """What became of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Requests by "200", another status, "connection", or "stream" for an error after the first event."""
    first: list[float] = field(default_factory=list)
    """Seconds from asking to the first text, of each answer."""
    between: list[float] = field(default_factory=list)
    """Seconds from a byte to the next one; bytes that come together share what it took."""
    written: int = 0
    """Bytes, of answers that broke too."""
    answers: list[tuple[Question, str]] = field(default_factory=list)
    """Those that are whole."""
    differing: int = 0
    """Answers that are not those of a single run, and not because of rounding."""
    rounded: int = 0
    """Answers that rounding may have changed: they differ no earlier than at a byte that it could decide."""

    def arrived(self, text: str, waited: float, is_first: bool) -> None:
        """A part of an answer, ``waited`` seconds after the one before it, or after asking."""
        size = len(text.encode())
        if not size:
            return
        self.written += size
        if is_first:
            self.first.append(waited)
        else:
            self.between += [waited / size] * size

    @property
    def failed(self) -> int:
        """Requests with another end than 200 and 429."""
        return sum(count for status, count in self.statuses.items() if status not in ("200", "429"))

    def lines(self, seconds: float) -> list[str]:
        """The report, of so many seconds."""
        statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.statuses.items()))
        return [
            f"requests            {sum(self.statuses.values()):,} in {seconds:.1f} s: {statuses or 'none'}",
            f"time to first byte  {percentiles(self.first)}",
            f"between bytes       {percentiles(self.between)}",
            f"written             {self.written:,} bytes, {self.written / seconds:,.1f} a second",
        ]


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so much of all is not above; of at least one."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(values: Sequence[float]) -> str:
    """Median and 95th percentile of seconds, in milliseconds."""
    if not values:
        return "none"
    return f"p50 {1000 * percentile(values, 0.5):,.1f} ms, p95 {1000 * percentile(values, 0.95):,.1f} ms"


def questions(count: int, prompt_bytes: Sequence[int], length: int, seed: int, greedy: bool) -> list[Question]:
    """Different prompts, as many of each length as of any other; the same ones for the same seed."""
    source = random.Random(seed)
    found = []
    for number in range(count):
        size, words = prompt_bytes[number % len(prompt_bytes)], ""
        while len(words) < size:
            words += source.choice(WORDS) + " "
        found.append(Question(words[:size], length, source.randrange(1 << 32), greedy))
    return found


def text_of(line: str) -> tuple[str, bool]:
    """The text in a line of an event stream, and whether the line is an error instead."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return "", False
    values = json.loads(line.removeprefix("data: "))
    return "".join(choice["text"] for choice in values.get("choices", ())), "error" in values


async def ask(
    client: httpx.AsyncClient, question: Question, model: str | None, found: Findings
) -> tuple[str | None, float]:
    """One request. Returns its text, None where it is not whole, and for how many seconds to wait after it."""
    parts: list[str] = []
    last = time.monotonic()
    status = LOST
    try:
        async with client.stream("POST", "/v1/completions", json=question.body(model)) as answer:
            if answer.status_code != 200:
                await answer.aread()
                found.statuses[str(answer.status_code)] += 1
                return None, float(answer.headers.get("Retry-After", 1))
            status, ended = "stream", False
            async for line in answer.aiter_lines():
                text, is_error = text_of(line)
                if is_error:
                    break
                if text:
                    now = time.monotonic()
                    found.arrived(text, now - last, not parts)
                    parts.append(text)
                    last = now
                ended = ended or line == "data: [DONE]"
    except (httpx.HTTPError, ValueError):
        found.statuses[status] += 1
        return None, 0.5
    # A stream without its end has lost something, whatever closed it.
    found.statuses["200" if ended else "stream"] += 1
    return ("".join(parts) if ended else None), 0.0


async def client_of(
    client: httpx.AsyncClient, asked: Sequence[Question], model: str | None, until: float, found: Findings
) -> None:
    """Ask one question after the other until the time is up; what has been asked is waited for."""
    number = 0
    while time.monotonic() < until:
        question = asked[number % len(asked)]
        text, wait = await ask(client, question, model, found)
        if text is not None:
            found.answers.append((question, text))
        number += 1
        if wait:
            await asyncio.sleep(max(0.0, min(wait, until - time.monotonic())))


@dataclass(frozen=True)
class Rounding:
    """What rounding may decide, by what the server says of the model. The router of an H-Net is left out."""

    ties: float
    """Two logits that are no further apart, relative to the greater, are nearly equal."""
    patching: Mapping[str, Any]
    """The rule and its thresholds."""

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Rounding":
        """Of an entry of /v1/models."""
        return cls(TIES.get(described["weights"], COARSE), described["patching"])

    def at_threshold(self, before: float | None, entropy: float | None) -> bool:
        """Whether this entropy, or how much it is above the one before, is near a threshold. Counts are not rounded."""
        if entropy is None or self.patching["entropy_model"] != "entropy":
            return False
        rise = None if before is None else entropy - before
        compared: dict[str, list[tuple[float | None, str]]] = {
            "entropy": [(entropy, "theta")],
            "monotonic": [(rise, "theta")],
            "entropy_rise": [(entropy, "theta"), (rise, "theta_rise")],
        }
        return any(
            value is not None and abs(value - self.patching[name]) < AT_THRESHOLD
            for value, name in compared.get(self.patching["rule"], [])
        )


@dataclass(frozen=True)
class Single:
    """What a question is answered alone."""

    text: bytes
    close: tuple[int, ...]
    """The bytes, by place, that rounding could decide; the end of the text is one more place. 0 stands for the prompt
    too, whose patches decide about all bytes after it."""


def single_of(choice: Mapping[str, Any], rounding: Rounding) -> Single:
    """Of a choice with ``echo``, ``details`` and ``logprobs``."""
    details, scores = choice["details"], choice["logprobs"]
    close, written = set[int](), bytearray()
    entropy: float | None = None
    for number, (own, likeliest) in enumerate(zip(scores["token_logprobs"], scores["top_logprobs"])):
        # What ends a text has no details; neither has it an entropy.
        byte: Mapping[str, Any] = details[number] if number < len(details) else {"hex": "", "entropy": None}
        before, entropy = entropy, byte["entropy"]
        tied = False
        if not byte.get("prompt"):
            # Itself, and whatever is as likely. Probabilities are logits without their common part; relative to 1 at
            # least, as no logit is much smaller.
            near = rounding.ties * max(1.0, abs(own))
            tied = sum(abs(other - own) <= near for other in likeliest.values()) > 1
        if tied or rounding.at_threshold(before, entropy):
            close.add(len(written))
        if not byte.get("prompt"):
            written += bytes.fromhex(byte["hex"])
    return Single(bytes(written), tuple(sorted(close)))


async def ask_alone(client: httpx.AsyncClient, question: Question, model: str | None, rounding: Rounding) -> Single:
    """The answer on an idle server. Raises ConfigError where there is none."""
    wanted = {"stream": False, "echo": True, "details": True, "logprobs": MOST_LOGPROBS}
    answer = await answered(client, "POST", "/v1/completions", json=question.body(model) | wanted)
    return single_of(answer["choices"][0], rounding)


async def answered(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> Any:
    """The JSON of an answer, however often the server says to try again. Raises ConfigError where there is none."""
    status = 429
    while status == 429:
        try:
            answer = await client.request(method, path, **options)
            values, status = answer.json(), answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            said = str(error) or type(error).__name__
            raise ConfigError(f"{client.base_url}: no server of this project answers ({said})") from None
        if status == 429:
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    if status != 200:
        said = values["error"]["message"] if isinstance(values, dict) and "error" in values else answer.text
        raise ConfigError(f"{client.base_url}: {status}: {said}")
    return values


async def rounding_of(client: httpx.AsyncClient, model: str | None) -> Rounding:
    """Of the model that is asked. Raises ConfigError where there is no such model, no server, or no key for it."""
    try:
        known = {entry["id"]: entry for entry in (await answered(client, "GET", "/v1/models"))["data"]}
        if model is None and len(known) == 1:
            (model,) = known
        if model in known:
            return Rounding.of(known[model])
    except (KeyError, TypeError):
        raise ConfigError(f"{client.base_url}: no server of this version of the project") from None
    wanted = "--model is missing" if model is None else f"--model {model}: there is no such model"
    raise ConfigError(f"{wanted}; there are {', '.join(known)}")


async def compare(client: httpx.AsyncClient, model: str | None, rounding: Rounding, found: Findings) -> str:
    """Ask each question again, one at a time, count the answers that differ, and say so in a line."""
    single: dict[Question, Single] = {}
    for question, text in found.answers:
        if question not in single:
            single[question] = await ask_alone(client, question, model, rounding)
        alone, answer = single[question], text.encode()
        if answer != alone.text:
            shorter = min(len(answer), len(alone.text))
            first = next((i for i in range(shorter) if answer[i] != alone.text[i]), shorter)
            explained = any(place <= first for place in alone.close)
            found.rounded += explained
            found.differing += not explained
    written, close = sum(len(run.text) for run in single.values()), sum(len(run.close) for run in single.values())
    return (
        f"check               {len(found.answers):,} answers to {len(single)} questions: {found.differing} unlike the "
        f"single run, {found.rounded} by rounding alone; {close} of {written:,} bytes could be decided by rounding"
    )


async def load(arguments: argparse.Namespace) -> int:
    """The whole test; returns the exit code."""
    key = os.environ.get(KEY_VARIABLE, "")
    asked = questions(
        arguments.questions, arguments.prompt_bytes, arguments.max_tokens, arguments.seed, arguments.check
    )
    found = Findings()
    async with httpx.AsyncClient(
        base_url=arguments.url.rstrip("/").removesuffix("/v1"),
        headers={b"Authorization": b"Bearer " + key.encode()} if key else {},
        timeout=PATIENCE_SECONDS,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    ) as client:
        rounding = await rounding_of(client, arguments.model)
        began = time.monotonic()
        until = began + arguments.seconds
        # Each begins somewhere else, so that at any time all lengths are under way.
        starts = [number % len(asked) for number in range(arguments.clients)]
        await asyncio.gather(
            *(client_of(client, asked[start:] + asked[:start], arguments.model, until, found) for start in starts)
        )
        print(*found.lines(time.monotonic() - began), sep="\n", flush=True)
        if arguments.check:
            asked_again = len({question for question, _ in found.answers})
            LOG.info("asking %s again, one at a time", counted(asked_again, "question"))
            print(await compare(client, arguments.model, rounding, found))
    return 1 if found.failed or found.differing else 0


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser("python -m infra.load_test", __doc__ or "", "")
    parser.add_argument("url", type=address, metavar="URL", help=f"of the server; its key is taken from {KEY_VARIABLE}")
    parser.add_argument("--clients", type=whole(1), default=64, metavar="N", help="that ask at once")
    parser.add_argument("--seconds", type=at_least(0.1), default=60.0, metavar="S", help="in which they ask")
    parser.add_argument("--model", metavar="NAME", help="which one, where several are served")
    parser.add_argument("--questions", type=whole(1), default=64, metavar="N", help="different ones")
    parser.add_argument(
        "--prompt-bytes", type=whole(1), nargs="+", default=[16, 128, 1024], metavar="N", help="lengths"
    )
    parser.add_argument("--max-tokens", type=whole(1), default=64, metavar="N", help="bytes to write")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--check", action="store_true", help="compare greedy answers with single runs, afterwards")
    return parser


def address(text: str) -> str:
    """Of a server."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text


def run(arguments: argparse.Namespace) -> int:
    """Run the test; returns the exit code. What a user can fix is one line."""
    try:
        return asyncio.run(load(arguments))
    except PatchworkError as error:
        return complain(error)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run_program(lambda: run(options().parse_args(words)), complain)


if __name__ == "__main__":
    heed_signals()
    end_program(main)
