"""The learning rate over a run, and runs that go on for longer than was planned."""

import io
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.start_examples import complaint
from helpers.tiny_runs import STATIC, metric_lines, run_identity_of, tiny_data, tiny_recipe, tiny_settings, toml
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.model_folder.identity import model_sha256
from trainer.lr_schedule import check_schedule, decayed, progress, rate
from trainer.main import main
from trainer.provenance.run_checks import finished
from trainer.settings import RunSettings, ScheduleSettings, TrainSettings, identity_dict
from trainer.settings.learning import InSteps
from trainer.settings.recipe import load_recipe

LONG = 10**9


def run_of(**length: Any) -> RunSettings:
    return RunSettings(out="x", **length)


def schedule(**keys: Any) -> ScheduleSettings:
    return ScheduleSettings.model_validate(keys)


def at(rule: ScheduleSettings, done: float) -> float:
    """The rate at a share of a long run."""
    return rate(rule, run_of(bytes=LONG), 0, round(done * LONG))


def hundredths(first: int, last: int) -> st.SearchStrategy[float]:
    return st.integers(first, last).map(lambda number: number / 100)


@settings(deadline=None)
@given(hundredths(0, 90), hundredths(0, 100), hundredths(0, 100))
def test_the_rate_rises_to_one_and_falls_to_the_floor(warmup: float, floor: float, done: float) -> None:
    rule = schedule(warmup=warmup, floor=floor)
    assert 0 <= at(rule, done) <= 1
    assert at(rule, warmup) == pytest.approx(1, abs=1e-6)
    assert at(rule, 1.0) == pytest.approx(floor)
    assert at(rule, 1.5) == pytest.approx(floor)
    if done < warmup - 1e-6:
        assert at(rule, done) == pytest.approx(done / warmup, abs=1e-6)


def test_the_cosine_is_half_way_in_the_middle() -> None:
    assert at(schedule(warmup=0.2, floor=0.1), 0.6) == pytest.approx(0.55)


def test_the_run_ends_with_whichever_length_is_reached_first() -> None:
    run = run_of(steps=10, bytes=1000)
    assert progress(run, 5, 100) == 0.5
    assert progress(run, 1, 900) == 0.9
    assert progress(run_of(bytes=1000), 7, 500) == 0.5


@settings(deadline=None)
@given(
    hundredths(0, 50),
    hundredths(1, 50),
    hundredths(0, 100),
    hundredths(0, 99),
    st.sampled_from(["linear", "sqrt", "cosine"]),
)
def test_wsd_rises_stays_and_falls(warmup: float, decay: float, floor: float, done: float, shape: str) -> None:
    rule = schedule(kind="wsd", warmup=warmup, decay=decay, floor=floor, shape=shape)
    assert at(rule, 1.0) == pytest.approx(floor)
    if done < warmup:
        assert at(rule, done) == pytest.approx(done / warmup)
    elif done < 1 - decay:
        assert at(rule, done) == pytest.approx(1)
    else:
        assert floor - 1e-9 <= at(rule, done + 0.01) <= at(rule, done) <= 1


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - 0.5**0.5), ("cosine", 0.5)])
def test_shapes_of_the_decay(shape: str, half: float) -> None:
    rule = schedule(kind="wsd", warmup=0, decay=0.4, floor=0.2, shape=shape)
    assert at(rule, 0.8) == pytest.approx(0.2 + 0.8 * half)


