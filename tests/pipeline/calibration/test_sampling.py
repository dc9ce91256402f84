"""Which documents calibration counts on: seeded, within their limits, and none of them held out at the same time."""

import numpy as np
import pytest
from helpers.dataset_examples import NONE, document, save_dataset

from pipeline.calibration.parallel_text import pair, parallel_key, parallel_keys
from pipeline.calibration.sampling import draw, draw_pairs, held_out_tenth
from pipeline.scoring.entropies import Documents, documents_of, place_of
from pipeline.settings import PipelineError
from shared.shards.document import Row
from shared.shards.open import open_dataset

LANGUAGES = ("de", "en", "zh")


def page(number: int, language: str) -> Row:
    text = f"page {number} in {language} ".encode() * (number % 5 + 1)
    return document(f"docs/{language}/{number}.md", language, text, NONE)


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Documents:
    """120 pages in English, of which every second is in German and every third in Chinese."""
    folder = tmp_path_factory.mktemp("drawing") / "train"
    steps = {"de": 2, "en": 1, "zh": 3}
    rows = [page(n, language) for n in range(120) for language in LANGUAGES if n % steps[language] == 0]
    lonely = [document("docs/fr/1000.md", "fr", b"seul", NONE), document("unnamed", "de", b"ohne Namen", NONE)]
    save_dataset(folder, [rows[:50], [*rows[50:], *lonely]], NONE)
    return documents_of(open_dataset(folder))


def drawn_ids(documents: Documents) -> list[str]:
    found = []
    for start in documents.starts.tolist():
        shard, batch, row = place_of(documents.dataset, start)
        found.append(documents.dataset.batch(shard, batch).id(row))
    return found


def test_of_a_large_dataset_some_runs_are_drawn(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.scoring.entropies.MOST_DOCUMENTS", 40)
    monkeypatch.setattr("pipeline.scoring.entropies.FEWEST_DOCUMENTS", 1)
    some = documents_of(documents.dataset)
    assert 40 <= len(some) < len(documents)
    assert set(drawn_ids(some)) < set(drawn_ids(documents))
    assert set(some.subset.tolist()) == set(documents.subset.tolist())


def test_of_a_small_dataset_all_documents_are_there(documents: Documents) -> None:
    assert drawn_ids(documents) == [row.id for row in documents.dataset.rows() if row.text]


def test_a_draw_keeps_within_its_bytes_and_so_does_each_subsets(documents: Documents) -> None:
    sample = draw(documents, 500, 0, per_subset=True)
    for numbers in (sample.whole, *sample.subsets.values()):
        assert 0 < sample.documents.bytes[numbers].sum() <= 500


def test_a_draw_of_a_subset_is_of_its_documents(documents: Documents) -> None:
    sample = draw(documents, 500, 0, per_subset=True)
    found = {
        name: {sample.documents.names[code] for code in sample.documents.subset[numbers]}
        for name, numbers in sample.subsets.items()
    }
    assert found == {name: {name} for name in (*LANGUAGES, "fr")}


def test_a_draw_depends_on_the_seed(documents: Documents) -> None:
    first, again, other = (drawn_ids(draw(documents, 500, seed, per_subset=True).documents) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_draw_of_next_to_nothing_is_one_document_and_of_0_bytes_all(documents: Documents) -> None:
    sizes = [len(draw(documents, size, 0, per_subset=False).documents) for size in (1, 0)]
    assert sizes == [1, len(documents)]


def test_a_tenth_of_each_subset_is_held_out_the_one_drawn_last(documents: Documents) -> None:
    held = held_out_tenth(documents, None, 0)
    counts = {name: held[documents.subset == code].sum() for code, name in enumerate(documents.names)}
    assert counts == {"de": 6, "en": 12, "fr": 0, "zh": 4}
    rest = documents.take(np.flatnonzero(~held))
    small = draw(documents, 900, 0, per_subset=True)
    assert not set(drawn_ids(small.documents)) & set(drawn_ids(documents.take(np.flatnonzero(held))))
    assert len(rest) == len(documents) - 22


def test_pages_of_parallel_text_are_held_out_in_all_languages(documents: Documents) -> None:
    keys = parallel_keys(documents, "id")
    held = held_out_tenth(documents, keys, 0)
    assert not set(keys[held].tolist()) & set(keys[~held].tolist())
    assert 8 <= len(set(keys[held].tolist())) <= 12


def test_parallel_documents_find_one_another_by_id(documents: Documents) -> None:
    keys = parallel_keys(documents, "id")
    assert (keys == 0).sum() == 1  # the one without its language in its id
    names = drawn_ids(documents)
    pairs = pair(documents, keys, "en")
    assert {name: len(found.documents) for name, found in pairs.items()} == {"de": 60, "zh": 40}
    for name, found in pairs.items():
        for own, partner in zip(found.documents, found.partners):
            assert names[own].replace(f"/{name}/", "/en/") == names[partner]


def test_languages_share_the_pages_that_they_draw(documents: Documents) -> None:
    keys = parallel_keys(documents, "id")
    sample = draw_pairs(documents, keys, "en", 400, 0)
    names = drawn_ids(sample.documents)
    partners = {name: {names[number] for number in found.partners} for name, found in sample.pairs.items()}
    for name, found in sample.pairs.items():
        assert 0 < sample.documents.bytes[found.documents].sum() <= 400
        for own, partner in zip(found.documents, found.partners):
            assert names[own].replace(f"/{name}/", "/en/") == names[partner]
    assert len(partners["de"] & partners["zh"]) >= 2
    others = draw_pairs(documents, keys, "en", 400, 1)
    sampled = [{names[number] for number in sample.pairs["de"].partners}]
    sampled.append({drawn_ids(others.documents)[number] for number in others.pairs["de"].partners})
    assert sampled[0] != sampled[1]


@pytest.mark.parametrize(
    ("by", "identifier", "subset", "meta", "key"),
    [
        ("id", "en/intro.md", "en", None, "/intro.md"),
        ("id", "open/intro.en", "en", None, "open/intro."),
        ("id", "open/intro", "en", None, None),
        ("id", "page-7-pt_BR", "pt_BR", None, "page-7-"),
        ("id", "anything", "", None, None),
        ("id:.", "a.b.en", "en", None, "a.b"),
        ("id:#", "a.b.en", "en", None, None),
        ("page", "x", "en", '{"page": 7}', "7"),
        ("page", "x", "en", '{"other": 7}', None),
        ("page", "x", "en", None, None),
    ],
)
def test_keys_of_parallel_documents(by: str, identifier: str, subset: str, meta: str | None, key: str | None) -> None:
    assert parallel_key(by, identifier, subset, meta) == key


def test_keys_that_tell_nothing_apart_are_refused(documents: Documents) -> None:
    with pytest.raises(PipelineError, match=r"subset 'de' .* the same key"):
        parallel_keys(documents, "id:/")
    assert not parallel_keys(documents, "page").any()
