"""The experiment on whole characters: each pair differs in them alone, and its datasets keep them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from trainer.experiments.preparation import Corpus, corpus_steps, cutting_steps
from trainer.experiments.systems import SYSTEMS_FILE, Experiment, load_experiment

PAIRS = [("entropy", "entropy-whole"), ("static", "static-whole")]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return load_experiment(SYSTEMS_FILE.with_name("characters.toml"))


@pytest.mark.parametrize(("free", "whole"), PAIRS)
def test_systems_of_a_pair_differ_in_whole_characters_alone(experiment: Experiment, free: str, whole: str) -> None:
    assert experiment.sections(free) == experiment.sections(whole)
    cuts = [experiment.patchings[experiment.systems[name].patching] for name in (free, whole)]
    assert cuts[0].model_copy(update={"whole_characters": True}) == cuts[1] != cuts[0]
    assert cuts[1].in_words == f"{cuts[0].in_words}, characters whole"


def test_what_they_learn_from_is_cut_as_they_say(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join("naïve 한국어 😀 " * (3 + number) for number in range(30)))
    for step in corpus_steps(Corpus((str(tmp_path / "a.txt"),), None, 200, 0.2, 1), tmp_path / "out"):
        step.make(step.out)
    cut = {}
    for name in PAIRS[1]:
        patching = experiment.systems[name].patching
        for step in cutting_steps(patching, experiment.patchings[patching], None, tmp_path / "out"):
            step.make(step.out)
            cut[name] = all_whole(open_dataset(step.out / "train"))
    assert cut == {"static": False, "static-whole": True}


def all_whole(dataset: Dataset) -> bool:
    """Whether every patch of a dataset is text by itself."""
    try:
        for row in dataset.rows():
            assert row.patch_lengths is not None
            ends = np.cumsum(row.patch_lengths, dtype=np.int64) - 1
            for begin, end in pairwise(ends):
                row.text[begin:end].decode()
    except UnicodeDecodeError:
        return False
    return True
