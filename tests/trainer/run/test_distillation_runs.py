"""The two stages of distillation as users run them: what is learned, what is said, what is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.distillation_examples import teacher_and_student, write_random_targets
from helpers.rounding import TRAINED
from helpers.start_examples import complaint
from helpers.tiny_runs import losses, metric_lines, quiet_environment, torchrun

from pipeline.__main__ import main as pipeline
from shared.errors import IdentityError
from shared.model_folder.files import load_state, save_model
from shared.model_folder.identity import load_settings
from shared.shards.cache import FileCache
from shared.shards.open import open_dataset
from trainer.__main__ import main as command
from trainer.data.teacher import open_teacher
from trainer.main import main as train
from trainer.settings import DistillationSettings

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student, data in tokens and cut at spaces, and a run of the first stage."""
    folder = teacher_and_student(tmp_path_factory.mktemp("distillation"))
    cut = ["recut", folder / "plain", "--rule", "space", "--max-length", 64, "--out", folder / "spaces", "--workers", 1]
    assert pipeline([*map(str, cut)]) == 0
    assert train(first_stage(folder, "first")) == 0
    assert train(second_stage(folder, "second")) == 0
    return folder


ALWAYS = {
    "run.device": "cpu",
    "run.dtype": "float32",
    "data.workers": "0",
    "parallel.dry_run": "false",
    "checkpoint.every": "3",
    "metrics.log_every": "1",
}


def words_of(folder: Path, out: str | Path, **keys: object) -> list[str]:
    """The command line of a run; paths are below the folder."""
    given = {"run.out": folder / out} | {key.replace("__", "."): value for key, value in keys.items()}
    return [str(word) for key, value in (ALWAYS | given).items() for word in (f"--{key}", value)]


def first_stage(folder: Path, out: str | Path, *options: object, data: str = "tokens") -> list[str]:
    """The command line of a first stage of a few steps."""
    keys = {"targets": folder / "targets", "teacher": folder / "teacher"}
    distillation = {f"distillation__{key}": value for key, value in keys.items()}
    words = words_of(folder, out, data__path=folder / data, optimizer__rates="{global_ = 0}", **distillation)
    return [str(folder / "student" / "recipe.toml"), *words, *map(str, options)]


def second_stage(folder: Path, out: str | Path, *options: object) -> list[str]:
    """The command line of a second stage that begins with the first."""
    words = words_of(folder, out, data__path=folder / "spaces", start__model=folder / "first" / "model")
    return [str(folder / "student" / "recipe.toml"), *words, *map(str, options)]


STAGES = {"first": first_stage, "second": second_stage}


def distil(folder: Path, out: str, *options: object, data: str = "tokens") -> int:
    """Carry out a first stage; the exit code."""
    return train(first_stage(folder, out, *options, data=data))


def test_the_first_stage_learns_and_leaves_the_global_blocks_alone(place: Path) -> None:
    lines = [line for line in metric_lines(place / "first") if "distillation_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    terms = [line["distillation"] for line in lines]
    assert all(terms[-1][name] < terms[0][name] for name in ("bytes", "probabilities", "embedding"))
    assert lines[0]["distillation_loss"] == pytest.approx(sum(terms[0].values()), rel=1e-5)
    assert lines[-1]["grad_norm_by_part"]["global"] == 0
    before, after = load_state(place / "student")[0], load_state(place / "first" / "model")[0]
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("global_.blocks")} <= same
    assert "encoder.embedding.weight" not in same
    assert "decoder.head.weight" not in same


def test_its_loss_is_never_called_bits_per_byte(place: Path) -> None:
    lines = metric_lines(place / "first")
    assert not any("bits_per_byte" in json.dumps(line) for line in lines)
    (validation,) = [line["validation"] for line in lines if "validation" in line]
    assert validation["distillation_loss"] > 0
    page = (place / "first" / "report.html").read_text()
    assert "distillation loss" in page
    assert "on validation" in page


