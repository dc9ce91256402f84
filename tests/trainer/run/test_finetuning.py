"""Fine-tuning on chats, from the records to an answer: preprocess --chat, a run from a model without special ids,
evaluate, generate --chat."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.start_examples import STILL, run_on_two_ranks
from helpers.tiny_runs import STATIC, losses, tiny_data, tiny_recipe, toml

from pipeline.__main__ import main as pipeline
from shared.model_folder.files import load_state
from shared.models.initialise import initial_value
from shared.shards.open import open_dataset
from shared.text.chat import END, ROLES
from trainer.__main__ import main as trainer
from trainer.checkpoints.new_token_rows import GROWING
from trainer.main import main as train

SPECIALS = [*ROLES, END]
PATCHES = ("--rule", "static", "--stride", "4", "--max-length", "64", "--executor", "inline", "--workers", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model without special ids, and chats: the answer to every question is ok."""
    folder = tmp_path_factory.mktemp("finetuning")
    assert run(tiny_data(folder / "text", STATIC), folder / "base") == 0
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(60):
            chat = {"id": f"c{number}", "prompt": f"what is {number * 7919 % 101}?", "response": "ok"}
            file.write(json.dumps(chat) + "\n")
    command = ("preprocess", folder / "chats.jsonl", "--out", folder / "chats", "--chat", *PATCHES)
    assert pipeline([*map(str, command), "--validation-fraction", "0.2"]) == 0
    return folder


def run(data: Path, out: Path, specials: list[str] | None = None, **sections: dict[str, Any]) -> int:
    recipe = tiny_recipe(data, out, **sections)
    if specials:
        recipe["model"] = recipe["model"] | {"specials": specials}
    path = out.with_suffix(".toml")
    path.write_text(toml(recipe))
    return train([str(path)])


def check_rows(found: Path, base: Path) -> None:
    """The weights of a fine-tuned model that has learned nothing yet are the base's, with rows for its special ids."""
    ours, theirs = load_state(found)[0], load_state(base)[0]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        wanted = theirs[name]
        if name in GROWING:
            rows = [initial_value(f"{name}/{special}", (1, wanted.shape[1]), 0) for special in SPECIALS]
            wanted = torch.cat([wanted, *rows])
        assert torch.equal(tensor, wanted), name


def test_a_model_without_special_ids_gets_rows_for_them_and_keeps_the_rest(place: Path, tmp_path: Path) -> None:
    still = {"run": {"steps": 1}, "optimizer": {"lr": STILL}, "start": {"model": str(place / "base" / "model")}}
    assert run(place / "chats", tmp_path / "folder", SPECIALS, **still) == 0
    check_rows(tmp_path / "folder" / "model", place / "base" / "model")


@pytest.mark.drill
def test_two_ranks_each_with_its_rows_begin_from_the_checkpoint_of_one(place: Path, tmp_path: Path) -> None:
    still = {"run": {"steps": 1}, "optimizer": {"lr": STILL}, "start": {"model": str(place / "base" / "model")}}
    still["model"] = tiny_recipe(place, tmp_path)["model"] | {"specials": SPECIALS}
    run_on_two_ranks(place / "chats", tmp_path / "ranks", place / "base", **still)
    check_rows(tmp_path / "ranks" / "model", place / "base" / "model")


def started_from(folder: Path) -> dict[str, dict[str, Any]]:
    return {"start": {"model": str(folder)}}


def test_data_with_other_special_ids_than_the_model_is_refused_with_the_key(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place / "chats", tmp_path / "none", **started_from(place / "base" / "model")) != 0
    error = capsys.readouterr().err
    assert "special ids system, user, assistant, end, the model none" in error
    assert 'model.specials = ["system", "user", "assistant", "end"]' in error


def test_special_ids_in_another_order_are_refused(place: Path, tmp_path: Path) -> None:
    assert run(place / "chats", tmp_path / "other", SPECIALS[::-1], **started_from(place / "base" / "model")) != 0


def test_a_model_with_special_ids_may_learn_from_plain_text(place: Path, tmp_path: Path) -> None:
    one = {"run": {"steps": 1}}
    assert run(place / "text", tmp_path / "text", SPECIALS, **started_from(place / "base" / "model"), **one) == 0


def test_a_run_with_fewer_special_ids_than_it_starts_from_is_refused(
    place: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place / "text", tmp_path / "fewer", SPECIALS[:2], **started_from(tuned / "model")) != 0
    assert "model.specials must begin with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    """A run that has learned to answer."""
    sections = {"run": {"steps": 30}, "optimizer": {"lr": 2e-2}, "metrics": {"log_every": 10}}
    start = started_from(place / "base" / "model")
    assert run(place / "chats", place / "tuned", SPECIALS, **start, **sections) == 0
    return place / "tuned"


def test_only_an_answer_its_end_and_eos_are_targets(place: Path) -> None:
    data = open_dataset(place / "chats" / "train").manifest.totals
    assert data.targets == 4 * data.documents, "two bytes, the end of the turn and EOS"


def test_the_loss_falls_to_almost_nothing(tuned: Path) -> None:
    found = losses(tuned)
    assert found[-1] < 0.1 < found[0]


def test_a_fine_tuned_model_is_scored_on_answers_alone_and_better_than_baselines(
    place: Path, tuned: Path, tmp_path: Path
) -> None:
    options = ("--baselines", "--json", str(tmp_path / "scores.json"))
    assert trainer(["evaluate", str(tuned / "model"), str(place / "chats"), *options]) == 0
    (scores,) = json.loads((tmp_path / "scores.json").read_text())["datasets"]
    validation = open_dataset(place / "chats" / "validation").manifest.totals
    assert scores["total"]["bytes"] == 2 * validation.documents, "only what is a target counts"
    baselines = scores["total"]["baselines"]
    assert scores["total"]["bits_per_byte"] < baselines["order-2"] < 8
    assert baselines["xz -9"] > 0


def test_a_fine_tuned_model_answers_chats(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--chat", "--user", "what is 12?", "--temperature", "0"]
    assert trainer(["generate", str(tuned / "model"), *asked]) == 0
    printed = capsys.readouterr()
    assert printed.out == "ok\n"
    assert "ended: end of turn" in printed.err
