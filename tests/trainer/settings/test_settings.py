"""Recipes: every key checked, and only what does not change learning is free to change."""

import os
from pathlib import Path

import pytest
from helpers.tiny_runs import NONE, STACK, STATIC, run_identity_of, tiny_data, tiny_recipe, tiny_settings, toml

from shared.errors import ConfigError, IdentityError
from trainer.provenance.identity import check_same
from trainer.settings import TrainSettings, identity_dict
from trainer.settings.recipe import check_recipe, load_recipe, read_recipe, with_places
from trainer.settings.section import Section

RECIPES = sorted(Path(__file__).parents[3].glob("trainer/recipes/*.toml"))


def test_recipes_are_valid_with_places_given() -> None:
    assert RECIPES
    for recipe in RECIPES:
        check_recipe(with_places(read_recipe(recipe, [], TrainSettings)), TrainSettings, recipe)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--optimizer.learning_rate", "1"], "optimizer.learning_rate"),
        (["--model.width", "30"], r"^--model.width: unknown key 'model.width'"),
        (["--run.dtype", "float16"], "run.dtype"),
        (["--data.packs", "0"], "data.packs"),
        (["--optimizer.rates.global_.blocks", "-1"], r"optimizer.rates.global_.blocks"),
        (["--optimizer.betas", "[0.9, 1.5]"], r"optimizer.betas"),
        (["--optimizer.clip", "inf"], "optimizer.clip"),
        (["--optimizer.tables.rate", "inf"], "optimizer.tables.rate"),
        (["--optimizer.rates.encoder", "inf"], "optimizer.rates.encoder"),
        (["--run.timeout", "inf"], "run.timeout"),
        (["--data.weights.a", "nan"], "data.weights.a"),
        (["--schedule.warmup.steps", "0"], r"^--schedule.warmup.steps: must be greater than 0 \(got 0\)$"),
        (["--schedule.warmup.bytes", "-1"], r"^--schedule.warmup.bytes: must be greater than 0 \(got -1\)$"),
        (["--schedule.warmup.step", "4"], r"^--schedule.warmup.step: unknown key"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, overrides: list[str], words: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(toml(tiny_recipe(tmp_path, tmp_path)))
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(recipe, overrides, TrainSettings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["run.out", "data.path", "data.datasets", "start.model"])
def test_a_path_that_is_not_utf_8_is_refused_by_key(tmp_path: Path, key: str) -> None:
    """Neither the record of a run nor a safetensors file can have one."""
    path = tmp_path / os.fsdecode(b"caf\xe9")
    section, name = key.split(".")
    values = tiny_recipe(tmp_path / "data", tmp_path / "run")
    values.setdefault(section, {})[name] = {"a": str(path)} if name == "datasets" else str(path)
    if name == "datasets":
        del values["data"]["path"]
    with pytest.raises(ConfigError, match=rf"{key}: .*udce9' is not UTF-8"):
        check_recipe(values, TrainSettings, tmp_path / "r.toml")


@pytest.mark.parametrize("key", ["run.out", "start.model", "data.cache"])
def test_a_url_is_no_folder_of_this_machine(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    values = tiny_recipe(tmp_path / "data", tmp_path / "run")
    values.setdefault(section, {})[name] = "s3://bucket/folder"
    with pytest.raises(ConfigError, match=f"{key}: s3://bucket/folder is a URL"):
        check_recipe(values, TrainSettings, tmp_path / "r.toml")


@pytest.mark.parametrize("key", ["run.out", "data.path", "data.datasets", "checkpoint.mirror", "start.model"])
def test_a_misspelt_url_is_refused_by_key(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    values = tiny_recipe(tmp_path / "data", tmp_path / "run")
    values.setdefault(section, {})[name] = {"a": "s3:/bucket/x"} if name == "datasets" else "s3:/bucket/x"
    if name == "datasets":
        del values["data"]["path"]
    with pytest.raises(ConfigError, match=f"{key}.*s3://bucket/x"):
        check_recipe(values, TrainSettings, tmp_path / "r.toml")


def test_a_run_without_a_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps or as bytes"):
        tiny_settings(tmp_path, tmp_path, run={"steps": None})


def test_rates_are_named_by_dots_however_they_are_written(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(toml(tiny_recipe(tmp_path, tmp_path)) + '[optimizer.rates]\n"global_.blocks" = 0.1\n')
    changes = ["--optimizer.rates.global_.blocks", "0.2", "--optimizer.rates.encoder.blocks.0", "0"]
    assert load_recipe(recipe, [], TrainSettings).optimizer.rates == {"global_.blocks": 0.1}
    changed = load_recipe(recipe, changes, TrainSettings).optimizer.rates
    assert changed == {"global_.blocks": 0.2, "encoder.blocks.0": 0.0}


def test_how_tables_learn_is_no_part_of_a_run_that_has_none(tmp_path: Path) -> None:
    stack = {"width": 32, "layers": 1, "heads": 2}
    entropy = tiny_settings(tmp_path, tmp_path, model={"kind": "entropy", "window": 64, **stack})
    assert "tables" not in identity_dict(entropy)["optimizer"]
    assert "tables" in identity_dict(tiny_settings(tmp_path, tmp_path))["optimizer"]
    for ngrams, there in (({}, False), ({"ngrams": {"sizes": []}}, False), ({"ngrams": {"rows": 8}}, True)):
        flat = tiny_settings(tmp_path, tmp_path, model=STACK | {"kind": "flat"} | ngrams)
        identity = identity_dict(flat)
        assert ("tables" in identity["optimizer"]) == ("ngrams" in identity["model"]) == there


def test_keys_excluded_from_the_identity_exist() -> None:
    for field in TrainSettings.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert set(field.annotation.excluded_from_identity) <= field.annotation.model_fields.keys()


def test_cadence_and_place_do_not_belong_to_the_identity_but_everything_else_does(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    identity = run_identity_of(tiny_settings(data, tmp_path))
    free = {"run": {"out": "/elsewhere", "threads": 2}, "checkpoint": {"every": 7}, "metrics": {"log_every": 9}}
    assert run_identity_of(tiny_settings(data, tmp_path, **free)) == identity
    for section, key, value in [
        ("run", "steps", 7),
        ("run", "seed", 1),
        ("run", "dtype", "bfloat16"),
        ("data", "tokens", 512),
        ("data", "packs", 4),
        ("optimizer", "lr", 1.0),
        ("schedule", "floor", 0.5),
    ]:
        other = run_identity_of(tiny_settings(data, tmp_path, **{section: {key: value}}))
        with pytest.raises(IdentityError, match=rf"config\.{section}\.{key}: recorded .*, now {value!r}"):
            check_same(identity, other, tmp_path)


def test_other_data_is_another_run(tmp_path: Path) -> None:
    first = run_identity_of(tiny_settings(tiny_data(tmp_path / "a", STATIC), tmp_path))
    other = run_identity_of(tiny_settings(tiny_data(tmp_path / "b", STATIC, documents=30), tmp_path))
    with pytest.raises(IdentityError, match=r"data\.train"):
        check_same(first, other, tmp_path)


def test_a_model_that_needs_patches_refuses_unpatched_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs patched shards"):
        run_identity_of(tiny_settings(tiny_data(tmp_path / "data", NONE), tmp_path))


def test_an_unknown_subset_in_the_weights_is_named(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    with pytest.raises(ConfigError, match="'c'"):
        run_identity_of(tiny_settings(data, tmp_path, data={"weights": {"c": 1.0}}))
