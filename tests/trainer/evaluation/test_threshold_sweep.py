"""The sweep: at the trained threshold what evaluate finds, elsewhere what data cut with that threshold would give."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from helpers.model_folders import entropy_model_folder, entropy_model_scorer, entropy_rule, model_folder, numerics
from helpers.rounding import NATS

from shared.errors import ConfigError
from shared.io.files.outputs import Output
from shared.model_folder.identity import load_settings, model_sha256
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.__main__ import main
from trainer.commands.sweep import table
from trainer.data.packing.limits import PackLimits
from trainer.data.validation import ValidationPacks
from trainer.evaluation.compatibility import packs_for, score_folder
from trainer.evaluation.cost import forward_flops_by_subset
from trainer.evaluation.threshold_sweep import ThresholdSweeper
from trainer.evaluation.threshold_sweep_record import SWEEP, ThresholdSweep, load_sweep
from trainer.metrics.subset_score import total_of

CPU = torch.device("cpu")
RULE = entropy_rule(0.5)


def texts() -> list[bytes]:
    rng = np.random.default_rng(4)
    alphabet = np.frombuffer(b"abcdefghijklm      \n\xc3", np.uint8)
    return [b"", *(rng.choice(alphabet, int(size)).tobytes() for size in rng.integers(1, 260, 20))]


@cache
def scored() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The texts as tokens, and their entropies."""
    documents = [document_tokens(text) for text in texts()]
    return documents, list(entropy_model_scorer().score(documents))


def stored(folder: Path, patching: PatchingSettings, entropy_model: Path, sidecar: str = "none") -> Dataset:
    """A dataset in two subsets as the pipeline would write it; the last document is stored in two rows."""
    documents, found = scored()
    rows = []
    for number, (text, entropies) in enumerate(zip(texts(), found)):
        subset = "ab"[number % 2]
        own = patching.for_subset(subset)
        lengths = patch_lengths(documents[number], own, entropies) if patching.patched else None
        rows.append(Row(str(number), subset, text, 0, lengths, entropies if sidecar != "none" else None))
    whole = rows.pop()
    half = len(whole.text) if whole.patch_lengths is None else int(whole.patch_lengths[:5].sum()) - 1
    for part, (low, high) in enumerate(((0, half), (half, len(whole.text)))):
        inputs = slice(low + part, high + 1)
        rows.append(
            replace(
                whole,
                part=part,
                text=whole.text[low:high],
                patch_lengths=None if whole.patch_lengths is None else np.split(whole.patch_lengths, [5])[part],
                entropies=None if whole.entropies is None else whole.entropies[inputs],
            )
        )
    entry = write_shard(folder, "shard-00000", rows, "arrow", sidecar)
    identity = DatasetIdentity(
        split="validation",
        format="arrow",
        sidecar=sidecar,
        patching=patching,
        entropy_model=EntropyModelIdentity(sha256=model_sha256(entropy_model), numerics=numerics()),
        source="a test",
    )
    commit_dataset(folder, identity, [entry])
    return open_dataset(folder)


@pytest.fixture(scope="module")
def entropy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return entropy_model_folder(tmp_path_factory.mktemp("entropy_model") / "model")


@pytest.fixture(
    scope="module", params=[RULE, entropy_rule(0.5, "monotonic")], ids=lambda rule: cast(PatchingSettings, rule).rule
)
def swept(
    request: pytest.FixtureRequest, entropy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PatchingSettings, ThresholdSweep]:
    """A rule, and its threshold and a higher one."""
    at = tmp_path_factory.mktemp("swept")
    folder = model_folder(at / "model", request.param, entropy_model)
    data = stored(at / "data", request.param, entropy_model)
    return request.param, ThresholdSweeper(folder, data, tokens=1024).sweep([0.01])


def test_a_sweep_is_over_all_documents_and_names_the_threshold_of_training(
    swept: tuple[PatchingSettings, ThresholdSweep],
) -> None:
    assert [point.trained for point in swept[1].points] == [True, False]
    assert swept[1].documents == len(texts())


@pytest.mark.numerics
def test_each_point_is_what_data_cut_with_that_threshold_gives(
    swept: tuple[PatchingSettings, ThresholdSweep], entropy_model: Path, tmp_path: Path
) -> None:
    rule, sweep = swept
    for point in sweep.points:
        cut = rule.model_copy(update={"theta": point.theta})
        recut = stored(tmp_path / f"cut-{point.trained}", cut, entropy_model)
        other = model_folder(tmp_path / f"model-{point.trained}", cut, entropy_model)
        score = total_of(score_folder(other, recut, 1024, CPU, "float32").by_subset())
        assert point.bytes_per_patch == recut.manifest.totals.mean_patch_size
        assert point.bits_per_byte == pytest.approx(score.bits_per_byte, rel=NATS)
        flops = forward_flops_by_subset(load_settings(other), packs_for(other, recut, 1024))
        assert point.flops_per_byte == sum(flops.values()) / recut.manifest.totals.bytes


