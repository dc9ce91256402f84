"""Several datasets are one with more subsets; a subset may end after so many passes (law 4)."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.pack_examples import SPACE, make_dataset, random_dataset, random_documents
from helpers.tiny_runs import STATIC, metric_lines, run_identity_of, tiny_data, tiny_recipe, tiny_settings, toml

from shared.errors import ConfigError, IdentityError
from shared.patching.settings import PatchingSettings
from shared.shards.content import ContentHash, add_content_hashes
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.vocabulary import EOS, IGNORED_LABEL, OFFSET
from trainer.data.documents import documents_in_order
from trainer.data.loader import PackLoader
from trainer.data.mixture import Mixture
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Step
from trainer.data.packing.planner import Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import Cursor, first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.main import main

STEP = Step(0, 0, 0)
LIMITS = PackLimits(64, 32)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Two datasets that share a subset's name, one of each format."""
    folder = tmp_path_factory.mktemp("mixture")
    code = random_documents(1, 40, subsets=("a", "b"))
    web = random_documents(2, 50, subsets=("b", "c"))
    return Mixture(
        {
            "code": make_dataset(folder / "code", [code[:25], code[25:]]),
            "web": make_dataset(folder / "web", [web[:10], web[10:30], web[30:]], "webdataset"),
        }
    )


def test_documents_of_a_mixture_are_those_of_its_datasets(mixture: Mixture) -> None:
    assert mixture.subset_names == ("code/a", "code/b", "web/b", "web/c")
    found = Counter()
    for documents in documents_in_order(mixture, 10):
        for one in map(documents.__getitem__, range(len(documents))):
            text = mixture.batch(one.shard, one.batch).text(one.row).tobytes()
            found[mixture.subset_names[one.subset], text] += 1
    wanted = Counter()
    for name, dataset in mixture._datasets.items():
        wanted.update((f"{name}/{row.subset}", row.text) for row in dataset.rows())
    assert found == wanted
    totals = mixture.manifest.subsets
    assert {name: figures.documents for name, figures in totals.items()} == Counter(
        name for name, _ in found.elements()
    )


def trained(
    data: Dataset | Mixture, mixing: Mixing, streams: int = 3, stop: int | None = None
) -> dict[str, ContentHash]:
    """The content of all targets of a stream that ends, by subset, put together from the labels of its packs."""
    reader = SliceReader(data)
    planner = Planner(data, reader, LIMITS, mixing, first_cursor(data, 5, streams))
    hashes = {name: ContentHash() for name in data.subset_names}
    begun: dict[tuple[int, int], list[bytes]] = {}
    while True:
        if planner.pack == stop:
            cursor = Cursor.model_validate_json(planner.state.cursor.model_dump_json())
            planner = Planner(data, reader, LIMITS, mixing, cursor)
        plan = planner.next_pack()
        if not plan.targets:
            assert not begun
            return hashes
        pack = build_pack(plan, STEP, reader)
        ends = np.cumsum(pack.in_slice)
        for number, (low, high) in enumerate(zip(ends - pack.in_slice, ends)):
            labels = pack.labels[low:high]
            labels = labels[labels != IGNORED_LABEL]
            document, start = plan.documents[number].reference, int(plan.starts[number])
            text = (begun[document, start].pop() if start else b"") + (labels[labels != EOS] - OFFSET).astype(
                np.uint8
            ).tobytes()
            if start and not begun[document, start]:
                del begun[document, start]
            if pack.ended[number]:
                assert labels[-1] == EOS
                name = data.subset_names[pack.subset[number]]
                hashes[name].add(Row("", name, text), True)
            else:
                begun.setdefault((document, int(plan.stops[number])), []).append(text)


