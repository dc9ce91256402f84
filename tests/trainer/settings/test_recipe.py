"""Recipes: overrides, and errors that name the key."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from shared.errors import ConfigError
from shared.settings import Settings
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe, read_recipe, read_toml


class Inner(Settings):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Chosen(Settings):
    kind: Literal["chosen"] = "chosen"
    depth: int = 1


class Other(Settings):
    kind: Literal["other"] = "other"
    width: int = 1


class Outer(Settings):
    title: str
    inner: Inner = Inner()
    place: Path | None = None
    places: dict[str, Path | str] = Field(default_factory=dict)
    shares: dict[str, float] = Field(default_factory=dict)
    model: Annotated[Chosen | Other, Field(discriminator="kind")] = Chosen()
    whole: bool = False
    seed: int = 0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('title = "one"\n[inner]\nrate = 0.5\n[model]\nkind = "chosen"\n')
    return path


def test_overrides_are_laid_over_the_file(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["--inner.rate", "2e-3", "--inner.names=['a', 'b']", "--title", "two words"], Outer)
    assert loaded == Outer(title="two words", inner=Inner(rate=0.002, names=("a", "b")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--inner.rat", "1"], r"^--inner.rat: unknown key 'inner.rat'"),
        (["--inner.rate", "fast"], r"inner.rate: .*number.*'fast'"),
        (["--inner.rate"], "needs a value"),
        (["inner.rate", "1"], "is not an override"),
        (["--title.x", "1"], "'title' is a value, not a section"),
        (["--", "1"], "is not an override"),
        (["--.", "1"], "is not a key"),
        (["--inner..rate", "1"], "is not a key"),
        (["--" + ".".join("a" * 20_000), "1"], "is not a key"),
        (["--title", ""], "^--title needs a value"),
        (["--title="], "^--title needs a value"),
        (["--seed", "1\nevil = 2"], r"^--seed: .*'1\\nevil = 2'"),
        (["--seed", "1 # 2"], "^--seed: .*'1 # 2'"),
        (["--seed", "true"], "^--seed: .*'true'"),
        (["--seed", "2020-01-01"], "^--seed: .*'2020-01-01'"),
        (["--inner.names", "[" * 10_000], "^--inner.names: "),
        (["--model.depht", "1"], "^--model.depht: unknown key 'model.depht'"),
        (["--model.width", "1"], "^--model.width: unknown key 'model.width'"),
        (["--model.depth", "x"], "^--model.depth: must be"),
    ],
)
def test_a_wrong_override_is_one_clear_line(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(recipe, overrides, Outer)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_recipe_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml", [], Outer)
    broken = tmp_path / "broken.toml"
    broken.write_text("title = ")
    with pytest.raises(ConfigError, match=r"broken.toml: not TOML"):
        load_recipe(broken, [], Outer)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-28",
        "20261128",
        "001",
        "1e3",
        "1_000",
        "true",
        "nan",
        "inf",
        "0x1F",
        '"quoted"',
        "[a]",
        "{b}",
        "it's",
        "#",
    ],
)
def test_what_is_a_text_or_a_path_is_taken_as_it_stands(recipe: Path, text: str) -> None:
    loaded = load_recipe(recipe, ["--title", text, "--place", text, "--places.a.b", text], Outer)
    assert (loaded.title, str(loaded.place)) == (text, text)
    assert {name: str(place) for name, place in loaded.places.items()} == {"a.b": text}


def test_names_in_a_table_may_be_numbers_and_have_dots(recipe: Path) -> None:
    loaded = load_recipe(
        recipe, ["--shares.2020", "0.5", "--shares.a.b", "1", "--whole", "true", "--seed", "1e3"], Outer
    )
    assert (loaded.shares, loaded.whole, loaded.seed) == ({"2020": 0.5, "a.b": 1.0}, True, 1000)


DEEP = {
    "tables": ".".join("a" * 40) + " = 1",
    "one key": ".".join("a" * 200_000) + " = 1",
    "one quoted key": " . ".join(["'a'"] * 20_000) + " = 1",
    "arrays": "a = " + "[" * 20_000,
    "inline": "a = " + "{a = " * 20_000,
    "digits": "seed = " + "9" * 5000,
    "large": "title = '" + "x" * 2**20 + "'",
}


@pytest.mark.parametrize("what", DEEP)
def test_a_recipe_that_is_absurd_is_one_line_that_names_it(tmp_path: Path, what: str) -> None:
    recipe = tmp_path / "absurd.toml"
    recipe.write_text(DEEP[what])
    with pytest.raises(ConfigError, match=r"absurd\.toml") as refusal:
        load_recipe(recipe, [], Outer)
    assert len(str(refusal.value)) < 500


def test_an_endless_recipe_is_one_line() -> None:
    with pytest.raises(ConfigError, match="zero"):
        read_toml(Path("/dev/zero"), "recipe")


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("--run.callbacks=a.b:C", ["a.b:C"]),
        ("--run.callbacks=a:B,c:D", ["a:B", "c:D"]),
        ('--run.callbacks=["a:B"]', ["a:B"]),
        ("--optimizer.betas=0.9,0.95", [0.9, 0.95]),
    ],
)
def test_a_list_is_given_with_commas_or_as_toml_has_it(tmp_path: Path, option: str, found: list[object]) -> None:
    (tmp_path / "recipe.toml").write_text("")
    values = read_recipe(tmp_path / "recipe.toml", [option], TrainSettings)
    assert found in values["run" if "run" in values else "optimizer"].values()
