"""Scores by document: those of the document alone, whole again where packs cut it, and the subsets' scores are sums."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pack_examples import in_parts, make_dataset, random_documents, whole_documents
from helpers.rounding import NATS
from helpers.tiny_runs import STACK

from shared.layers.batch import Patches, segments
from shared.model_folder.files import build_model
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.initialise import initialise
from shared.patching.lengths import patch_lengths
from shared.shards.dataset import Dataset
from shared.vocabulary import document_tokens
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import patch_map
from trainer.data.validation import ValidationPacks
from trainer.evaluation.documents import document_ids, evaluate
from trainer.evaluation.scores import evaluate_sums

CPU = torch.device("cpu")
SIZES = {"encoder": STACK, "global": STACK, "decoder": STACK, "window": 64, "ngrams": {"sizes": (3,), "rows": 101}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three subsets, two shards, a third of the documents in several rows."""
    rows = random_documents(7, 45)
    stored = [part for number, row in enumerate(rows) for part in (in_parts(row) if number % 3 == 0 else [row])]
    half = next(number for number, row in enumerate(stored) if number > 30 and row.part == 0)
    return make_dataset(tmp_path_factory.mktemp("validation"), [stored[:half], stored[half:]], split="validation")


class Uniform(torch.nn.Module):
    """log 260 nats for every target."""

    def forward(self, ids, documents, patches=None):
        return torch.zeros(len(ids), 260)


@pytest.mark.numerics
def test_a_document_scores_what_it_scores_alone(dataset: Dataset) -> None:
    model = build_model(EntropyModelSettings(window=64, **STACK))
    initialise(model, 0)
    found = evaluate(model, ValidationPacks(dataset, PackLimits(512, None)), CPU)
    rows = whole_documents(dataset)
    assert len(found) == len(rows)
    for number, row in enumerate(rows):
        tokens = torch.from_numpy(document_tokens(row.text).astype(np.int64))
        logits = model(tokens[:-1], segments([len(tokens) - 1]))
        alone = F.cross_entropy(logits.double(), tokens[1:], reduction="sum").item()
        assert found.nats[number] == pytest.approx(alone, rel=NATS)
        assert found.bytes[number] == len(row.text)


@pytest.mark.numerics
def test_a_document_of_patches_scores_what_it_scores_alone(dataset: Dataset) -> None:
    model = build_model(BltSettings.model_validate(SIZES))
    initialise(model, 0)
    found = evaluate(model, ValidationPacks(dataset, PackLimits(512, 256)), CPU)
    rows = whole_documents(dataset)
    for number in range(0, len(rows), 7):
        tokens = document_tokens(rows[number].text)
        lengths = patch_lengths(tokens, dataset.manifest.identity.patching).astype(np.int64)
        alone = int(lengths[-1] == 1)
        lengths[-1] -= 1
        lengths = lengths[lengths > 0]
        inputs = np.array([len(tokens) - 1])
        patches = patch_map(lengths, inputs, np.array([bool(alone)]), int(inputs[0]))
        ids = torch.from_numpy(tokens.astype(np.int64))
        logits = model(
            ids[:-1],
            segments([len(ids) - 1]),
            Patches(
                torch.from_numpy(patches.of_token.astype(np.int64)),
                torch.from_numpy(patches.of_decoder.astype(np.int64)),
                segments([len(lengths)]),
            ),
        )
        wanted = F.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
        assert found.nats[number] == pytest.approx(wanted, rel=NATS)
        assert found.patches[number] == len(lengths) - 1 + alone


@pytest.mark.numerics
@pytest.mark.parametrize("limits", [PackLimits(24, None), PackLimits(24, 12)])
def test_a_document_that_packs_cut_is_counted_whole(dataset: Dataset, limits: PackLimits) -> None:
    rows = whole_documents(dataset)
    assert max(len(row.text) for row in rows) > 2 * limits.tokens
    found = evaluate(Uniform(), ValidationPacks(dataset, limits), CPU)
    assert found.bytes.tolist() == [len(row.text) for row in rows]
    assert found.sums[:, 5].tolist() == [1] * len(rows)
    np.testing.assert_allclose(found.bits, [math.log2(260) * (len(row.text) + 1) for row in rows], rtol=NATS)


def test_scores_by_subset_are_sums_of_documents(dataset: Dataset) -> None:
    packs = ValidationPacks(dataset, PackLimits(64, 32))
    by_subset = evaluate(Uniform(), packs, CPU).by_subset()
    direct = evaluate_sums(Uniform(), packs, 3, CPU)
    for code, name in enumerate(dataset.subset_names):
        score = by_subset[name]
        assert score.nats == pytest.approx(direct[code, 0])
        assert [score.targets, score.bytes, score.text, score.patches, score.documents] == direct[code, 1:].tolist()
        assert score.bytes == dataset.manifest.subsets[name].bytes


def test_ids_come_in_the_order_of_the_documents(dataset: Dataset) -> None:
    assert list(document_ids(dataset)) == [row.id for row in whole_documents(dataset)]


def test_documents_of_a_damaged_folder_are_an_error(tmp_path: Path) -> None:
    rows = random_documents(1, 3)
    data = make_dataset(tmp_path / "data", [rows])
    (tmp_path / "data" / data.shard(0).name).unlink()
    with pytest.raises(ValueError, match="is missing"):
        list(document_ids(data))