def recorded(data: Dataset | Mixture, passes: dict[str, int]) -> dict[str, str]:
    """The content hash of so many passes over each subset, from the documents as they are stored."""
    hashes: dict[str, list[str]] = {name: [] for name in data.subset_names}
    for documents in documents_in_order(data, 100):
        for place in map(documents.__getitem__, range(len(documents))):
            name, one = data.subset_names[place.subset], ContentHash()
            one.add(Row("", name, data.batch(place.shard, place.batch).text(place.row).tobytes()), True)
            hashes[name] += [one.hexdigest()] * passes[name]
    return {name: add_content_hashes(found) for name, found in hashes.items()}


@pytest.mark.parametrize("stop", [None, 7, 40])
@pytest.mark.parametrize("streams", [1, 3, 40])
def test_every_byte_is_a_target_once_in_each_pass_until_its_subset_ends(
    mixture: Mixture, streams: int, stop: int | None
) -> None:
    mixing = Mixing({"code": 0.9, "web/c": 0.05}, {"code": 3, "web": 2, "web/c": 1})
    found = trained(mixture, mixing, streams, stop)
    passes = {"code/a": 3, "code/b": 3, "web/b": 2, "web/c": 1}
    assert {name: hash.hexdigest() for name, hash in found.items()} == recorded(mixture, passes)


def test_one_pass_over_a_dataset_has_the_hash_of_its_manifest(tmp_path: Path) -> None:
    data = random_dataset(tmp_path, 4)
    found = trained(data, Mixing({"a": 0.8}, dict.fromkeys("abc", 1)))
    shards = [shard.content_hash for shard in data.shards()]
    assert add_content_hashes(hash.hexdigest() for hash in found.values()) == add_content_hashes(shards)


def test_a_subset_that_has_ended_leaves_its_share_to_the_others(mixture: Mixture) -> None:
    loader = iter(PackLoader(mixture, LIMITS, 4, mixing=Mixing({}, {"web": 1}), streams=2))
    text = np.zeros((2, 4))
    for number in range(400):
        pack = next(loader)
        text[int(number >= 200)] += np.bincount(pack.subset, pack.slice_bytes, 4)
    assert (text[0] > 0).all()
    assert (text[1, 2:] == 0).all()
    own = np.array([mixture.manifest.subsets[name].bytes for name in ("code/a", "code/b")])
    assert text[1, :2] / text[1].sum() == pytest.approx(own / own.sum(), abs=0.03)


def test_the_weight_of_a_dataset_is_shared_by_its_subsets(mixture: Mixture) -> None:
    loader = iter(PackLoader(mixture, LIMITS, 4, mixing=Mixing({"code": 0.3, "web/b": 0.5, "web": 0.2}), streams=2))
    text = np.zeros(4)
    for _ in range(800):
        pack = next(loader)
        text += np.bincount(pack.subset, pack.slice_bytes, 4)
    own = np.array([mixture.manifest.subsets[name].bytes for name in ("code/a", "code/b")])
    assert text / text.sum() == pytest.approx([*(0.3 * own / own.sum()), 0.5, 0.2], abs=0.02)


def test_datasets_of_other_patches_cannot_be_mixed(tmp_path: Path) -> None:
    one = random_dataset(tmp_path / "one", 1)
    longer = SPACE.model_copy(update={"max_length": 16})
    other = make_dataset(tmp_path / "other", [random_documents(2, 9, patching=longer)], patching=longer)
    with pytest.raises(IdentityError, match=r"one\S* and \S*other\S* .*max_length: recorded 8, now 16"):
        Mixture({"a": one, "b": other})


def test_thresholds_of_subsets_keep_their_names(tmp_path: Path) -> None:
    datasets = {}
    for name, theta in (("x", 1.0), ("y", 2.0)):
        patching = PatchingSettings(rule="entropy", theta=1.5, thetas={"a": theta}, max_length=8)
        rows = [Row("1", "a", b"abc", 0, np.array([1, 3, 1], np.uint16))]
        datasets[name] = make_dataset(tmp_path / name, [rows], patching=patching)
    assert Mixture(datasets).manifest.identity.patching.thetas == {"x/a": 1.0, "y/a": 2.0}


