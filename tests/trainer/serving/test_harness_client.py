"""A drill: the evaluation harness gets the same scores over HTTP as from the lm-eval command."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import chat_model, running

from shared.interop.writing import tokenizer_config, tokenizer_json
from trainer.__main__ import main
from trainer.generation.generator import Generator

CHOICES = """task: patchwork_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXTS = """task: patchwork_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
WORDS = ["the", "patch", "begins", "where", "Größe", "naïve", "byte", "is", "hard"]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of two small tasks of our own."""
    choose = random.Random(0)
    questions = [
        {
            "question": " ".join(choose.choices(WORDS, k=choose.randint(2, 12))),
            "choices": [" ".join(choose.choices(WORDS, k=choose.randint(1, 4))) for _ in range(4)],
            "answer": choose.randrange(4),
        }
        for _ in range(25)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "choices.yaml").write_text(CHOICES.format(data=data))
    (folder / "texts.yaml").write_text(TEXTS.format(data=data))
    return folder


@pytest.mark.drill
def test_the_harness_gets_the_same_scores_over_http(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="asks with the package lm-eval, as pip install 'lm-eval[api]' installs it")
    pytest.importorskip("tenacity", reason="lm-eval asks servers with the package tenacity, a part of lm-eval[api]")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder, names = chat_model(tmp_path), ["patchwork_choices", "patchwork_texts"]
    figures = tmp_path / "figures.json"
    assert main(["lm-eval", str(folder), "--tasks", *names, "--include", str(tasks), "--json", str(figures)]) == 0
    own = json.loads(figures.read_text())
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    for tokenized in (True, False):
        with running({"tiny": Generator(folder)}) as served:
            options: dict[str, Any] = {
                "model": "tiny",
                "base_url": f"{served.url}/v1/completions",
                "tokenizer": str(tokenizer),
                "tokenizer_backend": "huggingface",
                "tokenized_requests": tokenized,
                "num_concurrent": 4,
            }
            manager = TaskManager(include_path=str(tasks))
            found = simple_evaluate("local-completions", options, names, task_manager=manager, log_samples=False)
        compared = [("patchwork_choices", "acc,none"), ("patchwork_choices", "acc_norm,none")]
        # A whole text begins with BOS, which the harness sends as three letters where it sends texts.
        compared += [("patchwork_texts", "bits_per_byte,none")] * tokenized
        for task, figure in compared:
            assert found["results"][task][figure] == pytest.approx(own[task][figure], rel=1e-5), (task, figure)
    assert 0 < own["patchwork_choices"]["acc,none"] < 1
