"""What tasks found: tables for a terminal, figures for a file, and a line for each example."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.io.display.tables import aligned
from trainer.evaluation.robustness.noise import NOISES
from trainer.evaluation.tasks.choosing import PLACES, Chosen, Noising
from trainer.evaluation.tasks.opening import ChoiceTask, CompletionTask
from trainer.evaluation.tasks.writing import Written

# ---- Shares of right answers, with how sure one can be of them from so many examples.


Z = 1.959963984540054
"""Standard deviations either side that hold 95% of a normal distribution."""


@dataclass(frozen=True)
class Accuracy:
    """Of some examples."""

    right: int
    examples: int

    @property
    def share(self) -> float:
        """NaN without examples."""
        return self.right / self.examples if self.examples else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the share (Wilson 1927): it holds for few examples and for shares near 0 and 1.

        By hand: three lines, so that scoring a task needs no SciPy.
        """
        if not self.examples:
            return math.nan, math.nan
        n, p = self.examples, self.share
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Of the examples that were answered rightly or not."""
    return Accuracy(sum(right), len(right))


@dataclass(frozen=True)
class Change:
    """How a share changed on the same examples."""

    difference: float
    half_interval: float
    """The 95% confidence interval is the difference plus and minus this, by the normal approximation."""


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The mean of after - before over pairs, one an example; the interval is NaN for fewer than two."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n if n else math.nan
    if n < 2:
        return Change(mean, math.nan)
    variance = sum((difference - mean) ** 2 for difference in differences) / (n - 1)
    return Change(mean, Z * math.sqrt(variance / n))


@dataclass
class ChoiceResult:
    """A task of choices, on clean text and with noises."""

    task: ChoiceTask
    clean: list[Chosen] = field(default_factory=list)
    noised: dict[Noising, list[Chosen]] = field(default_factory=dict)

    @property
    def chance(self) -> float:
        """The share that blind choice gets right."""
        questions = self.task.questions
        return sum(1 / len(question.choices) for question in questions) / len(questions)

    def under(self, noisings: Sequence[Noising]) -> tuple[float, Change]:
        """Mean accuracy by likelihood a byte under some noisings, and how it differs from that on clean text.

        Differences are taken question by question, so their interval says how sure the change is, not the accuracies.
        """
        after = [
            sum(example.right_per_byte for example in together) / len(noisings)
            for together in zip(*(self.noised[noising] for noising in noisings))
        ]
        return sum(after) / len(after), paired_change([example.right_per_byte for example in self.clean], after)

    @property
    def groups(self) -> dict[str, list[Noising]]:
        """The noisings of each noise, then all of them where there are several noises."""
        by_noise = {noise: [key for key in self.noised if key.noise == noise] for noise in NOISES}
        groups: dict[str, list[Noising]] = {noise: keys for noise, keys in by_noise.items() if keys}
        return groups | {"average": list(self.noised)} if len(groups) > 1 else groups


@dataclass
class WrittenResult:
    """A task that is answered by writing."""

    task: CompletionTask
    written: list[Written] = field(default_factory=list)


Result = ChoiceResult | WrittenResult


def tables(results: Sequence[Result]) -> str:
    """All results, in words and columns."""
    chosen = [result for result in results if isinstance(result, ChoiceResult)]
    written = [result for result in results if isinstance(result, WrittenResult) and not result.task.cute]
    cute = [result for result in results if isinstance(result, WrittenResult) and result.task.cute]
    parts = []
    if chosen:
        heads = ["multiple choice", "questions", "accuracy", "95%", "a byte", "95%", "chance"]
        parts.append(aligned(heads, [_choice_cells(result) for result in chosen]))
        parts += [_noise_table(result) for result in chosen if result.noised]
    if written:
        rows = [_written_cells(result, contains=True) for result in written]
        parts.append(aligned(["completion", "questions", "exact", "95%", "contains"], rows))
    if cute:
        rows = [_written_cells(result, contains=False) for result in cute]
        if len(cute) > 1:
            rows.append([f"average of {len(cute)}", "", f"{cute_average(cute):.1%}", ""])
        parts.append(aligned(["CUTE", "questions", "exact", "95%"], rows))
    return "\n\n".join(parts)


def cute_average(results: Sequence[WrittenResult]) -> float:
    """The mean of the tasks' accuracies."""
    return sum(accuracy([one.right for one in result.written]).share for result in results) / len(results)


