"""Multiple choice by likelihood: the choice that the model finds likeliest after the context, as a whole or a byte.

Nats of a choice are those of its bytes and of the spaces before it, given the context; EOS does not count. Normalised
by length they are divided by the bytes of the choice without those spaces, so that a choice written in more bytes is
not thereby less likely. N choices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from trainer.errors import TaskError
from trainer.evaluation.robustness.noise import Noise, noised
from trainer.evaluation.tasks.opening import ChoiceTask, Shots
from trainer.evaluation.tasks.questions import separator

Score = Callable[[Sequence[bytes], Sequence[int]], np.ndarray]
"""Nats float64 [D] of D texts, each from its own byte on, given the bytes before."""

Place = Literal["prompt", "completion", "both"]
PLACES: tuple[Place, ...] = get_args(Place)
TOGETHER = 32
"""Questions scored at once: bounds memory, changes nothing."""


@dataclass(frozen=True)
class Noising:
    """One of the noises on the prompt, its examples included, on each choice, or on both (arXiv 2412.09871, 6.1)."""

    noise: Noise
    place: Place


@dataclass(frozen=True)
class Chosen:
    """One question, with what the model thought of each choice."""

    nats: tuple[float, ...]
    sizes: tuple[int, ...]
    """Bytes of each choice."""
    answer: int

    @property
    def likeliest(self) -> int:
        """The choice of the fewest nats; of equal ones the first."""
        return self.nats.index(min(self.nats))

    @property
    def likeliest_per_byte(self) -> int:
        """The choice of the fewest nats a byte; of equal ones the first."""
        per_byte = [nats / size for nats, size in zip(self.nats, self.sizes)]
        return per_byte.index(min(per_byte))

    @property
    def right(self) -> bool:
        """By likelihood."""
        return self.likeliest == self.answer

    @property
    def right_per_byte(self) -> bool:
        """By likelihood a byte."""
        return self.likeliest_per_byte == self.answer


def choose(task: ChoiceTask, shots: Shots, score: Score, longest: int, noising: Noising | None) -> Iterator[Chosen]:
    """Each question of a task, in order. Raises TaskError for a text of more than ``longest`` bytes."""
    for first in range(0, len(task.questions), TOGETHER):
        numbers = range(first, min(first + TOGETHER, len(task.questions)))
        prompts = [prompt_of(task, shots, number, noising) for number in numbers]
        choices = [choices_of(task, number, noising) for number in numbers]
        texts = [
            prompt + separator(task.questions[number].context, choice).encode() + changed
            for number, prompt, own in zip(numbers, prompts, choices)
            for choice, changed in zip(task.questions[number].choices, own)
        ]
        begins = [counted_from(prompt) for prompt, own in zip(prompts, choices) for _ in own]
        if max(map(len, texts)) > longest:
            raise TaskError(
                f"{task.name}: a question has {max(map(len, texts)):,} bytes with its examples, more than fit into "
                "a pack; give more --tokens, or fewer --shots"
            )
        nats = iter(score(texts, begins).tolist())
        for number, own in zip(numbers, choices):
            yield Chosen(tuple(next(nats) for _ in own), tuple(map(len, own)), task.questions[number].answer)


def prompt_of(task: ChoiceTask, shots: Shots, number: int, noising: Noising | None) -> bytes:
    """The examples and the context."""
    prompt = encoded(shots.before(number) + task.questions[number].context)
    return prompt if noising is None or noising.place == "completion" else noised(prompt, noising.noise)


def choices_of(task: ChoiceTask, number: int, noising: Noising | None) -> list[bytes]:
    """What may follow the context."""
    choices = map(encoded, task.questions[number].choices)
    return [
        choice if noising is None or noising.place == "prompt" else noised(choice, noising.noise) for choice in choices
    ]


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate, which JSON may hold, becomes bytes that are none."""
    return text.encode("utf-8", "surrogatepass")


def counted_from(context: bytes) -> int:
    """From which byte on what follows a context counts: with the spaces at its end, for tokens begin with spaces."""
    return len(context.rstrip(b" "))
