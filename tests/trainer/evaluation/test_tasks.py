"""Tasks answered by a model: choices by likelihood, with noises too, and texts that it writes."""

import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.model_folders import entropy_folder, entropy_model_folder, entropy_model_model, entropy_rule, model_folder
from helpers.rounding import NATS

from shared.io.files.outputs import Output
from shared.layers.batch import segments
from shared.vocabulary import document_tokens
from trainer.__main__ import main
from trainer.commands.tasks import EXAMPLES, FIGURES
from trainer.evaluation.robustness.noise import NOISES, noised
from trainer.evaluation.tasks.choosing import PLACES, Chosen, Noising, choose
from trainer.evaluation.tasks.opening import ChoiceTask, CompletionTask, Shots, open_task
from trainer.evaluation.tasks.questions import Choice, Completion
from trainer.evaluation.tasks.report import Accuracy, ChoiceResult, paired_change
from trainer.evaluation.tasks.writing import complete, judged, settings_for
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

QUESTIONS = [
    {
        "context": f"The man number {number} went",
        "choices": ["home.", "to the moon and back.", "up"],
        "answer": number % 3,
    }
    for number in range(9)
]
TEXTS = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(3)]
CUTE = [{"prompt": f'Spell out the word " {word} ".', "answer": " ".join(word)} for word in ("cat", "horse")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks, one of each kind."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, records in {"men": QUESTIONS, "sums": TEXTS, "spell": CUTE}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose patches begin where an entropy model is uncertain."""
    parent = tmp_path_factory.mktemp("model")
    return model_folder(parent / "model", entropy_rule(), entropy_model_folder(parent / "entropy_model"))


class Answered(NamedTuple):
    """What the command shows and writes."""

    table: str
    said: str
    figures: dict[str, Any]
    examples: list[dict[str, Any]]

    def task(self, name: str) -> dict[str, Any]:
        (found,) = [task for task in self.figures["tasks"] if task["task"] == name]
        return found

    def examples_of(self, name: str) -> list[dict[str, Any]]:
        return [example for example in self.examples if example["task"] == name]


def answer(model: Path, files: Path, folder: Path) -> Answered:
    figures, examples = folder / "figures.json", folder / "examples.jsonl"
    options = ["--noise", "drop", "upper-case", "--shots", "2", "--bytes", "8"]
    written = ["--json", str(figures), "--examples", str(examples)]
    with redirect_stdout(io.StringIO()) as table, redirect_stderr(io.StringIO()) as said:
        assert main(["tasks", str(model), str(files), *options, *written]) == 0
    lines = list(map(json.loads, examples.read_text().splitlines()))
    return Answered(table.getvalue(), said.getvalue(), json.loads(figures.read_text()), lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answered")


@pytest.fixture(scope="module")
def answered(model: Path, files: Path, place: Path) -> Answered:
    return answer(model, files, place)


def test_tasks_are_answered_the_same_each_time(answered: Answered, model: Path, files: Path, tmp_path: Path) -> None:
    again = answer(model, files, tmp_path)
    assert (again.table, again.figures, again.examples) == (answered.table, answered.figures, answered.examples)


def test_the_rate_of_questions_is_said(answered: Answered) -> None:
    assert "questions/s" in answered.said


@pytest.mark.usefixtures("answered")
def test_what_was_written_is_known_as_ours_and_may_be_replaced(place: Path) -> None:
    Output(place / "figures.json", FIGURES), Output(place / "examples.jsonl", EXAMPLES)


def test_every_kind_of_task_is_answered(answered: Answered) -> None:
    assert [(task["task"], task["kind"]) for task in answered.figures["tasks"]] == [
        ("men", "multiple choice"),
        ("spell", "CUTE"),
        ("sums", "completion"),
    ]


@pytest.mark.parametrize("name", ["men", "drop", "upper-case", "average", "sums", "spell"])
def test_the_table_has_every_task_and_noise(answered: Answered, name: str) -> None:
    assert name in answered.table


def test_the_table_has_no_noise_that_was_not_asked_for(answered: Answered) -> None:
    assert "antspeak" not in answered.table


def test_chance_is_one_of_the_choices(answered: Answered) -> None:
    assert answered.task("men")["chance"] == pytest.approx(1 / 3)


def test_every_noise_has_a_figure_for_every_place(answered: Answered) -> None:
    assert len(answered.task("men")["noised"]) == 2 * len(PLACES)
    assert len(answered.examples_of("men")) == len(QUESTIONS) * (1 + 2 * len(PLACES))


def test_the_accuracy_of_choices_is_that_of_the_examples(answered: Answered) -> None:
    clean = [example for example in answered.examples_of("men") if "noise" not in example]
    assert len(clean) == answered.task("men")["questions"] == len(QUESTIONS)
    assert answered.task("men")["accuracy"] == np.mean([example["likeliest"] == example["answer"] for example in clean])


def test_the_likeliest_choice_has_the_fewest_nats(answered: Answered) -> None:
    clean = [example for example in answered.examples_of("men") if "noise" not in example]
    assert [example["likeliest"] for example in clean] == [int(np.argmin(example["nats"])) for example in clean]


def test_the_accuracy_of_texts_is_that_of_the_examples(answered: Answered) -> None:
    right = [example["text"].strip() in example["answers"] for example in answered.examples_of("sums")]
    assert answered.task("sums")["accuracy"] == np.mean(right)


def test_every_question_of_cute_is_counted(answered: Answered) -> None:
    assert answered.task("spell")["questions"] == 2


@pytest.mark.numerics
def test_nats_of_a_choice_are_those_of_its_bytes_after_the_context(tmp_path: Path) -> None:
    """Against the log-probabilities of one forward pass over each text alone."""
    from trainer.evaluation.texts import TextScorer

    scorer = TextScorer(entropy_folder(tmp_path / "model"))
    task = ChoiceTask(
        "men", (Choice("The man went", ("home.", "to the moon and back."), 0), Choice("No", ("way", "ça"), 1))
    )
    found = list(
        choose(task, Shots(task, 1), lambda texts, begins: scorer.score(texts, begins, end=False).nats, 1000, None)
    )

    def nats(prompt: str, choice: str) -> float:
        tokens = torch.from_numpy(document_tokens(f"{prompt} {choice}".encode()).astype(np.int64))
        with torch.no_grad():
            logits = entropy_model_model()(tokens[:-1], segments([len(tokens) - 1]))
        each = -logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        return float(each[len(prompt.encode()) : -1].double().sum())  # without EOS

    first, second = "No ça\n\nThe man went", "The man went home.\n\nNo"
    assert found[0].nats == pytest.approx([nats(first, choice) for choice in task.questions[0].choices], rel=NATS)
    assert found[1].nats == pytest.approx([nats(second, choice) for choice in task.questions[1].choices], rel=NATS)
    assert found[1].sizes == (3, 3)


def test_spaces_at_the_end_of_a_context_count_with_the_choice() -> None:
    """A tokenizer puts them into the token of the word that follows."""
    task = ChoiceTask("task", (Choice("It is  ", ("so", "not"), 0),))
    assert recorded(task, 0, None) == [(b"It is", b"  so"), (b"It is", b"  not")]


def test_the_likeliest_choice_and_the_likeliest_a_byte_may_differ() -> None:
    example = Chosen(nats=(4.0, 6.0, 4.0), sizes=(2, 6, 2), answer=1)
    assert (example.likeliest, example.likeliest_per_byte) == (0, 1)
    assert (example.right, example.right_per_byte) == (False, True)


def recorded(task: ChoiceTask, shots: int, noising: Noising | None) -> list[tuple[bytes, bytes]]:
    """What is asked to be scored: prompt and continuation."""
    asked: list[tuple[bytes, bytes]] = []

    def score(texts: Sequence[bytes], begins: Sequence[int]) -> np.ndarray:
        asked.extend((text[:begin], text[begin:]) for text, begin in zip(texts, begins))
        return np.zeros(len(texts))

    assert all(example.likeliest == 0 for example in choose(task, Shots(task, shots), score, 1000, noising))
    return asked


@pytest.mark.parametrize("noise", NOISES)
def test_a_noise_changes_the_prompt_or_the_choices_or_both(noise: Any) -> None:
    task = ChoiceTask("task", (Choice("It is so", ("Then be it.", "Never"), 0), Choice("Why", ("Because", "of me"), 1)))
    clean = recorded(task, 1, None)
    assert clean[0] == (b"Why of me\n\nIt is so", b" Then be it.")
    for place in PLACES:
        for (prompt, choice), (noisy_prompt, noisy_choice) in zip(clean, recorded(task, 1, Noising(noise, place))):
            assert noisy_prompt == (prompt if place == "completion" else noised(prompt, noise))
            assert noisy_choice == (choice if place == "prompt" else b" " + noised(choice[1:], noise))


def test_the_change_under_noise_is_taken_question_by_question() -> None:
    def examples(*right: bool) -> list[Chosen]:
        return [Chosen((1.0, 2.0), (1, 1), 0 if one else 1) for one in right]

    task = ChoiceTask("task", tuple(Choice("?", ("a", "b"), 0) for _ in range(4)))
    prompt, both = Noising("drop", "prompt"), Noising("drop", "both")
    result = ChoiceResult(task, examples(True, True, True, False))
    result.noised = {prompt: examples(True, False, True, False), both: examples(False, False, True, False)}
    mean, change = result.under([prompt, both])
    assert mean == pytest.approx((0.5 + 0.25) / 2)
    assert change.difference == pytest.approx(mean - 0.75)
    assert change.half_interval == pytest.approx(1.96 * np.std([-0.5, -1, 0, 0], ddof=1) / 2, rel=1e-3)
    assert result.groups == {"drop": [prompt, both]}


def test_intervals_hold_as_often_as_they_say() -> None:
    """Over many samples of a known share, small ones and extreme shares among them."""
    sampled = np.random.default_rng(1)
    for examples, share in ((20, 0.5), (20, 0.05), (200, 0.97)):
        found = [Accuracy(int(right), examples) for right in sampled.binomial(examples, share, 2000)]
        held = np.mean([low <= share <= high for low, high in (one.interval for one in found)])
        assert 0.91 < held <= 0.99
    assert Accuracy(0, 10).interval[0] == 0.0
    assert math.isnan(Accuracy(0, 0).share)
    assert math.isnan(paired_change([1.0], [0.0]).half_interval)


def test_a_text_that_does_not_fit_into_a_pack_is_refused(
    model: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", str(model), str(files / "men.jsonl"), "--tokens", "40"]) == 2
    assert "men: a question has" in capsys.readouterr().err
    assert main(["tasks", str(model), str(files / "sums.jsonl"), "--noise", "all"]) == 2
    assert "--noise is for multiple choice" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["tasks", str(model), str(files / "men.jsonl"), "--limit", "0"])
    assert "--limit: 0 is too small" in capsys.readouterr().err


def test_what_is_written_is_judged_by_the_rule_of_its_task() -> None:
    sums = CompletionTask("sums", (Completion("1 + 1 =", ("2", "two ")),))
    for text, right, contains in ((" 2 ", True, True), ("two", True, True), ("is 2.", False, True), ("", False, False)):
        assert (judged(sums, 0, text).right, judged(sums, 0, text).contains) == (right, contains)
    spell = CompletionTask("spell", (Completion("x", ("c a t",)), Completion("x", ("h o r s e",))), "spell")
    assert judged(spell, 0, " c a t ").right
    asked = settings_for(spell, GenerateSettings(length=500, stop=(b"\n",)))
    assert (asked.length, asked.stop) == (9 + 16, (b'"',))
    assert settings_for(sums, asked) == asked


def test_a_model_writes_all_prompts_as_if_each_were_alone(model: Path) -> None:
    task = CompletionTask("task", tuple(Completion(prompt, ("x",)) for prompt in ("a", "bcd ef", "g h", "", "i")))
    settings = GenerateSettings(length=6, sampling=SamplingSettings(temperature=0))
    write = Generator(model).texts
    together = list(complete(task, Shots(task, 0), write, settings, together=3))
    assert together == list(complete(task, Shots(task, 0), write, settings, together=1))
    assert len({one.text for one in together}) > 1


def test_tasks_are_opened_before_any_model(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert main(["tasks", str(tmp_path / "no-model"), str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:1" in capsys.readouterr().err
    assert isinstance(open_task(files / "men.jsonl"), ChoiceTask)
