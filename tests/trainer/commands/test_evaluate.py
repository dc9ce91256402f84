"""Bits per byte: sums over targets with EOS, over text bytes, by subset; and the evaluate command."""

import io
import json
import math
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pack_examples import NONE, SPACE, document, make_dataset, random_documents, whole_documents
from helpers.rounding import NATS
from helpers.shard_examples import by_subset

from shared.errors import ConfigError, IdentityError
from shared.io.files.outputs import Output
from shared.layers.batch import segments
from shared.model_folder.files import build_model, save_model
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.vocabulary import document_tokens
from trainer.commands.evaluate import DOCUMENTS, FIGURES
from trainer.data.packing.limits import PackLimits
from trainer.data.validation import ValidationPacks
from trainer.errors import LogitsError
from trainer.evaluation.documents import evaluate
from trainer.evaluation.report import measure
from trainer.evaluation.scores import Column, evaluate_sums, scores, table
from trainer.metrics.subset_score import SubsetScore, total_of
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, RunNumerics, save_identity

CPU = torch.device("cpu")
ENTROPY = EntropyModelSettings(width=32, heads=2, layers=1, feed_forward=64, window=64)
STACK = {"width": 32, "heads": 2, "layers": 1, "feed_forward": 64}
SIZES = {"encoder": STACK, "global": STACK, "decoder": STACK, "window": 64, "ngrams": {"sizes": (3,), "rows": 101}}
BLT = BltSettings.model_validate({**SIZES, "queries": 1})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = random_documents(2, 40)
    return make_dataset(tmp_path_factory.mktemp("validation"), [rows[:25], rows[25:]], split="validation")


@pytest.fixture(scope="module")
def entropy_model() -> EntropyModel:
    model = EntropyModel(ENTROPY)
    initialise(model, 0)
    return model


def test_scores_that_are_not_finite_are_an_error_and_not_a_row(dataset: Dataset, tmp_path: Path) -> None:
    model = EntropyModel(ENTROPY)
    initialise(model, 0)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    save_model(model, ENTROPY, tmp_path / "model")
    with pytest.raises(LogitsError, match="40 of 40 documents"):
        measure(tmp_path / "model", dataset, 256, CPU, "float32")


@pytest.mark.numerics
def test_scores_are_sums_over_the_documents_of_each_subset(dataset: Dataset, entropy_model: EntropyModel) -> None:
    found = evaluate(entropy_model, ValidationPacks(dataset, PackLimits(256, None)), CPU).by_subset()
    wanted: dict[str, SubsetScore] = {}
    for row in whole_documents(dataset):
        tokens = torch.from_numpy(document_tokens(row.text).astype(np.int64))
        logits = entropy_model(tokens[:-1], segments([len(tokens) - 1]))
        nats = F.cross_entropy(logits.double(), tokens[1:], reduction="sum").item()
        score = SubsetScore(nats, len(row.text) + 1, len(row.text), len(row.text), 0, 1)
        wanted[row.subset] = wanted.get(row.subset, SubsetScore()) + score
    assert found.keys() == wanted.keys()
    for name, score in found.items():
        assert score.nats == pytest.approx(wanted[name].nats, rel=NATS)
        assert (score.targets, score.bytes, score.documents) == (
            wanted[name].targets,
            wanted[name].bytes,
            wanted[name].documents,
        )
        totals = dataset.manifest.subsets[name]
        assert (score.bytes, score.documents) == (totals.bytes, totals.documents)
    total = total_of(found)
    assert total.bits_per_byte == pytest.approx(sum(s.nats for s in wanted.values()) / math.log(2) / total.bytes)


def test_a_uniform_model_scores_log2_260_for_every_target(dataset: Dataset) -> None:
    class Uniform(torch.nn.Module):
        def forward(self, ids, documents):
            return torch.zeros(len(ids), 260)

    score = total_of(evaluate(Uniform(), ValidationPacks(dataset, PackLimits(64, None)), CPU).by_subset())
    assert score.bits_per_byte == pytest.approx(math.log2(260) * (score.bytes + score.documents) / score.bytes)


def test_ranks_add_up_to_one_process(dataset: Dataset, entropy_model: EntropyModel) -> None:
    limits = PackLimits(96, None)
    shares = [evaluate_sums(entropy_model, ValidationPacks(dataset, limits, r, 3), 3, CPU) for r in range(3)]
    together, whole = (
        scores(sum(shares), dataset.subset_names),
        evaluate(entropy_model, ValidationPacks(dataset, limits), CPU).by_subset(),
    )
    for name in whole:
        assert together[name].nats == pytest.approx(whole[name].nats, rel=1e-9)
        assert together[name].bytes == whole[name].bytes


