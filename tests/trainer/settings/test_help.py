"""What one sees who asks which keys a recipe has, and who writes one that is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import ConfigError
from trainer.main import main
from trainer.settings import TrainSettings
from trainer.settings.help import help_text, page
from trainer.settings.keys import Key, keys_of
from trainer.settings.recipe import load_recipe

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "trainer/recipes/blt-small.toml"
KEYS = list(keys_of(TrainSettings))


def named(name: str) -> Key:
    return next(key for key in KEYS if key.name == name)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.section.__name__}.{key.parts[-1]}")
def test_every_key_has_a_sentence(key: Key) -> None:
    assert key.doc[:1].isupper() or key.doc.startswith(("1 ", "auto"))
    assert key.doc.endswith(".")


@pytest.mark.parametrize(
    ("name", "type", "default", "unit"),
    [
        ("run.out", "path", "required", ""),
        ("run.steps", "int", "None", "steps"),
        ("run.timeout", "float", "900.0", "seconds"),
        ("data.path", "path", "None", ""),
        ("data.repeats", "table of int", "{}", "passes"),
        ("optimizer.betas", "list of float", "[0.9, 0.95]", ""),
        ("schedule.kind", "cosine | wsd | constant", "cosine", ""),
        ("schedule.warmup", "float | {steps = int} | {bytes = int}", "0.05", ""),
        ("parallel.compile", "true | false", "false", ""),
        ("metrics.profile.steps", "int", "3", "steps"),
        ("model.ngrams.sizes", "list of int", "[3, 4, 5, 6, 7, 8]", ""),
    ],
)
def test_type_default_and_unit_come_from_the_settings(name: str, type: str, default: str, unit: str) -> None:
    key = named(name)
    assert (key.type, key.default, key.unit) == (type, default, unit)


def test_an_inherited_key_has_the_sentence_of_the_class_above() -> None:
    assert named("model.layers").doc == named("model.encoder.layers").doc


def test_the_page_of_keys_is_current() -> None:
    assert (ROOT / "docs/recipe-keys.md").read_text() == page(), "python -m trainer.settings.help > docs/recipe-keys.md"


def test_help_has_every_key_of_every_kind() -> None:
    shown = help_text(None, [])
    missing = [key.name for key in KEYS if f"  {key.name}  " not in shown and f"  {key.parts[-1]}  " not in shown]
    assert missing == []


def test_help_for_a_recipe_has_its_own_values_and_its_kind_of_model_alone() -> None:
    shown = help_text(RECIPE, ["--run.steps", "7", "--optimizer.rates", "{a = 0.5}"])
    assert "run.steps  int [steps]  7 (default: None)" in shown
    assert 'optimizer.rates  table of float  {"a": 0.5} (default: {})' in shown
    assert "model.global.width  int  256 (required)" in shown
    assert "model.newline_reset" not in shown


def test_help_is_printed_without_torch() -> None:
    asked = [["--help"], [str(RECIPE), "-h"], [str(RECIPE), "--run.steps", "5", "--help"]]
    code = (
        "import sys; from trainer.main import main\n"
        f"for words in {asked!r}: assert main(words) == 0; print(end='\\0')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *shown, rest = done.stdout.split("\0")
    assert [text.startswith("Trains the model") for text in shown] == [True] * 3
    assert rest == ""


def test_other_ranks_leave_help_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("--run.step", "run.steps"),
        ("--optimiser.lr", "optimizer"),
        ("--model.encoder.widht", "model.encoder.width"),
        ("--lr", "optimizer.lr"),
        ("--run.lr", "optimizer.lr"),
        ("--metrics.profile.step", "metrics.profile.steps"),
    ],
)
def test_the_nearest_known_key_is_suggested(override: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(RECIPE, [override, "1", "--data.path", "x", "--run.out", "y"], TrainSettings)
    assert str(caught.value).endswith(f"did you mean {meant!r}?")


def test_a_key_of_another_kind_of_model_is_not_suggested() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'model\.newline_reset'$"):
        load_recipe(RECIPE, ["--model.newline_reset", "true"], TrainSettings)


def test_an_unknown_key_in_a_file_comes_before_what_is_missing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.read_text().replace("[model.encoder]\nwidth", "[model.encoder]\nwidht"))
    with pytest.raises(
        ConfigError, match=r"recipe\.toml: unknown key 'model\.encoder\.widht'.*'model\.encoder\.width'"
    ):
        load_recipe(recipe, [], TrainSettings)


def test_the_nearest_recipe_of_the_folder_is_suggested() -> None:
    with pytest.raises(ConfigError, match=rf"did you mean '{RECIPE.name}'"):
        load_recipe(RECIPE.with_stem(RECIPE.stem[:-1]), [], TrainSettings)


def test_a_misspelt_option_is_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECIPE), "--pln"]) == 2
    assert "did you mean '--plan'?" in capsys.readouterr().err
