"""All questions of all tasks, answered one after the other."""

import time
from collections.abc import Callable, Sequence
from itertools import chain

from shared.io.display.progress import Progress
from trainer.evaluation.tasks.choosing import Noising, Score, choose
from trainer.evaluation.tasks.opening import ChoiceTask, CompletionTask, Shots, Task
from trainer.evaluation.tasks.report import ChoiceResult, Result, WrittenResult
from trainer.evaluation.tasks.writing import Write, complete
from trainer.generation.settings import GenerateSettings


class Answering:
    """How questions are answered: ``score`` for choices, ``write`` for texts, None where no task needs it."""

    def __init__(
        self,
        score: Score | None,
        longest: int,
        write: Write | None,
        settings: GenerateSettings,
        together: int,
    ) -> None:
        """``longest``: bytes of a text that can be scored whole. ``together``: prompts that are completed at once."""
        self._score, self._longest = score, longest
        self._write, self._settings, self._together = write, settings, together

    def all(self, plan: Sequence[tuple[Task, Shots]], noisings: Sequence[Noising], progress: Progress) -> list[Result]:
        """The result of each task; choices also with each of the noisings. Raises TaskError."""
        count = sum(len(task.questions) * (1 + len(noisings) * isinstance(task, ChoiceTask)) for task, _ in plan)
        tick = ticker(progress, count, "questions")
        results: list[Result] = []
        for task, own in plan:
            if isinstance(task, ChoiceTask):
                results.append(self._chosen(task, own, noisings, tick))
            else:
                results.append(self._written(task, own, tick))
        return results

    def _chosen(
        self, task: ChoiceTask, shots: Shots, noisings: Sequence[Noising], tick: Callable[[str], None]
    ) -> ChoiceResult:
        assert self._score is not None, "choices are scored"
        result = ChoiceResult(task)
        for noising in chain([None], noisings):
            into = result.clean if noising is None else result.noised.setdefault(noising, [])
            for example in choose(task, shots, self._score, self._longest, noising):
                into.append(example)
                tick(task.name if noising is None else f"{task.name}, {noising.noise} on {noising.place}")
        return result

    def _written(self, task: CompletionTask, shots: Shots, tick: Callable[[str], None]) -> WrittenResult:
        assert self._write is not None, "texts are written"
        result = WrittenResult(task)
        for one in complete(task, shots, self._write, self._settings, self._together):
            result.written.append(one)
            tick(task.name)
        return result


def ticker(progress: Progress, count: int, things: str) -> Callable[[str], None]:
    """To be called after each of ``count`` things with what is under way."""
    began, done = time.monotonic(), 0
    progress.begin(0.0)

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        rate = done / max(time.monotonic() - began, 1e-9)
        progress.show(done / count, f"{done:,} of {count:,} {things}", f"{rate:.1f} {things}/s", name)

    return tick
