"""split sends each document where preprocess would have sent it, and loses none."""

import json
from pathlib import Path

import pytest
from helpers.dataset_examples import ENTROPY, STATIC, document, documents, save_dataset
from helpers.pipeline_helpers import preprocess, some_records, stored, write_jsonl
from helpers.rewriting_examples import files, run, sides

from shared.shards.content import add_content_hashes
from shared.shards.manifest import Manifest
from shared.shards.open import open_dataset

FIXED = ("--rule", "static", "--stride", 5, "--executor", "inline", "--workers", 1, "--split-bytes", 4000, "--meta")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [{**record, "n": i} for i, record in enumerate(some_records(60, 9))])


def content(*manifests: Manifest) -> str:
    return add_content_hashes(entry.content_hash for manifest in manifests for entry in manifest.shards)


@pytest.mark.parametrize(("key", "option"), [("content", ()), ("id", ("--split-key", "id"))])
@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_shards_are_those_of_preprocess_with_that_fraction(corpus, tmp_path, format, key: str, option) -> None:
    fixed = (*FIXED, "--format", format)
    assert preprocess(corpus, "--out", tmp_path / "all", *fixed, "--validation-fraction", 0) == 0
    assert preprocess(corpus, "--out", tmp_path / "wanted", *fixed, "--validation-fraction", 0.3, *option) == 0
    line = ("split", tmp_path / "all" / "train", "--validation-fraction", 0.3, "--key", key, "--workers", 1)
    assert run(*line, "--out", tmp_path / "out") == 0
    found, wanted = sides(tmp_path / "out"), sides(tmp_path / "wanted")
    assert found.keys() == wanted.keys()
    assert {name for name in found if found[name] != wanted[name]} == {
        "train/manifest.json",  # which name another source
        "validation/manifest.json",
    }
    for name in ("train", "validation"):
        ours, theirs = (open_dataset(tmp_path / out / name).manifest for out in ("out", "wanted"))
        assert ours.shards == theirs.shards
        assert ours.identity.source != theirs.identity.source
        assert ours.identity == theirs.identity.model_copy(update={"source": ours.identity.source})
    assert run("verify", tmp_path / "out") == 0


def test_a_run_is_split_anew_and_nothing_is_lost(corpus, tmp_path: Path) -> None:
    assert preprocess(corpus, "--out", tmp_path / "run", *FIXED, "--validation-fraction", 0.5) == 0
    before = [open_dataset(tmp_path / "run" / name).manifest for name in ("train", "validation")]
    draws = []
    for seed in ((), ("--seed", 1), ("--seed", 2)):
        out = tmp_path / f"out{len(draws)}"
        assert run("split", tmp_path / "run", "--out", out, "--validation-fraction", 0.2, *seed) == 0
        after = [open_dataset(out / name).manifest for name in ("train", "validation")]
        assert content(*after) == content(*before)
        assert after[0].totals + after[1].totals == before[0].totals + before[1].totals
        assert stored(out) == stored(tmp_path / "run")
        draws.append({row.id for row in open_dataset(out / "validation").rows()})
        assert 2 <= len(draws[-1]) <= 25
    assert draws[0] < {row.id for row in open_dataset(tmp_path / "run" / "validation").rows()}
    assert len({frozenset(draw) for draw in draws}) == 3


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
        assert len(open_dataset(out / "train").manifest.shards) == (fraction < 1)


def test_another_request_or_a_bad_fraction_is_refused(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "in", documents(STATIC), STATIC)
    line = ("split", tmp_path / "in", "--out", tmp_path / "out", "--validation-fraction")
    assert run(*line, 1.5) == 2
    assert "validation_fraction" in capsys.readouterr().err
    assert run(*line, 0.5) == 0
    before = files(tmp_path / "out")
    capsys.readouterr()
    assert run(*line, 0.4) == 2
    assert "settings.validation_fraction: recorded 0.5, now 0.4" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "made-by.json").read_text())["command"] == "split"
