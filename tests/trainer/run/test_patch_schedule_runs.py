"""A run whose patches grow from 2 to 6 bytes: stopped and resumed, planned, and what its model carries."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.drill import Drill, Kill, quiet_run, weights
from helpers.pipeline_helpers import preprocess, write_jsonl
from helpers.rewriting_examples import SCORED, make_place, run, scored
from helpers.tiny_runs import (
    NONE,
    STACK,
    losses,
    metric_lines,
    run_identity_of,
    tiny_data,
    tiny_recipe,
    tiny_settings,
    toml,
)
from pydantic import ValidationError

from shared.errors import ConfigError, IdentityError
from shared.patching.sizes import load_patch_sizes
from shared.shards.open import open_dataset
from trainer.__main__ import main as trainer_main
from trainer.checkpoints.model import model_at
from trainer.checkpoints.state import read_state
from trainer.data.loader import PackLoader
from trainer.data.packing.packs import Pack
from trainer.data.patch_schedule import sampled_sizes
from trainer.data.run_data import RunData
from trainer.evaluation.compatibility import check_fits, score_folder
from trainer.experiments.budget import steps_within
from trainer.experiments.results.records import spent
from trainer.generation.generator import Generator
from trainer.main import main
from trainer.metrics.history import load_history
from trainer.metrics.run_metrics import FlopsCounter
from trainer.metrics.subset_score import total_of
from trainer.planning import plan as planning
from trainer.planning.plan import make_plan
from trainer.planning.report import report
from trainer.provenance.identity import RunIdentity, model_identity, run_differences
from trainer.provenance.run_checks import check_goes_on
from trainer.settings import TrainSettings

pytestmark = pytest.mark.drill

FIXED = ("--rule", "entropy", "--max-length", 64)
SCHEDULE = [{"size": 2}, {"size": 3, "at": 0.25}, {"size": 4, "at": 0.5}, {"size": 6, "at": 0.75}]
HNET = {"kind": "hnet", "encoder": STACK, "global": STACK, "decoder": STACK, "window": 64}
STEPS = 12
"""Of a run: a phase has three."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with entropies of both kinds and with none, and a table of sizes."""
    folder = make_place(tmp_path_factory.mktemp("schedule"))
    for sidecar in ("uint8", "float32", "none"):
        scored(folder, folder / sidecar, *FIXED, "--theta", 2.0, "--sidecar", sidecar)
    sizes(folder, folder / "uint8", folder / "sizes.json")
    return folder


def sizes(place: Path, data: Path, out: Path, *options: object, asked: str = "2,3,4,6") -> Path:
    line = ("calibrate", data, "--entropy-model", place / "model", "--sizes", asked, "--out", out)
    assert run(*line, "--max-length", 64, "--stream-length", 512, "--threads", 1, *options) == 0
    return out


