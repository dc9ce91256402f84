"""Task files as tasks: their names, what kind they are, and the examples put before each of their questions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import TaskError
from trainer.evaluation.tasks.cute import cute_question, cute_task
from trainer.evaluation.tasks.questions import Choice, Completion, Normalization, question_from
from trainer.evaluation.tasks.records import read_records, task_files

BETWEEN = "\n\n"
"""After each example."""


@dataclass(frozen=True)
class ChoiceTask:
    """Questions that are answered by choosing."""

    name: str
    questions: tuple[Choice, ...]
    normalized: Normalization | None = None
    """Whose way their texts were changed; None: they are as in the file."""


@dataclass(frozen=True)
class CompletionTask:
    """Questions that are answered by writing."""

    name: str
    questions: tuple[Completion, ...]
    cute: str | None = None
    """Which task of CUTE it is, if any; their prompts hold their own examples."""


Task = ChoiceTask | CompletionTask


def open_tasks(paths: Sequence[Path], limit: int | None = None, normalize: Normalization | None = None) -> list[Task]:
    """The task in each file at some paths; the first ``limit`` records of each. Raises TaskError.

    ``normalize``: whose way of changing texts is used, which must be in the files.
    """
    tasks = [open_task(path, limit, normalize) for path in task_files(paths)]
    if normalize is not None and not any(isinstance(task, ChoiceTask) and task.normalized for task in tasks):
        raise TaskError(f"--normalize {normalize} changes nothing here: no file has records with endings")
    for name, times in Counter(task.name for task in tasks).items():
        if times > 1:
            raise TaskError(f"{times} files hold a task {name}; rename them, or put each into a folder of its own")
    return tasks


def open_task(path: Path, limit: int | None = None, normalize: Normalization | None = None) -> Task:
    """The task in a file. Raises TaskError that names the line."""
    records = read_records(path, limit)
    if not records:
        raise TaskError(f"{path} is empty")
    cute = cute_task(path)
    if cute is not None:
        asked = [cute_question(record) for record in records]
        if all(asked):
            return CompletionTask(cute, tuple(question for question in asked if question), cute)
    choices: list[Choice] = []
    completions: list[Completion] = []
    for record in records:
        question = question_from(record, normalize)
        if isinstance(question, Choice):
            choices.append(question)
        else:
            completions.append(question)
        if choices and completions:
            raise TaskError(f"{record.where}: a file holds questions with choices or without them, not both")
    name = task_name(path)
    changed = normalize if any("endings" in record.values for record in records) else None
    return ChoiceTask(name, tuple(choices), changed) if choices else CompletionTask(name, tuple(completions))


SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def task_name(path: Path) -> str:
    """The name of a file, or of its folder where the file is named as a split is: hellaswag/validation.jsonl."""
    name = path.name.removesuffix(path.suffix)
    return path.parent.name if name.split("-")[0] in SPLITS else name


class Shots:
    """Solved questions of a task, put before each of its others: the first of a fixed random order."""

    def __init__(self, task: Task, count: int) -> None:
        """Raises TaskError for a task that has not so many others."""
        own = isinstance(task, CompletionTask) and task.cute is not None
        count = 0 if own else count
        if count >= len(task.questions):
            raise TaskError(f"{task.name} has {len(task.questions)} questions: too few for --shots {count}")
        order = np.random.Philox(key=0).random_raw(len(task.questions)).argsort(kind="stable")
        self._task, self._count, self._first = task, count, order[: count + 1].tolist()

    def before(self, number: int) -> str:
        """What stands before a question: other questions with their answers, a blank line after each."""
        others = [other for other in self._first if other != number][: self._count]
        return "".join(self._task.questions[other].solved + BETWEEN for other in others)
