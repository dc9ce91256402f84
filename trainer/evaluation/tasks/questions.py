"""What a record asks, in one form whatever its fields are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from trainer.errors import TaskError
from trainer.evaluation.tasks.records import Record

Normalization = Literal["hellaswag"]
"""Whose way of changing texts before they are scored; none by default."""
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
FIELDS = (
    "a multiple-choice record has one of: context or prompt or question, choices (a list), answer (a number from 0, a "
    "letter, or the choice itself); ctx (or ctx_a and ctx_b), endings, label (HellaSwag); question or question_stem, "
    "choices {text, label}, answerKey (ARC, OpenBookQA); goal, sol1, sol2, label (PIQA); "
    "and a text to complete has prompt or question, and answer or answers (a list)"
)


@dataclass(frozen=True)
class Choice:
    """A context and the ways in which it may go on, one of them right."""

    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def solved(self) -> str:
        """As an example for others."""
        return joined(self.context, self.choices[self.answer])


@dataclass(frozen=True)
class Completion:
    """A prompt and what would be right to write after it."""

    context: str
    answers: tuple[str, ...]

    @property
    def solved(self) -> str:
        """As an example for others, with the first answer."""
        return joined(self.context, self.answers[0])


def joined(context: str, continuation: str) -> str:
    """A space between them, unless there is white space already or nothing before."""
    return context + separator(context, continuation) + continuation


def separator(context: str, continuation: str) -> str:
    """What ``joined`` puts between."""
    return "" if not context or context[-1].isspace() or continuation[:1].isspace() else " "


def question_from(record: Record, normalize: Normalization | None = None) -> Choice | Completion:
    """What a record asks, its texts as they are in the file; with ``normalize`` those of HellaSwag's records changed.

    Raises TaskError that names the record and what it lacks.
    """
    values = record.values
    if "endings" in values:
        endings, answer = _answered(record, "endings", "label")
        if normalize == "hellaswag":
            endings = tuple(map(_without_markup, endings))
        question: Choice | Completion = Choice(_continued(record, normalize), endings, answer)
    elif "sol1" in values:
        pair = (record.text("sol1") or "", record.text("sol2") or "")
        question = Choice(_asked(record, "goal"), pair, _index(record, "label", pair))
    elif isinstance(values.get("choices"), dict):
        labelled = Record(record.where, values["choices"])
        choices, labels = labelled.texts("text") or (), labelled.texts("label") or ()
        key = record.text("answerKey")
        if key not in labels or len(choices) != len(labels):
            raise TaskError(f"{record.where}: answerKey is {key!r}, which is none of the labels {list(labels)}")
        question = Choice(_asked(record, "question", "question_stem"), choices, labels.index(key))
    elif "choices" in values:
        question = Choice(_context(record), *_answered(record, "choices", "answer"))
    else:
        question = Completion(_context(record), _answers(record))
    if isinstance(question, Choice) and (len(question.choices) < 2 or not all(question.choices)):
        raise TaskError(f"{record.where}: needs at least two non-empty choices")
    return question


def _context(record: Record) -> str:
    """A context goes on as it is; a question is asked."""
    text = record.text("context", "prompt")
    return _asked(record, "question") if text is None else text


def _asked(record: Record, *keys: str) -> str:
    text = record.text(*keys)
    if text is None:
        raise TaskError(f"{record.where} has only {', '.join(record.values)}; {FIELDS}")
    return f"Question: {text}\nAnswer:"


def _answers(record: Record) -> tuple[str, ...]:
    answers = record.texts("answers")
    if answers is None:
        answer = record.text("answer")
        answers = () if answer is None else (answer,)
    if not answers or not all(answers):
        raise TaskError(f"{record.where} has no answer; {FIELDS}")
    return answers


def _answered(record: Record, choices_key: str, answer_key: str) -> tuple[tuple[str, ...], int]:
    choices = record.texts(choices_key) or ()
    return choices, _index(record, answer_key, choices)


def _index(record: Record, key: str, choices: Sequence[str]) -> int:
    """A number from 0 (a text of digits too), a letter from A, or the choice itself."""
    answer: Any = record.values.get(key)
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        if answer.isdecimal():
            answer = int(answer)
        elif len(answer) == 1 and "A" <= answer.upper() <= "Z":
            answer = ord(answer.upper()) - ord("A")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise TaskError(
            f"{record.where}: {key} is {record.values.get(key)!r}; give the number of one of the {len(choices)} "
            "choices, from 0, or its letter, or the choice itself"
        )
    return answer


def _continued(record: Record, normalize: Normalization | None) -> str:
    """What endings follow: the context as it is in the file, or as the language model evaluation harness makes it of
    the activity and the two parts of the context.
    """
    whole, first, second = record.text("ctx"), record.text("ctx_a"), record.text("ctx_b") or ""
    if whole is None and first is None:
        raise TaskError(f"{record.where} has endings but no ctx; {FIELDS}")
    if normalize is None:
        return joined(first or "", second) if whole is None else whole
    text = whole if first is None else f"{first} {second.capitalize()}"
    activity = record.text("activity_label")
    return _without_markup(text or "" if activity is None else f"{activity}: {text}")


def _without_markup(text: str) -> str:
    """HellaSwag's texts from WikiHow hold marks such as [title] and [step]; double spaces become one."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()
