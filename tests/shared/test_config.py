"""Recipes: overrides, and errors that name the key."""

from pathlib import Path

import pytest

from shared.config import ConfigError, load_recipe
from shared.model_settings import Settings


class Inner(Settings):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Outer(Settings):
    title: str
    inner: Inner = Inner()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('title = "one"\n[inner]\nrate = 0.5\n')
    return path


def test_overrides_are_laid_over_the_file(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["--inner.rate", "2e-3", "--inner.names=['a', 'b']", "--title", "two words"], Outer)
    assert loaded == Outer(title="two words", inner=Inner(rate=0.002, names=("a", "b")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--inner.rat", "1"], r"recipe.toml: unknown key 'inner.rat'"),
        (["--inner.rate", "fast"], r"inner.rate: .*number.*'fast'"),
        (["--inner.rate"], "needs a value"),
        (["inner.rate", "1"], "is not an override"),
        (["--title.x", "1"], "'title' is a value, not a section"),
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