def sections(place: Path, **changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of the recipe: 12 steps of 4 packs."""
    data = {"tokens": 256, "packs": 4, "streams": 3}
    data |= {"patch_schedule": SCHEDULE, "patch_sizes": str(place / "sizes.json")}
    found: dict[str, dict[str, Any]] = {
        "run": {"steps": STEPS},
        "data": data,
        "checkpoint": {"every": 1, "keep": STEPS},
        "metrics": {"log_every": 1, "validate_every": 4},
    }
    for section, values in changed.items():
        found[section] = found.get(section, {}) | values
    return found


def recipe_at(place: Path, path: Path, **changed: dict[str, Any]) -> Path:
    values = tiny_recipe(place / "uint8", path.parent / "unused", **sections(place, **changed))
    schedule = values["data"].pop("patch_schedule")
    inline = ", ".join(f"{{{', '.join(f'{key} = {value}' for key, value in phase.items())}}}" for phase in schedule)
    path.write_text(toml(values).replace("[data]\n", f"[data]\npatch_schedule = [{inline}]\n"))
    return path


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    return recipe_at(place, place / "recipe.toml")


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    out = recipe.parent / "whole"
    assert main([str(recipe), "--run.out", str(out)]) == 0
    assert len(losses(out)) == STEPS
    return out


def stopped(whole: Path, out: Path, step: int) -> Path:
    """The folder of a run as it was after a step."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    for later in (out / "checkpoints").glob("step-*"):
        if int(later.name[5:]) > step:
            shutil.rmtree(later)
    return out


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.drill), 6])
def test_a_run_resumed_inside_a_phase_and_at_its_change_is_bit_for_bit_the_whole_one(
    recipe: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    """6 steps end a phase; the next one begins with the first step after the stop."""
    assert read_state(whole / f"checkpoints/step-{step:08d}").cursor.phase == (step - 1) // 3
    out = stopped(whole, tmp_path / "run", step)
    options = ("--data.workers", str(step % 2), "--checkpoint.every", str(STEPS))
    assert main([str(recipe), "--run.out", str(out), *options]) == 0
    assert losses(out) == losses(whole)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.drill
def test_two_ranks_that_are_killed_in_two_phases_end_as_if_nothing_had_happened(place: Path, tmp_path: Path) -> None:
    """8 steps a phase: all of the machine about the first change, a rank alone in the third phase."""
    length = {"run": {"steps": 32}, "checkpoint": {"every": 2, "keep": 3}, "metrics": {"log_every": 1}}
    recipe = recipe_at(place, tmp_path / "recipe.toml", **length)
    quiet_run(recipe, tmp_path / "quiet")
    drill = Drill(recipe, tmp_path / "drilled")
    drill.finish([Kill("machine", 7, saving=True), Kill("rank", 18, saving=False)], tmp_path / "log", limit=900)
    assert (drill.starts, sum(drill.done.values())) == (2, 2)
    assert losses(drill.out) == losses(tmp_path / "quiet")
    assert weights(drill.out) == weights(tmp_path / "quiet")
    said = (tmp_path / "log").read_text()
    assert said.count("going on after step") == 2
    assert "Traceback" not in said


def test_bytes_a_patch_grow_with_the_phases_and_packs_keep_their_p_max(place: Path, whole: Path) -> None:
    lines = [line for line in metric_lines(whole) if "loss" in line]
    table = load_patch_sizes(place / "sizes.json")
    for phase, entry in enumerate(table.patch_sizes):
        own = [line["bytes_per_patch"] for line in lines[3 * phase + 1 : 3 * phase + 3]]
        assert sum(own) / len(own) == pytest.approx(entry.mean_patch_size, rel=0.15)
        assert all(0 < line["patch_fill"] < 1 for line in lines)


def test_validation_is_of_the_last_phase_and_the_present_one_is_beside_it(place: Path, whole: Path) -> None:
    lines = metric_lines(whole)
    found = [line["validation"]["bytes_per_patch"] for line in lines if "validation" in line]
    present = [line["phase_validation"] for line in lines if "phase_validation" in line]
    held_out = [entry.held_out for entry in load_patch_sizes(place / "sizes.json").patch_sizes]
    assert found == pytest.approx([held_out[3]] * 3, rel=0.02)
    assert [line["phase"] for line in present] == [1, 2]
    assert [line["bytes_per_patch"] for line in present] == pytest.approx(held_out[1:3], rel=0.02)
    assert all("bits_per_byte" in line for line in present)


def test_a_model_carries_the_thresholds_of_the_last_phase(place: Path, whole: Path, tmp_path: Path) -> None:
    entries = load_patch_sizes(place / "sizes.json").patch_sizes
    identity = model_identity(whole / "model")
    assert identity.patching == entries[3].patching
    assert [phase.patching for phase in identity.phases] == [entry.patching for entry in entries]
    assert [phase.patches for phase in identity.phases] == [192, 128, 128, 64]
    assert identity.mean_patch_size == entries[3].mean_patch_size
    early = read_state(whole / "checkpoints/step-00000002").identity
    assert early.patching == entries[3].patching


def test_a_model_writes_and_is_exported_with_the_thresholds_of_the_last_phase(
    place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theta = load_patch_sizes(place / "sizes.json").patch_sizes[3].patching.theta
    assert theta is not None
    generator = Generator(whole, torch.device("cpu"), threads=1)
    assert generator.identity.patching.theta == theta
    assert trainer_main(["export-hf", str(whole / "model"), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["patching_threshold"] == pytest.approx(theta)
    checkpoint = whole / "checkpoints" / "step-00000002"
    with model_at(checkpoint) as folder:  # of the first phase
        assert model_identity(folder).patching.theta == theta


def test_its_own_validation_split_is_scored_with_the_thresholds_of_the_model(place: Path, whole: Path) -> None:
    (line,) = [line for line in metric_lines(whole) if line["step"] == STEPS and "validation" in line]
    for data in ("uint8", "float32"):
        dataset = open_dataset(place / data / "validation")
        score = total_of(score_folder(whole / "model", dataset, 256, torch.device("cpu"), "float32").by_subset())
        assert score.bytes_per_patch == pytest.approx(line["validation"]["bytes_per_patch"])
        if data == "uint8":
            assert score.bits_per_byte == pytest.approx(line["validation"]["bits_per_byte"], rel=1e-5)
    with pytest.raises(IdentityError, match="is not cut into patches"):
        check_fits(whole / "model", open_dataset(place / "none" / "validation"))


def settings_of(place: Path, out: Path, source: str = "uint8", /, **changed: dict[str, Any]) -> TrainSettings:
    return tiny_settings(place / source, out, **sections(place, **changed))


@dataclass(frozen=True)
class Trained:
    """What the packs of a run have, counted as its metrics count them."""

    flops: float
    """Useful ones."""
    bytes: int
    targets: int
    sizes: list[float]
    """Bytes a patch in each phase."""


def trained(settings: TrainSettings, steps: int) -> Trained:
    data = RunData(settings.data)
    loader = PackLoader(
        data.train,
        data.limits,
        settings.data.packs,
        seed=settings.run.seed,
        streams=settings.data.streams,
        schedule=data.schedule(settings.run),
    )
    counter = FlopsCounter(settings.model, None, "none", tiled=True)
    phases, packs = len(data.phases), list[Pack]()
    text, patches = [0] * phases, [0] * phases
    for pack in islice(loader, steps * settings.data.packs):
        text[loader.phase] += int(pack.slice_bytes.sum())
        patches[loader.phase] += int(pack.slice_patches.sum())
        packs.append(pack)
    counter.add(packs)
    sizes = [own / count for own, count in zip(text, patches)]
    return Trained(counter.pop()["useful"], sum(text), sum(pack.targets for pack in packs), sizes)


@pytest.mark.parametrize("unit", ["share", "steps"])
def test_a_budget_of_flops_is_met_within_one_percent(place: Path, tmp_path: Path, unit: str) -> None:
    schedule = SCHEDULE if unit == "share" else [{"size": 2}, {"size": 6, "at": {"steps": 20}}]
    settings = settings_of(place, tmp_path, data={"patch_schedule": schedule} | SMALL_STEPS)
    budget = 7.7e9
    found = steps_within(settings, budget, "model_flops")
    run = settings.run.model_copy(update={"steps": found.steps})
    used = trained(settings.model_copy(update={"run": run}), found.steps)
    assert (used.flops, used.bytes) == (pytest.approx(found.model_flops, rel=1e-9), found.bytes)
    assert abs(used.flops / budget - 1) < 0.01


SMALL_STEPS = {"packs": 2, "tokens": 256}


@pytest.fixture(scope="module")
def of_kinds(place: Path) -> Path:
    """Beside the data with short documents one whose documents are much longer than packs, and other rules."""
    words = [f"w{number * 7919 % 1009}x" for number in range(4000)]
    records = [{"id": str(n), "text": " ".join(words[n * 97 : n * 97 + 20 + 900 * (n % 2)])} for n in range(24)]
    write_jsonl(place / "long.jsonl", records)
    theta = ("--theta", 2.0, "--validation-fraction", 0.3, "--sidecar", "uint8", *SCORED)
    model = ("--entropy-model", place / "model")
    assert preprocess(place / "long.jsonl", "--out", place / "long", *model, *FIXED, *theta) == 0
    scored(place, place / "characters", *FIXED, "--theta", 2.0, "--whole-characters", "--sidecar", "uint8")
    scored(place, place / "cut", "--rule", "entropy", "--max-length", 7, "--theta", 2.0, "--sidecar", "float32")
    return place


def by_thetas(place: Path) -> dict[str, Any]:
    """The schedule with the thresholds themselves in place of a table."""
    thetas = [entry.patching.theta for entry in load_patch_sizes(place / "sizes.json").patch_sizes]
    schedule = [
        {"theta": theta} | {k: v for k, v in phase.items() if k == "at"} for theta, phase in zip(thetas, SCHEDULE)
    ]
    return {"patch_schedule": schedule, "patch_sizes": None}


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("uint8", {"steps": 40}),
        ("uint8", {"bytes": 17_000}),
        ("long", {"steps": 40}),
        ("long", {"bytes": 17_000}),
        ("characters", {"bytes": 17_000}),
        ("cut", {"bytes": 17_000}),
    ],
)
def test_a_plan_has_the_flops_bytes_and_steps_of_the_packs_that_are_trained_on(
    of_kinds: Path, tmp_path: Path, kind: str, length: dict[str, int]
) -> None:
    settings = settings_of(of_kinds, tmp_path, kind, data=by_thetas(of_kinds), run={"steps": None} | length)
    plan = make_plan(settings)
    used = trained(settings, plan.steps)
    assert (plan.flops, plan.bytes) == (pytest.approx(used.flops, rel=1e-9), used.bytes)
    assert used.targets >= length.get("bytes", 0) > 0 or plan.steps == 40
    assert [phase.patch_size for phase in plan.phases] == pytest.approx(used.sizes)
    held = abs(plan.phases[-1].patch_size / plan.phases[-1].size - 1)
    assert held > 0.1 if kind == "long" else held < 0.1, "documents go on from earlier phases"
    assert kind != "long" or "of documents that begin in it" in report(plan)


def test_a_plan_is_what_a_run_has_logged(place: Path, whole: Path, tmp_path: Path) -> None:
    plan = make_plan(settings_of(place, tmp_path))
    last = spent(load_history(whole))[-1]
    assert (plan.steps, plan.bytes) == (last.step, last.bytes)
    assert plan.flops == pytest.approx(last.useful_flops, rel=1e-9)
    assert plan.executed * plan.bytes == pytest.approx(executed_in(whole), rel=0.05)


def executed_in(run: Path) -> float:
    """FLOPs as they were computed, by what was logged after each step."""
    lines = [line for line in metric_lines(run) if "loss" in line]
    texts = [line["bytes_per_second"] * line["step_seconds"]["whole"] for line in lines]
    return sum(line["flops_per_byte"]["executed"] * text for line, text in zip(lines, texts))


@pytest.mark.parametrize("kind", ["uint8", "long"])
def test_a_run_planned_in_small_is_within_one_percent(
    of_kinds: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the packs and of the streams."""
    for at in ({}, {"at": {"steps": 100}}):
        schedule = [{"size": 2}, {"size": 6, "at": 0.5} | at]
        data = {"patch_schedule": schedule, "tokens": 100, "streams": 10}
        settings = settings_of(of_kinds, tmp_path, kind, run={"steps": 200}, data=data)
        exact = make_plan(settings)
        monkeypatch.setattr(planning, "MOST_BYTES", exact.step_bytes * 40)
        small = make_plan(settings)
        monkeypatch.undo()
        assert (exact.planned, small.planned) == (1.0, 0.2)
        assert small.flops == pytest.approx(exact.flops, rel=0.01)
        assert small.bytes == pytest.approx(exact.bytes, rel=0.01)
        assert small.steps == exact.steps == 200


def test_a_plan_needs_room_for_the_phase_with_the_most_patches(place: Path, tmp_path: Path) -> None:
    plan = make_plan(settings_of(place, tmp_path))
    assert plan.patches == plan.phases[0].patches
    assert plan.memory == make_plan(settings_of(place, tmp_path, data={"patch_schedule": SCHEDULE[:1]})).memory
    assert sum(phase.share for phase in plan.phases) == pytest.approx(1)
    assert plan.training == pytest.approx(sum(phase.share * phase.training for phase in plan.phases))
    assert plan.training > plan.phases[-1].training
    assert f"4: 25% of the run, {plan.phases[3].patch_size:.2f} bytes a patch" in report(plan)


def test_a_run_that_outlasts_its_data_has_no_plan_and_no_budget(of_kinds: Path, tmp_path: Path) -> None:
    ends = (
        {"repeats": dict.fromkeys(open_dataset(of_kinds / "uint8" / "train").subset_names, 3)}
        | SMALL_STEPS
        | {"tokens": 80}
    )
    for schedule in (SCHEDULE, [{"size": 2}, {"size": 6, "at": {"steps": 20}}]):
        settings = settings_of(of_kinds, tmp_path, run={"steps": 500}, data=ends | {"patch_schedule": schedule})
        with pytest.raises(ConfigError, match=r"data\.repeats"):
            make_plan(settings)
        with pytest.raises(ConfigError, match=r"data\.repeats ends the data after") as refused:
            steps_within(settings, 1e12, "model_flops")
        most = int(str(refused.value).split(" steps of ")[0].rpartition(" ")[2])
        run = settings.run.model_copy(update={"steps": most})
        used = trained(settings.model_copy(update={"run": run}), most)
        assert steps_within(settings, used.flops, "model_flops").steps == most
        assert steps_within(settings, 0.97 * used.flops, "model_flops").steps < most
        with pytest.raises(ConfigError, match=r"data\.repeats"):
            steps_within(settings, 1.05 * used.flops, "model_flops")


def test_a_plan_without_data_takes_the_sizes_that_phases_name(place: Path, tmp_path: Path) -> None:
    schedule = [{"size": 2}, {"theta": 3.0, "at": {"bytes": 3072}}]
    settings = settings_of(place, tmp_path, "nowhere", data={"patch_schedule": schedule}, plan={"patch_size": 5.0})
    plan = make_plan(settings)
    assert [(phase.share, phase.patch_size) for phase in plan.phases] == [(0.25, 2.0), (0.75, 5.0)]


def test_a_theta_is_planned_with_the_size_that_it_gives(place: Path, tmp_path: Path) -> None:
    for entry in load_patch_sizes(place / "sizes.json").patch_sizes:
        changed = {"patch_schedule": [{"theta": entry.patching.theta}], "patch_sizes": None}
        data = RunData(settings_of(place, tmp_path, data=changed).data)
        assert data.phases[0].patching == entry.patching
        assert data.phases[0].size == pytest.approx(entry.mean_patch_size, rel=1e-9)


# ---- What is refused, each in one line.


def refusal(settings: TrainSettings) -> str:
    with pytest.raises(ConfigError) as refused:
        run_identity_of(settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([{"size": 2}, {"size": 3, "at": 0.5}, {"size": 4, "at": 0.5}], r"patch_schedule\.2\.at is 0\.5.*greater than"),
        ([{"size": 2}, {"size": 3}], r"patch_schedule\.1\.at is 0"),
        ([{"size": 2, "at": 0.1}], r"patch_schedule\.0\.at"),
        ([{"size": 2}, {"size": 3, "at": 0.5}, {"size": 4, "at": {"steps": 9}}], r"patch_schedule\.2\.at: all phases"),
        ([{"size": 2, "theta": 2.0}], "either size.*or theta"),
        ([{"at": 0.0}], "either size.*or theta"),
        ([{"theta": 2.0}], "patch_sizes.*go together"),
        ([], "patch_sizes.*go together"),
        ([{"size": 2, "patches": 2}], "patches"),
        ([{"size": 2, "patch": 2}], "unknown|Extra|extra"),
    ],
)
def test_a_schedule_that_says_nothing_sensible_is_refused(
    place: Path, tmp_path: Path, schedule: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        settings_of(place, tmp_path, data={"patch_schedule": schedule})


@pytest.mark.parametrize(
    ("at", "run", "ends_before"),
    [
        (0.99, {"steps": 12}, False),
        ({"steps": 11}, {"steps": 12}, False),
        ({"steps": 12}, {"steps": 12}, True),
        ({"bytes": 5000}, {"bytes": 5000, "steps": None}, True),
        ({"bytes": 5000}, {"steps": 12}, False),
    ],
)
def test_a_run_that_ends_before_its_last_phase_says_so(
    place: Path, tmp_path: Path, at: Any, run: dict[str, Any], ends_before: bool
) -> None:
    data = {"patch_schedule": [{"size": 2}, {"size": 6, "at": at}]}
    settings = settings_of(place, tmp_path, run=run, data=data)
    schedule = RunData(settings.data).schedule(settings.run)
    assert schedule is not None
    assert (schedule.unreached is not None) == ends_before


def test_p_max_is_said_by_the_phases(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="patches is said by each phase"):
        settings_of(place, tmp_path, data={"patches": 100})
    changed = [SCHEDULE[0] | {"patches": 200}, SCHEDULE[1]]
    data = RunData(settings_of(place, tmp_path, data={"patch_schedule": changed}).data)
    assert data.phases[0].limits.patches == 200
    assert data.phases[1].limits.patches == 128
    assert data.largest_limits.patches == 200


def test_a_table_with_impossible_sizes_asks_for_no_more_patches_than_there_are_tokens(
    place: Path, tmp_path: Path
) -> None:
    def change(table: dict[str, Any]) -> None:
        table["patch_sizes"][0]["mean_patch_size"] = 1e-9

    data = changed_table(place, tmp_path / "tiny.json", change)
    settings = settings_of(place, tmp_path, data=data)
    assert RunData(settings.data).phases[0].limits.patches < 3 * settings.data.tokens


def test_data_that_keeps_no_entropies_is_refused(place: Path, tmp_path: Path) -> None:
    words = refusal(settings_of(place, tmp_path, "none"))
    assert "none/train keeps no entropies" in words
    assert "--sidecar uint8" in words


def test_a_rule_without_a_threshold_is_refused(place: Path, tmp_path: Path) -> None:
    data = scored(place, tmp_path / "space", "--rule", "space", "--sidecar", "uint8")
    settings = tiny_settings(data, tmp_path / "out", **sections(place))
    assert "rule 'space', which has no threshold" in refusal(settings)


def test_rises_need_exact_entropies(place: Path, tmp_path: Path) -> None:
    rise = ("--rule", "monotonic", "--theta", 0.5, "--max-length", 64)
    coarse = scored(place, tmp_path / "coarse", *rise, "--sidecar", "uint8")
    changed = {"patch_schedule": [{"theta": 0.5}], "patch_sizes": None}
    assert "too coarse for rises" in refusal(tiny_settings(coarse, tmp_path / "o", **sections(place, data=changed)))
    exact = scored(place, tmp_path / "exact", *rise, "--sidecar", "float32")
    data = RunData(tiny_settings(exact, tmp_path / "o", **sections(place, data=changed)).data)
    assert data.phases[0].size == pytest.approx(data.train_manifest.totals.mean_patch_size, rel=1e-9)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({"size": 5}, r"patch_schedule\.0\.size is 5; .*sizes\.json has 2, 3, 4, 6"),
        ({"theta": 2.1}, r"patch_schedule\.0\.theta: theta 2\.1 is not on the uint8 sidecar's grid; near is 2\.09"),
    ],
)
def test_what_neither_the_table_nor_the_grid_has_is_refused(
    place: Path, tmp_path: Path, phase: dict[str, Any], words: str
) -> None:
    table = {} if "size" in phase else {"patch_sizes": None}
    settings = settings_of(place, tmp_path, data={"patch_schedule": [phase]} | table)
    with pytest.raises(ConfigError, match=words):
        run_identity_of(settings)


def test_a_theta_beside_exact_entropies_is_on_no_grid(place: Path, tmp_path: Path) -> None:
    changed = {"patch_schedule": [{"theta": 2.1}], "patch_sizes": None}
    identity = run_identity_of(settings_of(place, tmp_path, "float32", data=changed))
    assert (identity.patching.theta, identity.patching.grid) == (2.1, False)


def changed_table(place: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The keys of a recipe with a table in which something is other."""
    values = json.loads((place / "sizes.json").read_text())
    change(values)
    path.write_text(json.dumps(values))
    return {"patch_sizes": str(path)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.update(entropy_model="0" * 64), "entropy model 000000000000"),
        (lambda table: [one["patching"].update(max_length=63) for one in table["patch_sizes"]], "max_length"),
        (lambda table: table["patch_sizes"][1]["patching"].update(thetas={"x": 2.028013229370117}), "subset 'x'; "),
        (lambda table: table["patch_sizes"].reverse(), "must ascend"),
        (lambda table: table["patch_sizes"][1]["patching"].update(rule="space"), "does not take theta"),
        (lambda table: table.update(format_version=2), "format version 2"),
        (lambda table: table.update(more=1), "unknown key 'more'"),
        (lambda table: table["patch_sizes"].clear(), "patch_sizes"),
    ],
)
def test_a_table_of_something_else_is_refused(
    place: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    data = changed_table(place, tmp_path / "other.json", change)
    found = refusal(settings_of(place, tmp_path, data=data))
    assert words in found
    assert "other.json" in found


def test_a_table_that_is_not_there_is_refused(place: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(settings_of(place, tmp_path, data={"patch_sizes": str(tmp_path / "no.json")}))


def test_a_table_by_subset_is_for_the_subsets_of_all_datasets(of_kinds: Path, tmp_path: Path) -> None:
    """A name of one dataset's subset counts before that of a subset of each of them."""
    table = sizes(of_kinds, of_kinds / "uint8", tmp_path / "by-subset.json", "--per-subset")
    entries = load_patch_sizes(table).patch_sizes
    datasets = {"x": str(of_kinds / "uint8"), "y": str(of_kinds / "uint8"), "z": str(of_kinds / "long")}
    data = {"path": None, "datasets": datasets, "patch_sizes": str(table)}
    phases = RunData(settings_of(of_kinds, tmp_path, data=data).data).phases
    for phase, entry in zip(phases, entries, strict=True):
        wanted = {f"{name}/{subset}": theta for name in "xy" for subset, theta in entry.patching.thetas.items()}
        assert phase.patching.thetas == wanted
        assert len(wanted) == 4
        assert phase.patching.theta == entry.patching.theta
    near = entries[0].patching.thetas["a"]
    values = json.loads(table.read_text())
    for entry in values["patch_sizes"]:
        entry["patching"]["thetas"]["y/a"] = near
    table.write_text(json.dumps(values))
    named = RunData(settings_of(of_kinds, tmp_path, data=data).data).phases
    for before, after in zip(phases, named, strict=True):
        assert after.patching.thetas == before.patching.thetas | {"y/a": near}


def test_the_thresholds_of_several_datasets_do_not_matter_either(place: Path, tmp_path: Path) -> None:
    """Beside a dataset of another threshold a run has the packs that it has beside one of the same."""
    other = scored(place, tmp_path / "other", *FIXED, "--theta", 2.9, "--sidecar", "uint8")
    assert open_dataset(other / "train").patching.theta != open_dataset(place / "uint8" / "train").patching.theta
    found = []
    for second in (place / "uint8", other):
        datasets = {"x": str(place / "uint8"), "y": str(second)}
        settings = settings_of(place, tmp_path, data={"path": None, "datasets": datasets})
        assert RunData(settings.data).validation.subset_names
        found.append((RunData(settings.data).phases, trained(settings, STEPS)))
    assert found[0] == found[1]
    stored = {"patch_schedule": [], "patch_sizes": None}
    with pytest.raises(IdentityError, match="cannot be mixed"):
        run_identity_of(settings.model_copy(update={"data": settings.data.model_copy(update=stored)}))


def test_a_table_for_data_cut_as_an_imported_model_cuts_has_its_roundings(place: Path, tmp_path: Path) -> None:
    """Neither is an option of calibrate: what the data is cut with counts."""
    rise = ("--rule", "monotonic", "--sidecar", "float32", "--max-length", 64)
    chosen = tmp_path / "one.json"
    line = ("calibrate", place / "float32", "--entropy-model", place / "model", "--target", 3, "--out", chosen)
    assert run(*line, *rise, "--stream-length", 512, "--threads", 1) == 0
    values = json.loads(chosen.read_text())
    values["patching"] |= {"entropy_dtype": "float16", "reference_starts": True}
    chosen.write_text(json.dumps(values))
    data = scored(place, tmp_path / "data", "--patching", chosen, "--sidecar", "float32")
    table = sizes(place, data, tmp_path / "sizes.json", *rise[:4], asked="3,4")
    changed = {"patch_schedule": [{"size": 3}, {"size": 4, "at": 0.5}], "patch_sizes": str(table)}
    phases = RunData(tiny_settings(data, tmp_path / "out", **sections(place, data=changed)).data).phases
    stored = open_dataset(data / "train").patching
    for phase in phases:
        assert (phase.patching.entropy_dtype, phase.patching.reference_starts) == ("float16", True)
        assert phase.patching.model_copy(update={"theta": stored.theta}) == stored
    (found,) = sampled_sizes(open_dataset(data / "train"), [phases[1].patching])
    assert found == pytest.approx(phases[1].size, rel=1e-9)


@pytest.mark.parametrize("model", [{"kind": "entropy", **STACK, "window": 64}, HNET], ids=["entropy", "hnet"])
def test_a_model_of_bytes_has_no_schedule(place: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"model of kind '{model['kind']}' reads data without patches"):
        settings_of(place, tmp_path, model=model)


def test_data_without_patches_has_no_schedule(place: Path, tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", NONE)
    sized = {"patch_schedule": [{"theta": 2.0}], "patch_sizes": None}
    settings = tiny_settings(data, tmp_path / "out", **sections(place, data=sized))
    assert "needs patched shards, these have rule 'none'" in refusal(settings)


def test_other_thresholds_are_another_run(place: Path, tmp_path: Path) -> None:
    """Also those that a table of the same name has now."""
    ours = run_identity_of(settings_of(place, tmp_path))
    data = changed_table(place, tmp_path / "t.json", lambda table: table["patch_sizes"].pop(2))
    schedule = [SCHEDULE[0], SCHEDULE[1], SCHEDULE[3]]
    other = run_identity_of(settings_of(place, tmp_path, data=data | {"patch_schedule": schedule}))
    assert any("phases" in line for line in run_differences(ours, other))
    moved = run_identity_of(settings_of(place, tmp_path, data=changed_table(place, tmp_path / "same.json", len)))
    assert moved == ours
    data = changed_table(place, tmp_path / "p.json", lambda table: table["patch_sizes"][0].update(mean_patch_size=1.0))
    assert run_identity_of(settings_of(place, tmp_path, data=data)) != ours  # P_max is another
    plain = run_identity_of(settings_of(place, tmp_path, data={"patch_schedule": [], "patch_sizes": None}))
    assert plain.phases == ()
    assert "patch_schedule" not in plain.config["data"]
    assert "phases" not in plain.model_dump(mode="json")


@pytest.mark.parametrize(("at", "goes_on"), [(0.5, False), ({"steps": 6}, True)])
def test_only_phases_at_steps_or_bytes_stay_where_they_are_when_a_run_is_prolonged(
    place: Path, tmp_path: Path, at: Any, goes_on: bool
) -> None:
    def identity(steps: int) -> RunIdentity:
        schedule = {"kind": "constant", "warmup": {"steps": 2}}
        data = {"patch_schedule": [{"size": 2}, {"size": 6, "at": at}]}
        return run_identity_of(settings_of(place, tmp_path, run={"steps": steps}, schedule=schedule, data=data))

    if goes_on:
        check_goes_on(identity(12), identity(24), tmp_path, 12, 1000)
    else:
        with pytest.raises(IdentityError, match="begin at shares"):
            check_goes_on(identity(12), identity(24), tmp_path, 12, 1000)