def test_lengths_may_be_in_steps_or_in_bytes() -> None:
    rule, run = (
        schedule(kind="wsd", warmup={"steps": 4}, decay={"steps": 10}, floor=0, shape="linear"),
        run_of(steps=50),
    )
    assert [rate(rule, run, step, 0) for step in (1, 4, 40, 45, 50)] == [0.25, 1.0, 1.0, 0.5, 0.0]
    for steps in range(5, 60):
        assert decayed(schedule(kind="wsd", decay={"steps": 4}), run_of(steps=steps), steps - 4, 0) == 0.0
    rule, run = schedule(warmup={"bytes": 100}, floor=0), run_of(bytes=300)
    assert [rate(rule, run, 9, seen) for seen in (50, 100)] == [0.5, 1.0]
    assert rate(rule, run, 9, 200) == pytest.approx(0.5)
    constant = schedule(kind="constant", warmup={"steps": 2})
    assert [rate(constant, run_of(bytes=10), step, 10) for step in (1, 2, 900)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("keys", "length", "words"),
    [
        ({"warmup": {"steps": 5}}, {"bytes": 100}, "schedule.warmup must be a share"),
        ({"warmup": {"steps": 5}}, {"bytes": 100, "steps": 10}, "schedule.warmup must be a share"),
        ({"kind": "wsd", "decay": {"bytes": 5}}, {"steps": 100}, "schedule.decay must be a share"),
        ({"kind": "wsd", "warmup": 0.5, "decay": 0.6}, {"steps": 100}, "1.1 of it"),
        ({"kind": "wsd", "warmup": {"steps": 60}, "decay": {"steps": 60}}, {"steps": 100}, "1.2 of it"),
        ({"warmup": {"bytes": 100}}, {"bytes": 100}, "schedule.warmup take more than the run"),
        ({"kind": "constant", "warmup": {"steps": 200}}, {"steps": 100}, "2 of it"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(keys: dict[str, Any], length: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_schedule(schedule(**keys), run_of(**length))


def test_a_length_is_written_in_one_way_or_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(toml(tiny_recipe(tmp_path, tmp_path)))
    for text, wanted in (("0.3", 0.3), ("{steps = 7}", {"steps": 7}), ("{bytes = 9}", {"bytes": 9})):
        found = load_recipe(recipe, ["--schedule.warmup", text], TrainSettings)
        assert found.resolved()["schedule"]["warmup"] == wanted
    nested = load_recipe(recipe, ["--schedule.warmup.steps", "7"], TrainSettings)
    assert nested.schedule.warmup == InSteps(steps=7)
    for text in ("1.5", "{steps = 0}", "{hours = 3}", "soon"):
        with pytest.raises(ConfigError, match=r"schedule\.warmup"):
            load_recipe(recipe, ["--schedule.warmup", text], TrainSettings)


def test_keys_of_another_kind_do_not_decide(tmp_path: Path) -> None:
    plain = identity_dict(tiny_settings(tmp_path, tmp_path))
    assert identity_dict(tiny_settings(tmp_path, tmp_path, schedule={"decay": 0.5, "shape": "linear"})) == plain
    assert identity_dict(tiny_settings(tmp_path, tmp_path, schedule={"kind": "wsd", "decay": 0.5})) != identity_dict(
        tiny_settings(tmp_path, tmp_path, schedule={"kind": "wsd"})
    )


def test_without_a_decay_the_peak_stays_past_the_end() -> None:
    assert rate(schedule(kind="wsd", warmup=0, decay=0), run_of(bytes=100), 3, 103) == 1.0


def test_the_decay_of_a_longer_run_begins_later() -> None:
    rule = schedule(kind="wsd", warmup={"steps": 4}, decay=0.25)
    assert decayed(rule, run_of(steps=40), 30, 0) == 0.0 < decayed(rule, run_of(steps=40), 31, 0)
    assert decayed(rule, run_of(steps=80), 60, 0) == 0.0 < decayed(rule, run_of(steps=80), 61, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("schedule") / "data", STATIC)


STEADY = {"kind": "wsd", "warmup": {"steps": 2}, "decay": {"steps": 2}}


def train(data: Path, out: Path, steps: int, rule: dict[str, Any], every: int = 2, keep: int = 9) -> int:
    recipe = out.with_suffix(".toml")
    values = tiny_recipe(data, out, run={"steps": steps}, schedule=rule, checkpoint={"every": every, "keep": keep})
    recipe.write_text(toml(values))
    return main([str(recipe), "--data.packs", "1"])


def rates(out: Path) -> list[float]:
    return [line["lr"] for line in metric_lines(out) if "lr" in line]


class Prolonged(NamedTuple):
    """Runs of 8 steps: one in one go, and one that was of 6, and what was seen of that on the way."""

    longer: Path
    out: Path
    short_rates: list[float]
    short_model: str
    again: tuple[int, str]
    """Exit code and weights of the command for 6 steps, given again."""
    said: str


@pytest.fixture(scope="module")
def prolonged(data: Path) -> Prolonged:
    longer, out = data.parent / "longer", data.parent / "prolonged"
    assert train(data, longer, 8, STEADY) == 0
    assert train(data, out, 6, STEADY) == 0
    short_rates, short_model = rates(out), model_sha256(out / "model")
    again = (train(data, out, 6, STEADY), model_sha256(out / "model"))
    with redirect_stderr(io.StringIO()) as said:
        assert train(data, out, 8, STEADY) == 0
    return Prolonged(longer, out, short_rates, short_model, again, said.getvalue())


def test_a_run_and_a_longer_one_have_the_same_rates_until_the_decay_of_the_shorter(prolonged: Prolonged) -> None:
    short, long = prolonged.short_rates, rates(prolonged.longer)
    assert short[:4] == long[:4]
    assert short[4:] != long[4:6]


def test_a_finished_run_that_is_started_again_is_finished_still(prolonged: Prolonged) -> None:
    assert prolonged.again == (0, prolonged.short_model)


def test_a_prolonged_run_goes_on_from_before_its_decay(prolonged: Prolonged) -> None:
    assert "after step 4" in prolonged.said


def test_a_checkpoint_from_the_decay_of_the_shorter_run_is_named_and_set_aside(prolonged: Prolonged) -> None:
    assert "step-00000006" in prolonged.said
    assert (prolonged.out / "checkpoints" / "other-length-step-00000006" / "COMPLETE").exists()


def test_a_wsd_run_that_is_prolonged_before_its_decay_is_the_longer_run(prolonged: Prolonged) -> None:
    assert model_sha256(prolonged.out / "model") == model_sha256(prolonged.longer / "model") != prolonged.short_model
    assert rates(prolonged.out) == rates(prolonged.longer)


def test_a_shorter_run_is_not_made_of_a_longer_one(
    data: Path, prolonged: Prolonged, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, prolonged.out, 6, STEADY) == 2
    line = complaint(capsys)
    assert re.search(r"step-00000008.*config\.run\.steps: recorded 8, now 6.*decay by step 8", line), line
    assert model_sha256(prolonged.out / "model") == model_sha256(prolonged.longer / "model")


@pytest.fixture(scope="module")
def halved(data: Path) -> str:
    """Weights of a run of ten steps in one go, of which the second half decays."""
    out = data.parent / "halved"
    assert train(data, out, 10, STEADY | {"decay": 0.5}) == 0
    return model_sha256(out / "model")


@pytest.mark.parametrize("every", [3, pytest.param(500, marks=pytest.mark.drill)])
def test_the_last_checkpoint_before_the_decay_stays_whatever_is_kept(
    data: Path, halved: str, tmp_path: Path, every: int
) -> None:
    """Also where none was due before it: then it is saved for that."""
    out, rule = tmp_path / "run", STEADY | {"decay": 0.5}
    assert train(data, out, 8, rule, every=every, keep=1) == 0
    steps = sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())
    assert steps == [4, 8]
    assert train(data, out, 10, rule, every=every, keep=1) == 0
    assert model_sha256(out / "model") == halved


def test_a_constant_run_goes_on_from_its_end_and_a_stale_model_is_not_taken_for_the_longer_ones(
    data: Path, tmp_path: Path
) -> None:
    rule = {"kind": "constant", "warmup": {"steps": 1}}
    longer, out = tmp_path / "longer", tmp_path / "run"
    assert train(data, longer, 4, rule) == 0
    assert train(data, out, 2, rule) == 0
    wanted = run_identity_of(tiny_settings(data, out, run={"steps": 4}, data={"packs": 1}, schedule=rule))
    assert not finished(out, wanted)
    assert train(data, out, 4, rule) == 0
    assert finished(out, wanted)
    assert model_sha256(out / "model") == model_sha256(longer / "model")


@pytest.mark.parametrize("rule", [{}, {"kind": "wsd"}, {"kind": "constant"}])
def test_a_schedule_that_depends_on_the_length_makes_another_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    assert train(data, out, 2, rule) == 0
    capsys.readouterr()
    assert train(data, out, 4, rule) == 2
    line = complaint(capsys)
    assert "cannot continue with another length (config.run.steps: recorded 2, now 4): schedule." in line
    assert f"start.model = {out}" in line
    assert "remove" not in line