def test_a_higher_threshold_gives_longer_patches_and_less_work(swept: tuple[PatchingSettings, ThresholdSweep]) -> None:
    trained, higher = swept[1].points
    assert trained.bytes_per_patch < higher.bytes_per_patch
    assert trained.flops_per_byte > higher.flops_per_byte


def test_stored_entropies_and_scored_ones_give_the_same_dial(entropy_model: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", RULE, entropy_model)
    found = [
        ThresholdSweeper(folder, stored(tmp_path / name, rule, entropy_model, sidecar), tokens=1024)
        .sweep([-0.01, 0.02])
        .points
        for name, rule, sidecar in (
            ("kept", RULE, "float32"),
            ("scored", RULE, "none"),
            ("unpatched", PatchingSettings(rule="none"), "none"),
        )
    ]
    assert found[0] == found[1] == found[2]


def test_thresholds_of_subsets_are_shifted_together(entropy_model: Path, tmp_path: Path) -> None:
    rule = RULE.model_copy(update={"thetas": {"b": entropy_rule(0.8).theta}})
    folder = model_folder(tmp_path / "model", rule, entropy_model)
    trained, shifted = (
        ThresholdSweeper(folder, stored(tmp_path / "data", rule, entropy_model), tokens=1024).sweep([0.02]).points
    )
    for point, shift in ((trained, 0.0), (shifted, 0.02)):
        cut = rule.model_copy(update={"theta": rule.theta + shift, "thetas": {"b": rule.thetas["b"] + shift}})
        assert (
            point.bytes_per_patch == stored(tmp_path / str(shift), cut, entropy_model).manifest.totals.mean_patch_size
        )


@pytest.mark.parametrize("rule", [RULE, entropy_rule(0.5, "monotonic")], ids=lambda rule: rule.rule)
def test_without_thresholds_half_to_twice_as_many_patches_start(
    rule: PatchingSettings, entropy_model: Path, tmp_path: Path
) -> None:
    rule = rule.model_copy(update={"max_length": 200})
    folder = model_folder(tmp_path / "model", rule, entropy_model)
    sweeper = ThresholdSweeper(folder, stored(tmp_path / "data", rule, entropy_model), tokens=1024)
    sweep = sweeper.sweep(sweeper.shifts())
    patches = {point.shift: sweep.bytes / point.bytes_per_patch - 2 * sweep.documents for point in sweep.points}
    assert len(patches) >= 5
    assert 0.4 < patches[max(patches)] / patches[0.0] < 0.6
    assert patches[min(patches)] / patches[0.0] > 1.4


def test_useful_flops_are_those_of_each_document_alone(entropy_model: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", RULE, entropy_model)
    data = stored(tmp_path / "data", RULE, entropy_model)
    settings = load_settings(folder)
    roomy = forward_flops_by_subset(settings, ValidationPacks(data, PackLimits(8192, 4096)))
    tight = forward_flops_by_subset(settings, ValidationPacks(data, PackLimits(300, 300)))
    assert roomy == tight
    assert set(roomy) == {"a", "b"}
    cut = forward_flops_by_subset(settings, ValidationPacks(data, PackLimits(100, 100)))
    assert sum(cut.values()) != sum(roomy.values())


def test_the_command_marks_the_trained_threshold_and_writes_the_file(
    entropy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "run" / "model", RULE, entropy_model)
    data = stored(tmp_path / "data" / "validation", RULE, entropy_model)
    command = ["sweep", str(folder), str(tmp_path / "data"), "--tokens", "1024", "--threads", "1"]
    assert main([*command, "--theta", str(RULE.theta - 0.01), str(RULE.theta + 0.01)]) == 0
    shown = capsys.readouterr().out.splitlines()
    sweep = load_sweep(tmp_path / "run" / "sweep.json")
    Output(tmp_path / "run" / "sweep.json", SWEEP)  # may be replaced: it is known as ours
    assert shown[:-1] == table(sweep).splitlines()
    assert [line.endswith("<- trained") for line in shown[1:-1]] == [False, True, False]
    assert sweep.trained.theta == RULE.theta
    assert sweep.fingerprint == data.fingerprint
    assert sweep.entropy_flops_per_byte > 0


def test_rules_without_a_threshold_are_refused(entropy_model: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="space"), None)
    with pytest.raises(ConfigError, match="rule 'space', which has no threshold"):
        ThresholdSweeper(folder, stored(tmp_path / "data", RULE, entropy_model))


def test_one_threshold_for_subsets_that_have_their_own_is_refused(
    entropy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = RULE.model_copy(update={"thetas": {"b": 1.0}})
    folder = model_folder(tmp_path / "model", rule, entropy_model)
    stored(tmp_path / "data", RULE, entropy_model)
    assert main(["sweep", str(folder), str(tmp_path / "data"), "--theta", "1.0"]) == 2
    assert "--shifts" in capsys.readouterr().err