def test_a_changed_dataset_of_a_mixture_is_refused_by_its_name(tmp_path: Path, mixture: Mixture) -> None:
    changed = Mixture({"code": mixture._datasets["code"], "web": random_dataset(tmp_path, 9)})
    with pytest.raises(IdentityError, match="fingerprint of web/train: recorded "):
        PackLoader(changed, LIMITS, 4, cursor=first_cursor(mixture, 0, 2))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("two")
    return {
        "one": str(tiny_data(folder / "one", STATIC, documents=30)),
        "two": str(tiny_data(folder / "two", STATIC, documents=24, source="another")),
    }


def data_of(two: dict[str, str], **values) -> dict:
    return {"tokens": 256, "packs": 2, "workers": 0, "datasets": two} | values


def test_a_run_on_two_datasets_reports_their_subsets_and_refuses_changed_data(
    tmp_path: Path, two: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    values = tiny_recipe(tmp_path, tmp_path / "run", run={"steps": 2}) | {"data": data_of(two, weights={"one": 0.5})}
    recipe.write_text(toml(values))
    assert main([str(recipe)]) == 0
    final = metric_lines(tmp_path / "run")[-1]["validation"]
    assert final["subsets"].keys() == {"one/a", "one/b", "two/a", "two/b"}
    changed = tiny_data(tmp_path / "changed", STATIC, documents=26)
    assert main([str(recipe), "--data.datasets.two", str(changed)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "belongs to another run" in said
    assert "data.two/train: recorded" in said
    assert "data.one/train" not in said


def test_a_length_in_passes_is_one_in_targets(tmp_path: Path, two: dict[str, str]) -> None:
    length = {"steps": None, "passes": 1.5}
    alone = tiny_settings(Path(two["one"]), tmp_path, run=length)
    identity = run_identity_of(alone)
    totals = Mixture({"one": make_opened(two["one"])}).manifest.totals
    assert identity.config["run"]["bytes"] == -(-3 * (totals.bytes + totals.documents) // 2)
    assert "passes" not in identity.config["run"]


def make_opened(folder: str) -> Dataset:
    from shared.shards.open import open_dataset

    return open_dataset(Path(folder) / "train")


def test_a_run_may_end_with_its_data_and_not_after_it(tmp_path: Path, two: dict[str, str]) -> None:
    """Two passes over all of it, to the last target: the last packs are smaller, or empty."""
    recipe = tmp_path / "recipe.toml"
    values = tiny_recipe(tmp_path, tmp_path / "run") | {"data": data_of(two, repeats={"one": 2, "two": 2})}
    values["run"] = {"out": str(tmp_path / "run"), "passes": 2, "device": "cpu", "dtype": "float32"}
    values["data"]["tokens"] = 1024
    recipe.write_text(toml(values))
    assert main([str(recipe), "--checkpoint.every", "1000"]) == 0
    totals = Mixture({name: make_opened(folder) for name, folder in two.items()}).manifest.totals
    lines = [line for line in metric_lines(tmp_path / "run") if "targets" in line]
    assert lines[-1]["targets"] == 2 * (totals.bytes + totals.documents)
    data = {"path": None} | values["data"]
    settings = tiny_settings(tmp_path, tmp_path, run={"steps": 1000}, data=data)
    with pytest.raises(ConfigError, match=r"run.steps 1000 .*data.repeats leaves \d+"):
        run_identity_of(settings)
    settings = tiny_settings(
        tmp_path, tmp_path, run={"steps": None, "passes": 2.1}, data={"path": None, **values["data"]}
    )
    with pytest.raises(ConfigError, match=r"data.repeats leaves \d+"):
        run_identity_of(settings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"path": "x", "datasets": {"a": "y"}}, "either path"),
        ({}, "either path"),
        ({"datasets": {"a/b": "y"}}, "'a/b' cannot be the name of a dataset"),
        ({"path": "x", "repeats": {"a": 0}}, "greater than 0"),
    ],
)
def test_settings_that_say_two_things_are_refused(tmp_path: Path, values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_settings(tmp_path, tmp_path, data={"path": None} | values)
