"""What a run within a budget uses: the entropy model's share is planned as it is logged."""

import random
from pathlib import Path

import pytest
from helpers.model_folders import entropy_model_folder, entropy_model_scorer, entropy_rule, numerics
from helpers.tiny_runs import WORDS, run, tiny_settings

from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, model_sha256
from shared.patching import patch_lengths
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.experiments.budget import steps_within
from trainer.experiments.results.records import spent
from trainer.metrics.history import load_history


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose patches an entropy model has found."""
    folder, rule, draws = tmp_path_factory.mktemp("budget") / "data", entropy_rule(), random.Random(3)
    for split, count in (("train", 60), ("validation", 10)):
        texts = [" ".join(draws.choices(WORDS, k=draws.randint(1, 60))).encode() for _ in range(count)]
        tokens = [document_tokens(text) for text in texts]
        entropies = entropy_model_scorer().score(tokens)
        rows = [
            Row(f"{split}-{number}", "a", text, 0, patch_lengths(document, rule, found))
            for number, (text, document, found) in enumerate(zip(texts, tokens, entropies))
        ]
        entry = write_shard(folder / split, "shard-00000", rows, "arrow", "none")
        model = entropy_model_folder(folder / split / ENTROPY_MODEL_FOLDER)
        identity = DatasetIdentity(
            split=split,
            format="arrow",
            sidecar="none",
            patching=rule,
            entropy_model=EntropyModelIdentity(sha256=model_sha256(model), numerics=numerics()),
            source="a test",
        )
        commit_dataset(folder / split, identity, [entry])
    return folder


def test_finding_the_patches_is_part_of_a_budget_and_planned_as_it_is_logged(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", data={"packs": 1, "streams": 4}, run={"steps": 500})
    alone = steps_within(settings, 3.6e9, "model_flops")
    whole = steps_within(settings, 3.6e9, "flops")
    assert alone.model_flops == pytest.approx(3.6e9, rel=0.01)
    assert whole.model_flops + whole.entropy_flops == whole.flops == pytest.approx(3.6e9, rel=0.01)
    assert 0.1 * whole.flops < whole.entropy_flops < 0.9 * whole.flops
    assert whole.steps < alone.steps
    packs = ("--data.packs", 1, "--data.streams", 4)
    assert run(data, tmp_path / "run", "--run.steps", whole.steps, *packs) == 0
    used = spent(load_history(tmp_path / "run"))[-1]
    assert (used.step, used.bytes) == (whole.steps, whole.bytes)
    assert used.useful_flops == pytest.approx(whole.model_flops, rel=1e-9)
    assert used.entropy_flops == pytest.approx(whole.entropy_flops, rel=1e-9)
