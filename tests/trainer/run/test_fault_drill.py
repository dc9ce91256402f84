"""Kill after kill, and the model is the one of a quiet run, bit for bit (a larger drill: bench_faults.py)."""

from pathlib import Path

import pytest
from helpers.drill import Drill, drill_recipe, quiet_run, weights
from helpers.tiny_runs import losses, metric_lines

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drill_recipe(tmp_path_factory.mktemp("drill"), steps=36, every=2)


@pytest.fixture(scope="module")
def quiet(recipe: Path) -> Path:
    out = recipe.parent / "quiet"
    quiet_run(recipe, out)
    return out


def test_a_run_whose_machine_and_rank_are_killed_ends_as_if_nothing_had_happened(recipe: Path, quiet: Path) -> None:
    """The machine in the middle of a save, then a byte of the newest checkpoint flips; the rank in a step."""
    drill = Drill(recipe, recipe.parent / "drilled", seed=6)
    plan = drill.plan(["machine, then a byte of a checkpoint", "rank"], first=6, last=24)
    assert [kill.saving for kill in plan] == [True, False]
    drill.finish(plan, recipe.parent / "log", limit=900)
    assert sum(drill.done.values()) == 2
    assert drill.starts == 2
    assert drill.set_aside() == 1
    assert weights(drill.out) == weights(quiet)
    assert losses(drill.out) == losses(quiet)
    assert [line["step"] for line in metric_lines(drill.out)] == [line["step"] for line in metric_lines(quiet)]
    assert not drill.left_behind()
    said = (recipe.parent / "log").read_text()
    assert said.count("going on after step") == 2
    assert "Traceback" not in said
