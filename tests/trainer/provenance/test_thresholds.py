"""Which thresholds cut a text: of subsets that a model was trained on, alone and in several named datasets."""

from pathlib import Path

import numpy as np
import pytest
from helpers.model_folders import numerics
from helpers.pack_examples import make_dataset
from helpers.tiny_runs import STATIC, run_identity_of, tiny_data, tiny_settings

from shared.errors import ConfigError, IdentityError
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import EntropyModelIdentity
from shared.vocabulary import document_tokens
from trainer.data.run_data import RunData
from trainer.provenance.identity import ModelIdentity, RunNumerics
from trainer.provenance.thresholds import default_note, known_subset, one_threshold, patching_for

PLAIN = PatchingSettings(rule="entropy", theta=1.0, thetas={"de": 2.0, "en": 3.0})
MIXED = PatchingSettings(rule="entropy", theta=1.0, thetas={"code/en": 2.0, "tldr/en": 3.0, "tldr/ar": 4.0})


def identity(patching: PatchingSettings, data: dict[str, str]) -> ModelIdentity:
    run = RunNumerics(dtype="float32", device="cpu", torch="", ranks=1, threads=1)
    entropy_model = EntropyModelIdentity(sha256="0" * 64, numerics=numerics())
    return ModelIdentity(config={}, data=data, patching=patching, entropy_model=entropy_model, numerics=run)


def dataset(folder: Path, thetas: dict[str, float], *subsets: str, theta: float = 1.0) -> Dataset:
    rule = PatchingSettings(rule="entropy", theta=theta, thetas=thetas)
    whole = np.array([1, len(document_tokens(b"text")) - 1], np.uint16)
    return make_dataset(folder, [[Row(name, name, b"text", 0, whole) for name in subsets]], patching=rule)


def test_one_threshold_is_that_of_a_subset_or_the_default() -> None:
    assert one_threshold(PLAIN, "de").theta == 2.0
    assert one_threshold(PLAIN).theta == 1.0
    assert one_threshold(PLAIN, theta=0.5).theta == 0.5
    assert not one_threshold(PLAIN).thetas
    assert "1.0000" in (default_note(PLAIN) or "")
    assert default_note(one_threshold(PLAIN)) is None
    with pytest.raises(ConfigError, match="no threshold"):
        one_threshold(PatchingSettings(rule="byte"), theta=0.5)


def test_a_subset_without_a_threshold_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fr'.*de, en"):
        one_threshold(PLAIN, "fr")
    with pytest.raises(ConfigError, match=r"'nope'.*leave it out"):
        one_threshold(PatchingSettings(rule="entropy", theta=1.0), "nope")
    many = PatchingSettings(rule="entropy", theta=1.0, thetas={f"l{n}": 1.0 for n in range(117)})
    with pytest.raises(ConfigError, match="and 113 more") as refusal:
        one_threshold(many, "fr")
    assert len(str(refusal.value)) < 300


def test_a_subset_of_one_dataset_of_several_needs_no_prefix_where_it_is_unambiguous() -> None:
    assert known_subset(MIXED, "ar") == "tldr/ar"
    assert known_subset(MIXED, "code/en") == "code/en"
    with pytest.raises(ConfigError, match="code/en or tldr/en"):
        known_subset(MIXED, "en")
    alike = PatchingSettings(rule="entropy", theta=1.0, thetas={"code/en": 2.0, "tldr/en": 2.0})
    assert one_threshold(alike, "en").theta == 2.0
    assert "r" not in {name.rpartition("/")[2] for name in MIXED.thetas}
    with pytest.raises(ConfigError, match="'r'"):
        known_subset(MIXED, "r")  # not the end of ar


def test_a_dataset_of_the_run_is_recognised_by_its_fingerprint(tmp_path: Path) -> None:
    own = dataset(tmp_path, {"en": 3.0, "ar": 4.0}, "en", "ar")
    data = {"code/train": "1", "code/validation": "2", "tldr/train": "3", "tldr/validation": own.fingerprint}
    assert patching_for(identity(MIXED, data), own).thetas == {"en": 3.0, "ar": 4.0}


def test_any_other_dataset_has_the_names_of_what_it_was_cut_as(tmp_path: Path) -> None:
    data = {f"{name}/{split}": name + split for name in ("code", "tldr") for split in ("train", "validation")}
    model = identity(MIXED, data)
    assert patching_for(model, dataset(tmp_path / "1", {"en": 3.0}, "en")).thetas == {"en": 3.0, "ar": 4.0}
    assert patching_for(model, dataset(tmp_path / "2", {"en": 2.0}, "en")).thetas == {"en": 2.0}
    assert patching_for(model, dataset(tmp_path / "3", {}, "ar", theta=9.0)).thetas["ar"] == 4.0  # tldr alone has it
    assert "fr" not in patching_for(model, dataset(tmp_path / "4", {}, "fr")).thetas
    unlike = dataset(tmp_path / "5", {"en": 7.0}, "en")
    with pytest.raises(IdentityError, match=r"code or tldr.*--as"):
        patching_for(model, unlike)
    assert patching_for(model, unlike, "code").thetas == {"en": 2.0}
    with pytest.raises(ConfigError, match=r"'web'.*code, tldr"):
        patching_for(model, unlike, "web")


def test_one_named_dataset_is_as_good_as_several(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    recipe = {"path": None, "datasets": {"code": str(data)}}
    settings = tiny_settings(data, tmp_path / "run", data=recipe)
    train = RunData(settings.data).train
    assert train.subset_names == tuple(train.manifest.subsets) == ("code/a", "code/b")
    assert sum(totals.documents for totals in train.subsets.values()) == 60
    assert run_identity_of(settings).data.keys() == {"code/train", "code/validation"}