def test_evaluating_leaves_the_model_in_its_mode(dataset: Dataset, entropy_model: EntropyModel) -> None:
    for mode in (True, False):
        entropy_model.train(mode)
        evaluate(entropy_model, ValidationPacks(dataset, PackLimits(256, None)), CPU)
        assert entropy_model.training is mode


def test_the_mean_patch_size_is_that_of_the_manifest(dataset: Dataset) -> None:
    blt = build_model(BLT)
    initialise(blt, 0)
    found = evaluate(blt, ValidationPacks(dataset, PackLimits(40, 24)), CPU).by_subset()
    for name, totals in dataset.manifest.subsets.items():
        assert found[name].bytes_per_patch == pytest.approx(totals.mean_patch_size)


def test_the_table_lines_up_and_shows_dashes_for_what_is_unknown() -> None:
    figures = {"a": SubsetScore(math.log(2) * 10, 12, 10, 10, 4, 2), "long name": SubsetScore(0.0, 1, 0, 0, 0, 1)}
    shown = table(figures, [Column("xz -9", 1.5), Column("order-2", 2.25, {"a": 2.5})]).splitlines()
    assert shown[0].split() == ["subset", "documents", "bytes", "bytes/patch", "bits/byte", "xz", "-9", "order-2"]
    assert shown[1].split() == ["a", "2", "10", "2.50", "1.0000", "-", "2.5000"]
    assert shown[2].split() == ["long", "name", "1", "0", "-", "-", "-", "-"]
    assert shown[3].split() == ["total", "3", "10", "2.50", "1.0000", "1.5000", "2.2500"]
    assert len({len(line) for line in shown}) == 1


def save_blt(folder: Path, patching: PatchingSettings) -> Path:
    """A model folder as a finished run leaves it, with an entropy model as its entropy model."""
    entropy_model = folder / "entropy"
    for path, config, carried in ((entropy_model, ENTROPY, None), (folder / "model", BLT, entropy_model)):
        model = build_model(config)
        initialise(model, 1)
        save_model(model, config, path, carried)
    numerics = RunNumerics(dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=1)
    identity = ModelIdentity(config={}, data={}, patching=patching, entropy_model=None, numerics=numerics)
    save_identity(identity, folder / "model" / IDENTITY_NAME)
    return folder / "model"


def evaluate_command(arguments: list[str]) -> int:
    """The command as `python -m trainer evaluate` runs it."""
    import argparse

    from trainer.commands.evaluate import add_arguments, run

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


class Scored(NamedTuple):
    """What the command printed and wrote of a model and of its entropy model alone."""

    validation: Dataset
    shown: list[str]
    figures: dict[str, Any]
    alone: dict[str, Any]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    folder = tmp_path_factory.mktemp("scored")
    rows = random_documents(4, 60)
    data = folder / "data"
    make_dataset(data / "train", [rows[:40]])
    validation = make_dataset(data / "validation", [rows[40:]], split="validation")
    model = save_blt(folder / "run", SPACE)
    out = folder / "scores.json"
    with redirect_stdout(io.StringIO()) as shown:
        assert evaluate_command([str(model), str(data), "--baselines", "--tokens", "128", "--json", str(out)]) == 0
        figures = json.loads(out.read_text())["datasets"][0]
    with redirect_stdout(io.StringIO()):
        assert evaluate_command([str(model / "entropy_model"), str(data), "--json", str(out)]) == 0
    alone = json.loads(out.read_text())["datasets"][0]
    return Scored(validation, shown.getvalue().splitlines(), figures, alone)


def test_scores_name_the_dataset_and_its_size(scored: Scored) -> None:
    assert scored.figures["fingerprint"] == scored.validation.fingerprint
    assert scored.figures["total"]["bytes"] == scored.validation.manifest.totals.bytes


def test_baselines_are_given_in_total_and_but_for_xz_by_subset(scored: Scored) -> None:
    assert scored.figures["total"]["baselines"].keys() == {"entropy model", "order-2", "xz -9"}
    assert scored.figures["subsets"]["a"]["baselines"].keys() == {"entropy model", "order-2"}


def test_a_rule_without_an_entropy_model_costs_none_of_its_flops(scored: Scored) -> None:
    assert scored.figures["total"]["entropy_flops_per_byte"] == 0


def test_the_table_has_the_figures_that_are_written(scored: Scored) -> None:
    assert [line.split()[0] for line in scored.shown] == ["subset", *scored.validation.subset_names, "total"]
    total = scored.figures["total"]
    assert scored.shown[-1].split()[4:6] == [f"{total['bits_per_byte']:.4f}", f"{total['flops_per_byte'] / 1e6:.3f}"]


def test_the_entropy_model_alone_reads_the_same_bytes_without_patches(scored: Scored) -> None:
    alone, beside = scored.alone["total"], scored.figures["total"]["baselines"]["entropy model"]
    assert alone["bytes_per_patch"] is None
    assert alone["bits_per_byte"] == pytest.approx(beside, rel=1e-3)


