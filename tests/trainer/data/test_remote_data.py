"""A run reads datasets behind URLs as it reads folders, and what it will need is fetched before."""

import time
from pathlib import Path

import pytest
from helpers.model_folders import entropy_model_folder, entropy_rule, numerics
from helpers.pack_examples import pack_digest, random_dataset
from helpers.tiny_runs import STATIC, losses, tiny_data, tiny_recipe, toml

from shared.model_folder.identity import WEIGHTS_FILE, model_sha256
from shared.shards.cache import FileCache
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from trainer.data.loader import FetchAhead, PackLoader
from trainer.data.packing.limits import PackLimits
from trainer.main import main


def cached(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/*")}


def test_a_run_on_a_url_learns_what_one_on_the_folder_does(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(data, tmp_path / "local", run={"steps": 3}, data={"workers": 1})))
    assert main([str(recipe)]) == 0
    cache = tmp_path / "cache"
    away = ["--data.path", f"local://{data}", "--run.out", str(tmp_path / "away"), "--data.cache", str(cache)]
    assert main([str(recipe), *away]) == 0
    assert losses(tmp_path / "away") == losses(tmp_path / "local")
    assert {"shard-00000.arrow", "shard-00001.arrow"} <= cached(cache)
    assert main([str(recipe), *away]) == 0, "the data is the same wherever it lies"


def test_a_url_without_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(tmp_path, tmp_path / "run")))
    for url, words in ((f"local://{tmp_path}/none", "is not a finished dataset"), ("nosuch://x/y", "nosuch")):
        assert main([str(recipe), "--data.path", url]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("patchwork: error: ")
        assert url in line
        assert words in line


def test_packs_of_a_url_are_those_of_the_folder_also_from_a_cache_too_small_for_it(tmp_path: Path) -> None:
    data = random_dataset(tmp_path / "data", 3)
    away = open_dataset(f"local://{data.folder}", FileCache(tmp_path / "cache", 1))
    limits = PackLimits(64, 32)
    packs, others = (iter(PackLoader(dataset, limits, 4, workers=1)) for dataset in (data, away))
    for _ in range(60):
        assert pack_digest(next(packs)) == pack_digest(next(others))


def test_what_is_wanted_is_fetched_in_the_background(tmp_path: Path) -> None:
    data = random_dataset(tmp_path / "data", 3)
    away = open_dataset(f"local://{data.folder}", FileCache(tmp_path / "cache"))
    names = [shard.name for shard in data.shards()]
    with FetchAhead(away) as ahead:
        assert ahead.useful
        ahead.want([2, 0])
        deadline = time.monotonic() + 600
        while cached(tmp_path / "cache") - {"shards.arrow"} != {names[2], names[0]} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cached(tmp_path / "cache") - {"shards.arrow"} == {names[2], names[0]}
        ahead.want([1, 0])
        while names[1] not in cached(tmp_path / "cache") - {"shards.arrow"} and time.monotonic() < deadline:
            time.sleep(0.01)
    assert cached(tmp_path / "cache") - {"shards.arrow"} == {names[0], names[1], names[2]}
    assert not FetchAhead(data).useful


def test_the_entropy_model_is_not_written_under_a_rank_that_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    sha256 = model_sha256(entropy_model_folder(folder / "entropy_model"))
    identity = DatasetIdentity(
        split="train",
        format="arrow",
        sidecar="none",
        patching=entropy_rule(),
        entropy_model=EntropyModelIdentity(sha256=sha256, numerics=numerics()),
        source="a test",
    )
    commit_dataset(folder, identity, [])
    ours, theirs = (open_dataset(f"local://{folder}", FileCache(tmp_path / "cache")) for _ in range(2))
    with (ours.entropy_model / WEIGHTS_FILE).open("rb") as file:
        assert (theirs.entropy_model / WEIGHTS_FILE).stat().st_ino == Path(file.name).stat().st_ino
        Path(file.name).write_bytes(b"damaged")
        assert model_sha256(theirs.entropy_model) == sha256
        assert file.read() == b"damaged"  # what was open is another file
