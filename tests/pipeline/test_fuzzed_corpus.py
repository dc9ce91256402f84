"""A thousand small files of every format, good and bad: each record has one fate, each file is accounted for."""

import json
from collections import Counter
from pathlib import Path

import pytest
from fuzzed_corpus import MAKERS, Made, make_corpus
from pipeline_helpers import STATIC, counts, letters, preprocess, stored

FILES = 1000
SKIPPED = {"image.png": b"\x89PNG", "model.pkl": b"\x80\x04N.", "archive.zip": b"PK", "page.warc.gz": b"\x1f\x8b"}


def read(corpus: Path, out: Path, *options: object) -> None:
    assert preprocess(corpus, "--out", out, *STATIC, *options) == 3


def fates(made: list[Made]) -> dict[str, int]:
    found = {"documents": sum(len(m.texts) for m in made), "dead": sum(m.dead for m in made)}
    found |= {"empty": sum(m.empty for m in made), "not_sampled": 0}
    return found | {"records": sum(found.values())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, list[Made]]:
    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder, FILES, seed=4)
    for name, content in SKIPPED.items():
        (folder / name).write_bytes(content)
    (folder / "link.txt").symlink_to(folder / made[0].name)
    return folder, made


def test_a_thousand_files_come_to_what_their_makers_counted(corpus, tmp_path):
    folder, made = corpus
    read(folder, tmp_path / "out")
    found = counts(tmp_path / "out")
    assert {key: found[key] for key in fates(made)} == fates(made)
    assert Counter(text for _, _, text in stored(tmp_path / "out")) == Counter(text for m in made for text in m.texts)
    dead = letters(tmp_path / "out")
    assert Counter(letter["path"] for letter in dead) == Counter({m.name: m.dead for m in made if m.dead})
    empty = letters(tmp_path / "out", "empty-records")
    assert Counter(entry["path"] for entry in empty) == Counter({m.name: m.empty for m in made if m.empty})
    for letter in dead:
        assert letter["reason"]
        assert len(letter["sha256"]) == 64
        assert len(letter.get("excerpt", letter.get("excerpt_base64"))) <= 90_000
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(file["path"] for file in run["plan"]["files"]) == sorted(m.name for m in made)
    assert run["plan"]["skipped"] == {"no text by their suffix": len(SKIPPED), "symbolic links": 1}


def test_small_splits_come_to_the_same(tmp_path):
    made = make_corpus(tmp_path / "in", 5 * len(MAKERS), seed=5)
    read(tmp_path / "in", tmp_path / "small", "--split-bytes", 4000)
    read(tmp_path / "in", tmp_path / "large")
    assert stored(tmp_path / "small") == stored(tmp_path / "large")
    assert sorted(map(str, letters(tmp_path / "small"))) == sorted(map(str, letters(tmp_path / "large")))
    assert counts(tmp_path / "small") == counts(tmp_path / "large")
    assert counts(tmp_path / "small")["records"] == fates(made)["records"]