def test_several_datasets_have_a_table_each_and_their_documents_in_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = random_documents(4, 30)
    rows = [*by_subset(rows[:10]), *by_subset(rows[10:])]
    parts = [make_dataset(tmp_path / name, [own]) for name, own in (("one", rows[:10]), ("two", rows[10:]))]
    model = save_blt(tmp_path / "run", SPACE)
    out, lines = tmp_path / "scores.json", tmp_path / "documents.jsonl"
    folders = [str(part.folder) for part in parts]
    assert evaluate_command([str(model), *folders, "--json", str(out), "--documents", str(lines)]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.endswith(":")] == [f"{folder}:" for folder in folders]
    Output(out, FIGURES), Output(lines, DOCUMENTS)  # may be replaced: they are known as ours
    reports = json.loads(out.read_text())["datasets"]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["id"] for record in records] == [row.id for row in rows]
    assert [(record["subset"], record["bytes"]) for record in records] == [(row.subset, len(row.text)) for row in rows]
    assert [record["patches"] for record in records] == [len(row.patch_lengths) - 1 for row in rows]
    for report, folder in zip(reports, folders):
        own = [record for record in records if record["dataset"] == folder]
        bits = sum(record["bits"] for record in own)
        assert bits / report["total"]["bytes"] == pytest.approx(report["total"]["bits_per_byte"])


class Beside(NamedTuple):
    """A model with another of bytes beside it, scored on the same documents."""

    command: list[str]
    other: Path
    unpatched: list[Row]
    shown: list[str]
    figures: dict[str, Any]
    alone: dict[str, Any]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Beside:
    folder = tmp_path_factory.mktemp("beside")
    rows = random_documents(4, 30)
    unpatched = [replace(row, patch_lengths=None) for row in rows]
    ours = make_dataset(folder / "ours", [rows])
    theirs = make_dataset(folder / "theirs", [unpatched[20:], unpatched[:20]], patching=NONE)
    model = save_blt(folder / "run", SPACE)
    other = folder / "bytes"
    (model / "entropy_model").rename(other)
    out = folder / "scores.json"
    command = [str(model), str(ours.folder), "--json", str(out)]
    with redirect_stdout(io.StringIO()) as shown:
        assert evaluate_command([*command, "--beside", str(other), str(theirs.folder)]) == 0
    figures = json.loads(out.read_text())["datasets"][0]["beside"][0]
    with redirect_stdout(io.StringIO()):
        assert evaluate_command([str(other), str(theirs.folder), "--json", str(out)]) == 0
    alone = json.loads(out.read_text())["datasets"][0]
    return Beside(command, other, unpatched, shown.getvalue().splitlines(), figures, alone)


def test_another_model_has_columns_of_its_name(beside: Beside) -> None:
    assert beside.figures["model"].endswith("/bytes")
    assert "bytes bytes/patch" in beside.shown[0]
    assert "bytes bits/byte" in beside.shown[0]


def test_another_model_scores_beside_as_it_does_alone(beside: Beside) -> None:
    found, wanted = (figures["subsets"]["b"]["bits_per_byte"] for figures in (beside.figures, beside.alone))
    assert found == wanted
    assert beside.shown[-1].split()[-2] == f"{beside.alone['total']['bits_per_byte']:.4f}"


def test_another_model_is_scored_on_the_same_documents(beside: Beside, tmp_path: Path) -> None:
    fewer = make_dataset(tmp_path / "fewer", [beside.unpatched[:20]], patching=NONE)
    with pytest.raises(IdentityError, match="other documents"):
        evaluate_command([*beside.command, "--beside", str(beside.other), str(fewer.folder)])


def test_data_patched_otherwise_than_in_training_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    model = save_blt(tmp_path, PatchingSettings(rule="space", max_length=9))
    with pytest.raises(IdentityError, match=r"max_length 8, not 9.*--max-length 9"):
        evaluate_command([str(model), str(dataset.folder)])


def test_data_that_cuts_characters_is_refused_for_a_model_that_keeps_them_whole(tmp_path, dataset: Dataset) -> None:
    model = save_blt(tmp_path, dataset.manifest.identity.patching.model_copy(update={"whole_characters": True}))
    with pytest.raises(IdentityError, match=r"whole_characters False, not True.*--whole-characters"):
        evaluate_command([str(model), str(dataset.folder)])


def test_unpatched_data_is_refused_for_a_model_of_patches(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", [[document("x", "a", b"text", NONE)]], patching=NONE)
    with pytest.raises(IdentityError, match=r"rule none, not space.*--recut.*pipeline recut"):
        evaluate_command([str(save_blt(tmp_path, SPACE)), str(data.folder)])


def test_baselines_without_a_training_split_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"--baselines needs the training split.*--train"):
        evaluate_command([str(tmp_path), str(dataset.folder), "--baselines"])