def figures(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One object a task, as JSON has it."""
    return [
        _choice_figures(result) if isinstance(result, ChoiceResult) else _written_figures(result) for result in results
    ]


def example_lines(results: Sequence[Result]) -> Iterator[str]:
    """A JSON object a line for each question, and for each noise on it."""
    for result in results:
        examples = _choice_examples(result) if isinstance(result, ChoiceResult) else _written_examples(result)
        yield from (json.dumps({"task": result.task.name, **example}) for example in examples)


def _choice_examples(result: ChoiceResult) -> Iterator[dict[str, Any]]:
    for noising, examples in [(None, result.clean), *result.noised.items()]:
        how = {"noise": noising.noise, "place": noising.place} if noising else {}
        for number, (question, example) in enumerate(zip(result.task.questions, examples)):
            asked = {"context": question.context, "choices": question.choices}
            chosen = {"likeliest": example.likeliest, "likeliest_per_byte": example.likeliest_per_byte}
            yield {"question": number, **how, **asked, **vars(example), **chosen}


def _written_examples(result: WrittenResult) -> Iterator[dict[str, Any]]:
    for number, (question, one) in enumerate(zip(result.task.questions, result.written)):
        yield {"question": number, "context": question.context, "answers": question.answers, **vars(one)}


def _choice_cells(result: ChoiceResult) -> list[str]:
    whole, per_byte = _accuracies(result.clean)
    shares = [f"{whole.share:.1%}", _interval(whole), f"{per_byte.share:.1%}", _interval(per_byte)]
    name = result.task.name + (f" (normalized: {result.task.normalized})" if result.task.normalized else "")
    return [name, f"{whole.examples:,}", *shares, f"{result.chance:.1%}"]


def _written_cells(result: WrittenResult, contains: bool) -> list[str]:
    exact = accuracy([one.right for one in result.written])
    cells = [result.task.name, f"{exact.examples:,}", f"{exact.share:.1%}", _interval(exact)]
    return [*cells, f"{accuracy([one.contains for one in result.written]).share:.1%}"] if contains else cells


def _noise_table(result: ChoiceResult) -> str:
    """Accuracy a byte with each noise where it was put, their mean, and its change in points of a per cent."""
    places = [place for place in PLACES if any(key.place == place for key in result.noised)]
    rows = []
    for name, keys in result.groups.items():
        mean, change = result.under(keys)
        by_place = [result.under([key for key in keys if key.place == place])[0] for place in places]
        points = f"{100 * change.difference:+.1f} ± {100 * change.half_interval:.1f}"
        rows.append([name, *(f"{share:.1%}" for share in by_place), f"{mean:.1%}", points])
    return aligned([f"{result.task.name}, noised", *places, "mean", "change, points"], rows)


def _accuracies(examples: Sequence[Chosen]) -> tuple[Accuracy, Accuracy]:
    return accuracy([one.right for one in examples]), accuracy([one.right_per_byte for one in examples])


def _interval(found: Accuracy) -> str:
    low, high = found.interval
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _choice_figures(result: ChoiceResult) -> dict[str, Any]:
    noised = [{"noise": key.noise, "place": key.place, **_shares(examples)} for key, examples in result.noised.items()]
    groups: dict[str, dict[str, float]] = {}
    for name, keys in result.groups.items():
        mean, change = result.under(keys)
        groups[name] = {"accuracy_per_byte": mean, "change": change.difference, "half_interval": change.half_interval}
    return {
        "task": result.task.name,
        "kind": "multiple choice",
        "normalized": result.task.normalized,
        "questions": len(result.clean),
        **_shares(result.clean),
        "chance": result.chance,
        **({"noised": noised, "noises": groups} if noised else {}),
    }


def _shares(examples: Sequence[Chosen]) -> dict[str, Any]:
    whole, per_byte = _accuracies(examples)
    return {
        "accuracy": whole.share,
        "interval": whole.interval,
        "accuracy_per_byte": per_byte.share,
        "interval_per_byte": per_byte.interval,
    }


def _written_figures(result: WrittenResult) -> dict[str, Any]:
    exact = accuracy([one.right for one in result.written])
    contains = accuracy([one.contains for one in result.written]).share
    return {
        "task": result.task.name,
        "kind": "CUTE" if result.task.cute else "completion",
        "questions": exact.examples,
        "accuracy": exact.share,
        "interval": exact.interval,
        **({} if result.task.cute else {"contains": contains}),
    }
