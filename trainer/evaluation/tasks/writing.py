"""Tasks that are answered by writing: what the model writes after each prompt, and whether it is right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trainer.evaluation.tasks.choosing import encoded
from trainer.evaluation.tasks.cute import CLOSING, ROOM, extracted, is_right
from trainer.evaluation.tasks.opening import CompletionTask, Shots
from trainer.generation.settings import GenerateSettings

Write = Callable[[Sequence[bytes], GenerateSettings], list[bytes]]
"""What is written after each of some prompts: `Generator.texts`."""


@dataclass(frozen=True)
class Written:
    """One question, with what the model wrote."""

    text: str
    """U+FFFD stands for bytes that are not UTF-8."""
    found: str
    """The answer in it."""
    right: bool
    """Whether that is one of the answers."""
    contains: bool
    """Whether one of the answers stands anywhere in the text."""


def complete(
    task: CompletionTask, shots: Shots, write: Write, settings: GenerateSettings, together: int
) -> Iterator[Written]:
    """Each question of a task, in order; so many prompts at once, each as if alone."""
    settings = settings_for(task, settings)
    for first in range(0, len(task.questions), together):
        numbers = range(first, min(first + together, len(task.questions)))
        prompts = [encoded(shots.before(number) + task.questions[number].context) for number in numbers]
        for number, text in zip(numbers, write(prompts, settings)):
            yield judged(task, number, text.decode("utf-8", "replace"))


def settings_for(task: CompletionTask, settings: GenerateSettings) -> GenerateSettings:
    """CUTE asks for no more than its longest answer, and a quote ends it; other tasks as the user says."""
    if task.cute is None:
        return settings
    longest = max(len(encoded(question.answers[0])) for question in task.questions)
    return settings.model_copy(update={"length": longest + ROOM, "stop": (CLOSING.encode(),)})


def judged(task: CompletionTask, number: int, text: str) -> Written:
    """By the rule of CUTE, or exact match but for white space around."""
    answers = task.questions[number].answers
    found = extracted(text) if task.cute else text.strip()
    right = is_right(task.cute, text, answers[0]) if task.cute else found in [answer.strip() for answer in answers]
    return Written(text, found, right, any(answer.strip() in text for answer in answers))
