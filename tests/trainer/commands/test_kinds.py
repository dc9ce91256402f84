"""Tiny real runs of the kinds of models that others are compared with, and what each asks of its data."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.rounding import TRAINED
from helpers.tiny_runs import NONE, STACK, STATIC, losses, metric_lines, quiet_environment, run, tiny_data, torchrun
from safetensors.torch import load_file

from shared.model_folder.files import load_model
from shared.model_folder.identity import load_settings
from shared.models.initialise import initialise
from shared.patching.settings import PatchingSettings
from shared.shards.open import open_dataset
from trainer.__main__ import main as command

SPACE = PatchingSettings(rule="space", max_length=64)
WIDE = STACK | {"width": 48}
KINDS = {
    "flat": (NONE, STACK | {"kind": "flat"}),
    "megabyte": (STATIC, {"kind": "megabyte", "global": STACK, "local": STACK}),
    "spacebyte": (SPACE, {"kind": "spacebyte", "before": STACK, "global": WIDE, "after": STACK, "window": 64}),
    "hnet": (NONE, {"kind": "hnet", "encoder": STACK, "global": WIDE, "decoder": STACK, "window": 64}),
}
TABLES = {"ngrams": {"sizes": [2, 3], "rows": 200}}
STEPS = 12
SILENT = [kind for kind in KINDS if kind != "hnet"]
"""Kinds that do not generate."""
LOCALS = {"encoder": STACK, "global": STACK, "decoder": STACK, "window": 64}
ABLATIONS = {
    "no n-grams": LOCALS | {"kind": "blt", "ngrams": {"sizes": []}},
    "learned pooling": LOCALS | {"kind": "blt", "ngrams": {"sizes": [3], "rows": 64}, "pooling": "attention"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    rules = {patching.rule: patching for patching, _ in KINDS.values()}
    data = {rule: tiny_data(folder / rule, patching) for rule, patching in rules.items()}
    found = {}
    for kind, (patching, model) in KINDS.items():
        assert run(data[patching.rule], folder / kind, "--run.steps", STEPS, model=model) == 0
        found[kind] = folder / kind
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_is_saved_by_its_name(kind, runs):
    found = losses(runs[kind])
    assert found[-1] < found[0] - 0.5
    assert load_settings(runs[kind] / "model").kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_of_each_kind_is_current(kind, runs, capsys):
    patching, model = KINDS[kind]
    assert run(runs[kind].parent / patching.rule, runs[kind], "--run.steps", STEPS, model=model) == 0
    assert "is current" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_scored_on_all_bytes(kind, runs, capsys):
    data = runs[kind].parent / KINDS[kind][0].rule
    assert command(["evaluate", str(runs[kind] / "model"), str(data), "--tokens", "256"]) == 0
    text = open_dataset(data / "validation").manifest.totals.bytes
    assert f"{text:,}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("kind", SILENT)
def test_a_kind_that_does_not_generate_is_named(kind, runs, capsys):
    assert command(["generate", str(runs[kind] / "model"), "--prompt", "the"]) == 2
    assert f"a model of kind {kind!r}" in capsys.readouterr().err


@pytest.mark.numerics
@pytest.mark.drill
@pytest.mark.parametrize(
    ("kind", "tables"), [("megabyte", {}), ("megabyte", TABLES), ("hnet", {})], ids=["plain", "with tables", "hnet"]
)
def test_two_ranks_learn_what_one_does(kind, tables, runs):
    """The ratio loss of hnet, the only one that is no sum over targets, too: each rank has one of the two packs."""
    alone = runs[kind]
    if tables:
        patching, model = KINDS[kind]
        data, alone = alone.parent / patching.rule, alone.with_name(f"{kind}-tables")
        assert run(data, alone, "--run.steps", STEPS, model=model | tables) == 0
    several = alone.with_name(f"{alone.name}-on-two")
    command_line = torchrun(
        "trainer/main.py", alone.with_suffix(".toml"), "--run.steps", str(STEPS), "--run.out", several
    )
    result = subprocess.run(
        command_line, capture_output=True, text=True, env=quiet_environment(), cwd=Path(__file__).parents[3]
    )
    assert result.returncode == 0, result.stderr
    assert losses(several) == pytest.approx(losses(alone), rel=TRAINED)
    if kind == "hnet":
        found, wanted = (
            [line["bytes_per_patch"] for line in metric_lines(out) if "loss" in line] for out in (several, alone)
        )
        assert found == pytest.approx(wanted, rel=TRAINED)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_chooses_by_likelihood_with_noises_too(kind, runs, tmp_path, capsys):
    task = tmp_path / "next.jsonl"
    task.write_text('{"context": "the man", "choices": ["went home", "%$"], "answer": 0}\n' * 2)
    assert command(["tasks", str(runs[kind] / "model"), str(task), "--noise", "antspeak", "--device", "cpu"]) == 0
    assert "antspeak" in capsys.readouterr().out
    if kind not in SILENT:
        return
    task.write_text('{"prompt": "the man", "answer": "went"}\n')
    assert command(["tasks", str(runs[kind] / "model"), str(task), "--device", "cpu"]) == 2
    assert f"a model of kind {kind!r}: only entropy models" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_with_tables_and_goes_on_from_a_checkpoint(kind, tmp_path, capsys):
    patching, model = KINDS[kind]
    data, out, half = tiny_data(tmp_path / "data", patching), tmp_path / "out", tmp_path / "half"
    assert run(data, out, "--run.steps", 4, model=model | TABLES) == 0
    shutil.copytree(out, half)  # as it was after step 3
    shutil.rmtree(half / "model")
    shutil.rmtree(sorted((half / "checkpoints").glob("step-*"))[-1])
    assert run(data, half, "--run.steps", 4, "--parallel.dry_run", "true", model=model | TABLES) == 0
    assert "going on after step 3 " in capsys.readouterr().err
    assert losses(half) == losses(out)
    assert load_file(out / "model/model.safetensors")["ngrams.weight"].shape == (400, 32)
    found, other = (load_model(folder / "model") for folder in (out, half))
    assert all(map(torch.equal, found.parameters(), other.parameters()))
    initialise(other, 0)
    moved = (found.ngrams.weight != other.ngrams.weight).any(1)
    assert moved.any()
    assert not moved.all()  # rows that no text reads stay as they were
    assert command(["evaluate", str(out / "model"), str(data), "--tokens", "256"]) == 0
    assert run(data, out, "--run.steps", 4, model=model) == 2
    assert "model.ngrams" in capsys.readouterr().err


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_learn_go_on_and_write(name, tmp_path, capsysbinary):
    data, out, model = tiny_data(tmp_path / "data", SPACE), tmp_path / "out", ABLATIONS[name]
    assert run(data, out, "--run.steps", 3, model=model) == 0
    whole, out = losses(out), tmp_path / "in two"
    assert run(data, out, "--run.steps", 3, "--parallel.dry_run", "true", model=model) == 0
    assert losses(out) == whole
    assert whole[-1] < whole[0]
    capsysbinary.readouterr()
    assert command(["generate", str(out / "model"), "--prompt", "the", "--bytes", "9"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"the")


@pytest.mark.parametrize(
    ("kind", "patching", "words"),
    [
        ("flat", STATIC, "model.kind 'flat' trains on unpatched shards"),
        ("hnet", STATIC, "model.kind 'hnet' trains on unpatched shards"),
        ("megabyte", SPACE, "needs shards of rule 'static' with stride 4 (model.patch), these have rule 'space'"),
        ("megabyte", STATIC.model_copy(update={"stride": 5}), "these have rule 'static' of stride 5"),
        ("megabyte", STATIC.model_copy(update={"whole_characters": True}), "of stride 4 and whole_characters"),
        ("spacebyte", NONE, "needs patched shards, these have rule 'none'"),
    ],
)
def test_other_data_is_refused(kind, patching, words, tmp_path, capsys):
    assert run(tiny_data(tmp_path / "data", patching), tmp_path / "out", model=KINDS[kind][1]) == 2
    assert words in capsys.readouterr().err