@pytest.mark.parametrize("how", ["evaluate", "generate", "export-hf", "sweep", "merge-weights", "tasks"])
def test_its_model_is_refused_where_text_is_predicted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    model = place / "first" / "model"
    (tmp_path / "tasks.jsonl").write_text('{"task": "t", "kind": "completion", "prompt": "a", "answer": "b"}\n')
    words: dict[str, list[object]] = {
        "evaluate": [model, place / "tokens" / "validation"],
        "generate": [model, "--prompt", "a", "--bytes", 4],
        "export-hf": [model, tmp_path / "out"],
        "sweep": [model, place / "tokens" / "validation", "--out", tmp_path / "out"],
        "merge-weights": [model, model, "--out", tmp_path / "out"],
        "tasks": [model, tmp_path / "tasks.jsonl"],
    }
    assert command([how, *map(str, words[how])]) != 0
    assert "first stage of distillation" in complaint(capsys)


def test_a_checkpoint_of_it_is_refused_by_its_own_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is made of it to be scored is gone when the error is read."""
    checkpoint = place / "first" / "checkpoints" / "step-00000006"
    assert command(["evaluate", str(checkpoint), str(place / "tokens" / "validation")]) != 0
    assert f"start.model = {checkpoint} " in complaint(capsys)


def test_the_second_stage_begins_with_it_on_patches_of_another_rule(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "bits_per_byte" in metric_lines(place / "second")[0]
    assert command(["evaluate", str(place / "second" / "model"), str(place / "spaces" / "validation")]) == 0
    assert "total" in capsys.readouterr().out


def test_a_causal_rule_may_be_learned_on_too_and_then_text_is_predicted(place: Path) -> None:
    assert distil(place, "causal", "--distillation.tokenizer", place / "tokens-tokenizer", data="spaces") == 0
    lines = metric_lines(place / "causal")
    assert [line["validation"]["bits_per_byte"] for line in lines if "validation" in line]
    assert not any("bits_per_byte" in line for line in lines), "the loss in training is the whole one"
    assert command(["evaluate", str(place / "causal" / "model"), str(place / "spaces" / "validation")]) == 0


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_stage_that_was_stopped_is_bit_for_bit_the_whole_one(place: Path, stage: str, tmp_path: Path) -> None:
    """With a worker that reads the targets, where the whole run has none."""
    whole, out = place / stage, tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    shutil.rmtree(sorted((out / "checkpoints").glob("step-*"))[-1])
    assert train(STAGES[stage](place, out, "--data.workers", 1)) == 0
    assert losses(out) == losses(whole)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.drill
@pytest.mark.parametrize("stage", ["first", "second"])
def test_two_ranks_learn_what_one_does(place: Path, stage: str, tmp_path: Path) -> None:
    whole, out = place / stage, tmp_path / "run"
    command = torchrun("trainer/main.py", *STAGES[stage](place, out))
    subprocess.run(command, check=True, timeout=600, env=quiet_environment(), cwd=ROOT)
    assert losses(out) == pytest.approx(losses(whole), rel=TRAINED)


def test_other_targets_make_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = place / "other-targets"
    write_random_targets(other / "train", open_dataset(place / "tokens" / "train"), place / "teacher", seed=1)
    assert distil(place, "first", "--distillation.targets", other) != 0
    assert "teacher.targets" in complaint(capsys)
    assert distil(place, "first") == 0
    assert "nothing to train" in capsys.readouterr().out


def test_targets_of_two_datasets_come_from_one_teacher_on_any_machines(place: Path, tmp_path: Path) -> None:
    dataset = open_dataset(place / "tokens" / "train")
    settings = DistillationSettings(targets=tmp_path, embedding=0)
    write_random_targets(tmp_path / "one" / "train", dataset, place / "teacher")
    path = write_random_targets(tmp_path / "two" / "train", dataset, place / "teacher") / "targets.json"
    manifest = json.loads(path.read_text())
    numerics = {"device": "cpu", "dtype": "float32", "torch": "2", "attention": "tiled", "stream_length": 64}
    manifest["identity"]["numerics"] = numerics | {"threads": 1, "probe": "0" * 64}
    path.write_text(json.dumps(manifest))
    cache = FileCache(tmp_path / "cache")
    assert open_teacher(settings, {"one": dataset, "two": dataset}, cache).top == 4
    write_random_targets(tmp_path / "two" / "train", dataset, place / "second")
    with pytest.raises(IdentityError, match=r"two/train differ \(teacher\.sha256"):
        open_teacher(settings, {"one": dataset, "two": dataset}, cache)


def test_a_teacher_of_other_tokens_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With fewer ids, and with as many of which some have other bytes."""
    fewer, others = tmp_path / "fewer", tmp_path / "others"
    settings, tensors = load_settings(place / "teacher" / "model"), load_state(place / "teacher" / "model")[0]
    cut = {name: tensor[:270] if len(tensor) == 290 else tensor for name, tensor in tensors.items()}
    save_model(cut, settings.model_copy(update={"vocabulary": 270}), fewer)
    shutil.copytree(place / "teacher" / "model", others)
    path = others / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    named = {number: token for token, number in vocabulary.items()}
    vocabulary[named[280]], vocabulary[named[281]] = 281, 280
    path.write_text(json.dumps(content))
    for teacher, words in ((fewer, "id 270 "), (others, "id 280 ")):
        alone = ["--distillation.teacher", teacher, "--distillation.probabilities", 0]
        assert distil(place, "refused", *alone) != 0
        assert words in complaint(capsys)


