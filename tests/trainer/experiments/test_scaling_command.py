"""The scaling study from end to end: two families, three sizes, two budgets of a few steps, gone on with."""

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tomli_w import dumps as to_toml

from shared.errors import ConfigError
from trainer.__main__ import main
from trainer.experiments.scaling.grid import Grid, load_grid, sized
from trainer.experiments.scaling.record import SCALING_NAME, Scaling, load_scaling
from trainer.experiments.scaling.runner import announced
from trainer.experiments.systems import load_experiment

STACK = "{width = 16, layers = 1, heads = 2, feed_forward = 16}"
SYSTEMS = f"""
[recipe]
run = {{dtype = "float32", device = "cpu"}}
data = {{tokens = 600, packs = 1, workers = 0, streams = 4}}
optimizer = {{lr = 3e-3}}
guard = {{sigmas = 0}}
parallel = {{dry_run = false}}
checkpoint = {{every = 100, asynchronous = false}}
metrics = {{log_every = 5, peak_flops = 1e9}}

[patchings]
none = {{rule = "none"}}
space = {{rule = "space"}}

[systems.bytes]
family = "bytes"
description = "Bytes."
patching = "none"
model = {{kind = "flat", width = 16, layers = 1, heads = 2, feed_forward = 16}}

[systems.words]
family = "blt"
description = "Patches that end with a word."
patching = "space"
[systems.words.model]
kind = "blt"
window = 64
ngrams = {{sizes = [3], rows = 32}}
encoder = {STACK}
global = {STACK}
decoder = {STACK}
"""
GRID = """
budgets = [3e9, 6e9]
against = "bytes"
predict = [10]
replicates = 100

[recipe.data]
tokens = 520

[families.bytes]
system = "bytes"
[families.bytes.sizes]
s = {model = {width = 8}}
m = {model = {}}
l = {model = {width = 20}, optimizer = {lr = 1e-3}}

[families.words]
system = "words"
[families.words.sizes]
s = {model = {window = 16}}
m = {model = {}}
"""
BROKEN = "broken = {model = {}, optimizer = {lr = 1e30}}\n"
BYTES, WORDS = [("bytes", size) for size in "sml"], [("words", size) for size in "sm"]


def command(place: Path, *more: object) -> list[str]:
    options = ["--out", place / "out", "--systems", place / "systems.toml", "--grid", place / "grid.toml"]
    options += ["--corpus-bytes", 24_000, "--document-bytes", 200, "--validation-fraction", 0.1, "--executor", "inline"]
    return ["scaling", *map(str, [place / "prose.txt", *options, *more])]


pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One family first, one size of which fails; then a run of it undone, and all of the grid asked for."""
    place = tmp_path_factory.mktemp("study")
    words = "The patch begins where the next byte is hard to guess, and ends before another. "
    (place / "prose.txt").write_text("\n\n".join(f"{number} {words * (1 + number % 3)}" for number in range(180)))
    (place / "systems.toml").write_text(SYSTEMS)
    (place / "grid.toml").write_text(GRID.replace("m = {model = {}}", BROKEN + "m = {model = {}}", 1))
    with (place / "first.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        assert main(command(place, "--families", "bytes", "--budgets", 3e9)) == 1
    before = load_scaling(place / "out")
    (place / "before.json").write_text(before.model_dump_json())
    shutil.rmtree(place / "out" / before.runs[1].result.folder)
    (place / "grid.toml").write_text(GRID)
    with (place / "second.txt").open("w") as file, redirect_stdout(file):
        assert main(command(place)) == 0
    return place


@pytest.fixture(scope="module")
def found(place: Path) -> Scaling:
    return load_scaling(place / "out")


def test_every_place_of_the_grid_has_one_run(found: Scaling) -> None:
    places = [(run.family, run.size, run.budget_flops) for run in found.runs]
    assert len(set(places)) == len(places)
    assert set(places) == {(*name, budget) for name in BYTES + WORDS for budget in (3e9, 6e9)}


def test_every_run_is_at_its_budget_and_has_a_model_and_a_score(place: Path, found: Scaling) -> None:
    for run in found.runs:
        assert run.result.useful_flops == pytest.approx(run.budget_flops, rel=0.02)
        assert (place / "out" / run.result.folder / "model/model.safetensors").exists()
        assert run.result.bits_per_byte > 0


def test_runs_are_in_order_of_size(found: Scaling) -> None:
    sizes = [run.result.flops_per_byte for run in found.runs if run.family == "bytes"]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("section", "key", "value"), [("model", "width", 20), ("optimizer", "lr", 1e-3), ("data", "tokens", 520)]
)
def test_a_run_has_what_the_grid_lays_over_the_recipe(place: Path, section: str, key: str, value: float) -> None:
    resolved = json.loads((place / "out/runs/scaling/bytes-l/3e+09/seed-0/config.json").read_text())
    assert resolved[section][key] == value


def test_a_run_done_again_is_the_same_and_finished_ones_stay(place: Path, found: Scaling) -> None:
    before = Scaling.model_validate_json((place / "before.json").read_text())
    again = {(run.size, run.budget_flops): run.result for run in found.runs if run.family == "bytes"}
    for run in before.runs:
        assert again[run.size, run.budget_flops].bits_per_byte == run.result.bits_per_byte
    seconds = [again[run.size, run.budget_flops].seconds == run.result.seconds for run in before.runs]
    assert seconds == [True, False, True]  # only the one that was undone has run again


def test_families_with_enough_sizes_are_fitted_and_others_refused_in_words(found: Scaling) -> None:
    by_family = {family: [one for one in found.iso_flop if one.family == family] for family in found.families}
    assert all(profile.curve for profile in by_family["bytes"])
    assert all("a parabola needs 3 sizes, there are 2" in profile.refusal for profile in by_family["words"])
    assert any(words.startswith("words: no optimum at 2 budgets") for words in found.without)


def test_what_was_found_is_printed_and_on_a_page(place: Path, found: Scaling) -> None:
    printed = (place / "second.txt").read_text()
    assert "measured" in printed
    assert f"{found.runs[0].result.bits_per_byte:.4f}" in printed
    assert str(place / "out" / SCALING_NAME) in printed
    assert "Sizes of bytes" in (place / "out/report.html").read_text()


def test_a_run_that_fails_is_said_and_the_others_go_on(place: Path) -> None:
    assert "1 runs have failed: scaling/bytes-broken/3e+09/seed-0" in (place / "first.txt").read_text()
    before = Scaling.model_validate_json((place / "before.json").read_text())
    assert [(run.family, run.size) for run in before.runs] == BYTES


def test_another_corpus_needs_another_folder(place: Path, capfd) -> None:
    assert main([*command(place), "--corpus-bytes", "20000"]) == 2
    assert "sample_bytes: recorded 24000, now 20000" in capfd.readouterr().err


def test_the_grid_of_the_house_is_sound_and_says_what_it_takes() -> None:
    grid = load_grid()
    assert list(grid.families) == ["bytes", "bpe", "blt-space", "blt-entropy"]
    assert all(len(family.sizes) >= 3 for family in grid.families.values())
    experiment = sized(load_experiment(), grid)
    words = announced(grid, experiment, 2)
    assert words.startswith("48 runs of 4 families, ")
    part = grid.part(families=["bytes"], sizes=["s", "m"], budgets=[3e9, 1e9], seeds=[4])
    assert [place.name for place in part.places()] == [
        f"scaling/bytes-{size}/{budget}/seed-4" for budget in ("1e+09", "3e+09") for size in ("s", "m")
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"budgets": [2e9, 1e9]}, "budgets must ascend"),
        ({"against": "bpe"}, "against: there is no family 'bpe'; there is bytes"),
        ({"sizes": 3}, "sizes"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path: Path, values: dict, words: str) -> None:
    good = {
        "budgets": [1e9],
        "against": "bytes",
        "families": {"bytes": {"system": "bytes", "sizes": {"s": {"model": {}}}}},
    }
    Grid.model_validate(good)
    path = tmp_path / "grid.toml"
    path.write_text(to_toml(good | values))
    with pytest.raises(ConfigError, match=words) as caught:
        load_grid(path)
    assert str(path) in str(caught.value)


def test_names_that_are_not_in_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'bits'.*bytes, bpe"):
        load_grid().part(families=["bits"])
    grid = load_grid()
    nowhere = grid.model_copy(
        update={"families": {"bytes": grid.families["bytes"].model_copy(update={"system": "bits"})}}
    )
    with pytest.raises(ConfigError, match=r"families\.bytes\.system: .*'bits'"):
        sized(load_experiment(), nowhere)
