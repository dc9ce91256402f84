"""split sends each document where preprocess would have sent it, and loses none."""

import json
from pathlib import Path

import pytest
from helpers.dataset_examples import ENTROPY, STATIC, document, documents, save_dataset
from helpers.pipeline_helpers import preprocess, some_records, stored, write_jsonl
from helpers.rewriting_examples import files, run, sides

from shared.shards.content import add_content_hashes
from shared.shards.manifest import Manifest, summed
from shared.shards.open import open_dataset

FIXED = ("--rule", "static", "--stride", 5, "--executor", "inline", "--workers", 1, "--split-bytes", 4000, "--meta")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [{**record, "n": i} for i, record in enumerate(some_records(60, 9))]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", records)


def content(*manifests: Manifest) -> str:
    return add_content_hashes(manifest.content_hash for manifest in manifests)


NAMES = ("train", "validation")


@pytest.fixture(
    scope="module",
    params=[(format, key) for format in ("arrow", "webdataset") for key in ("content", "id")],
    ids="-".join,
)
def same(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what split gives, out, and what preprocess gives with the same fraction, wanted."""
    format, key = request.param
    folder = tmp_path_factory.mktemp("same")
    option = ("--split-key", "id") if key == "id" else ()
    fixed = (*FIXED, "--format", format)
    assert preprocess(corpus, "--out", folder / "all", *fixed, "--validation-fraction", 0) == 0
    assert preprocess(corpus, "--out", folder / "wanted", *fixed, "--validation-fraction", 0.3, *option) == 0
    line = ("split", folder / "all" / "train", "--validation-fraction", 0.3, "--key", key, "--workers", 1)
    assert run(*line, "--out", folder / "out") == 0
    return folder


def test_files_are_those_of_preprocess_with_that_fraction(same: Path) -> None:
    found, wanted = sides(same / "out"), sides(same / "wanted")
    assert found.keys() == wanted.keys()
    assert {name for name in found if found[name] != wanted[name]} == {
        "train/manifest.json",  # which name another source
        "validation/manifest.json",
    }


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_those_of_preprocess_but_for_the_source(same: Path, name: str) -> None:
    ours, theirs = (open_dataset(same / out / name).manifest for out in ("out", "wanted"))
    assert ours.tables == theirs.tables
    assert ours.identity.source != theirs.identity.source
    assert ours.identity == theirs.identity.model_copy(update={"source": ours.identity.source})


def test_what_was_split_is_verified(same: Path) -> None:
    assert run("verify", same / "out") == 0


@pytest.fixture(scope="module")
def anew(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and three splits of it with other seeds: default, 1, 2."""
    folder = tmp_path_factory.mktemp("anew")
    assert preprocess(corpus, "--out", folder / "run", *FIXED, "--validation-fraction", 0.5) == 0
    for name, seed in (("default", ()), ("1", ("--seed", 1, "--workers", 2)), ("2", ("--seed", 2))):
        assert run("split", folder / "run", "--out", folder / name, "--validation-fraction", 0.2, *seed) == 0
    return folder


SEEDS = ("default", "1", "2")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_is_split_anew_and_nothing_is_lost(anew: Path, seed: str) -> None:
    before, after = ([open_dataset(anew / out / name).manifest for name in NAMES] for out in ("run", seed))
    assert content(*after) == content(*before)
    assert summed(one.totals for one in after) == summed(one.totals for one in before)
    assert stored(anew / seed) == stored(anew / "run")


def held_out(out: Path) -> frozenset[str]:
    return frozenset(row.id for row in open_dataset(out / "validation").rows())


def test_every_seed_holds_out_about_the_fraction_and_other_documents(anew: Path) -> None:
    draws = {held_out(anew / seed) for seed in SEEDS}
    assert len(draws) == 3
    assert all(2 <= len(draw) <= 25 for draw in draws)


def test_a_smaller_fraction_holds_out_some_of_the_same(anew: Path) -> None:
    assert held_out(anew / "default") < held_out(anew / "run")


def test_documents_in_parts_stay_together_with_their_entropies(tmp_path: Path) -> None:
    rows = [row for shard in documents(ENTROPY) for row in shard] + [document("z", "prose", b"z" * 80, ENTROPY)]
    save_dataset(tmp_path / "in", [rows], ENTROPY, "arrow", "float32")
    for fraction in (0, 0.5, 1):
        out = tmp_path / str(fraction)
        assert run("split", tmp_path / "in", "--out", out, "--validation-fraction", fraction) == 0
        found = [row for name in ("train", "validation") for row in open_dataset(out / name).rows(entropies=True)]
        assert sorted((row.id, row.part, row.text) for row in found) == sorted((r.id, r.part, r.text) for r in rows)
        by_part = {(row.id, row.part): row for row in found}
        for row in rows:
            assert by_part[row.id, row.part].entropies.tolist() == row.entropies.tolist()
            assert by_part[row.id, row.part].patch_lengths.tolist() == row.patch_lengths.tolist()
        assert open_dataset(out / "train").shard_count == (fraction < 1)


def test_a_fraction_beyond_one_is_refused(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "in", documents(STATIC), STATIC)
    assert run("split", tmp_path / "in", "--out", tmp_path / "out", "--validation-fraction", 1.5) == 2
    assert "--validation-fraction: " in capsys.readouterr().err


def test_the_folder_of_another_request_is_refused_and_left_as_it_was(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "in", documents(STATIC), STATIC)
    line = ("split", tmp_path / "in", "--out", tmp_path / "out", "--validation-fraction")
    assert run(*line, 0.5) == 0
    before = files(tmp_path / "out")
    capsys.readouterr()
    assert run(*line, 0.4) == 2
    assert "settings.validation_fraction: recorded 0.5, now 0.4" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "made-by.json").read_text())["command"] == "split"