@pytest.mark.parametrize("probabilities", ["1", "0"])
def test_the_tokens_of_another_model_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], probabilities: str
) -> None:
    """Their ids would be other rows of the embedding."""
    made = ["tokenizer", place / "plain", "--vocabulary", 300, "--out", tmp_path / "tokenizer"]
    assert pipeline([*map(str, made)]) == 0
    options = ["--distillation.tokenizer", tmp_path / "tokenizer", "--distillation.probabilities", probabilities]
    assert distil(place, "refused", *options, data="spaces") != 0
    assert str(tmp_path / "tokenizer") in complaint(capsys)


def test_a_second_stage_that_scales_otherwise_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(second_stage(place, "rescaled", "--model.input_scale", 1)) != 0
    assert "set model.input_scale = 0." in complaint(capsys)
    # One that says nothing of it has that of its start.
    recipe = place / "silent.toml"
    recipe.write_text((place / "student.toml").read_text())
    words = second_stage(place, "silent", "--run.steps", 1)[1:]
    assert train([str(recipe), *words]) == 0
    scales = [load_settings(place / name / "model").model_dump()["input_scale"] for name in ("silent", "first")]
    assert scales[0] == scales[1] != 1


def test_what_does_not_fit_is_refused_in_a_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = write_random_targets(
        place / "of-another" / "train", open_dataset(place / "tokens" / "train"), place / "second"
    ).parent
    no_targets = ["--distillation.probabilities", "0"]
    refused = [
        (["--distillation.embedding", "0", *no_targets], "nothing is learned from a teacher"),
        (["--distillation.targets", place / "nothing"], "nothing"),
        (["--distillation.targets", targets], "another teacher"),
        (["--distillation.teacher", place / "student"], "another teacher"),
        (["--distillation.teacher", place / "student", *no_targets], "a teacher is one of kind 'flat'"),
        (["--distillation.tokenizer", place / "spaces"], "not a tokenizer's folder"),
    ]
    for options, words in refused:
        assert distil(place, "refused", *options) != 0
        assert words in complaint(capsys)
    assert distil(place, "refused", data="spaces") != 0
    assert "distillation.tokenizer" in complaint(capsys)
