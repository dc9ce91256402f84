"""A drill: many clients of one server process, and every answer is what it would be alone."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.serving import PATIENCE, Alone, alone, chat_model, sampled, served_process, text_of

from trainer.generation.generator import Generator
from trainer.serving.requests import choice_seed

CLIENTS = 64
REQUESTS = 6
"""Of each client."""
PROMPTS = ["", "a", "The patch begins", "naïve Größe", "1 2 3 " * 9, "a longer prompt with more in it, " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("many"))


def requests_of(client: int) -> list[dict[str, Any]]:
    """What one client asks for: few different texts, so that expecting them takes less time than writing them."""
    choose = random.Random(client)
    return [
        {
            "prompt": choose.choice(PROMPTS),
            "max_tokens": choose.choice([1, 7, 30, 120]),
            "seed": choose.randrange(3),
            "n": choose.choice([1, 1, 3]),
            "stream": choose.random() < 0.3,
        }
        for _ in range(REQUESTS)
    ]


def texts_of(answer: httpx.Response, asked: dict[str, Any]) -> list[str]:
    if not asked["stream"]:
        return [choice["text"] for choice in answer.json()["choices"]]
    texts = [""] * asked["n"]
    *events, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    for line in events:
        for choice in json.loads(line[6:])["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


@pytest.mark.drill
def test_sixty_four_clients_get_what_they_would_get_alone(folder: Path) -> None:
    single: Alone = alone(Generator(folder))
    limits = ("--max-batch", 24, "--queue", 40, "--memory", 0.5)
    with served_process(folder, *limits) as (process, url):

        def ask(client: int) -> tuple[list[tuple[dict[str, Any], list[str]]], int]:
            answered, refused = [], 0
            with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http:
                for asked in requests_of(client):
                    answer = http.post("/v1/completions", json=asked)
                    assert answer.status_code in (200, 429), answer.text
                    if answer.status_code == 200:
                        answered.append((asked, texts_of(answer, asked)))
                    else:
                        refused += 1
                        assert int(answer.headers["retry-after"]) >= 1
            return answered, refused

        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(ask, range(CLIENTS)))
        assert process.poll() is None
    answers = [pair for answered, _ in found for pair in answered]
    assert len(answers) > CLIENTS
    assert sum(refused for _, refused in found) + len(answers) == CLIENTS * REQUESTS
    for asked, texts in answers:
        for choice, text in enumerate(texts):
            settings = sampled(asked["max_tokens"], seed=choice_seed(asked["seed"], choice))
            assert text == text_of(single(asked["prompt"], settings)).decode("utf-8", "replace")
