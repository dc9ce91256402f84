"""--for-training: one text file is enough, and too little is said at once."""

import pytest
from helpers.pipeline_helpers import preprocess, some_records, stored, write_jsonl

from shared.shards.open import open_dataset

NONE = ("--rule", "none", "--executor", "inline", "--workers", 1)


def write_book(path, paragraphs):
    path.write_text(
        "\n\n".join(f"Chapter {n}. " + f"It was a bright cold day, number {n}. " * 9 for n in range(paragraphs))
    )
    return path


def test_one_text_file_becomes_documents_of_both_splits(tmp_path):
    book = write_book(tmp_path / "book.txt", 200)
    assert preprocess(book, "--out", tmp_path / "out", *NONE, "--for-training") == 0
    assert all(open_dataset(tmp_path / "out" / name).totals.documents > 0 for name in ("train", "validation"))
    documents = stored(tmp_path / "out")
    assert len(documents) > 100
    in_order = sorted(documents, key=lambda found: int(found[0].rpartition(":@")[2]))
    assert b"".join(text for _, _, text in in_order) == book.read_bytes()
    assert preprocess(book, "--out", tmp_path / "out", *NONE, "--for-training") == 0  # the same run


def test_several_texts_and_a_size_that_was_given_are_left_as_they_are(tmp_path):
    first, second = write_book(tmp_path / "a.txt", 20), write_book(tmp_path / "b.txt", 21)
    preprocess(first, second, "--out", tmp_path / "two", *NONE, "--for-training", "--validation-fraction", 0.5)
    assert {text for _, _, text in stored(tmp_path / "two")} == {first.read_bytes(), second.read_bytes()}
    preprocess(first, "--out", tmp_path / "one", *NONE, "--for-training", "--document-bytes", 2000)
    assert len(stored(tmp_path / "one")) < 8


def test_a_sample_that_ends_early_says_why_and_what_would_do(tmp_path, capsys):
    texts = [write_book(tmp_path / f"{number}.txt", 100 + number) for number in range(3)]
    records = write_jsonl(tmp_path / "a.jsonl", some_records(300))
    for name, corpus, wanted in (("long", texts, 20_000), ("short", [records], 20_000)):
        preprocess(*corpus, "--out", tmp_path / name, *NONE, "--sample-bytes", wanted)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "not in the sample" in line]
        assert ("--document-bytes" in line) == (name == "long")


def test_a_run_below_the_current_folder_is_named_from_there(tmp_path, capsys, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(30))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    preprocess(corpus, "--out", "out", *NONE)
    assert capsys.readouterr().out.startswith("out: 1 of 1 splits\n")
    preprocess(corpus, "--out", "../beside", *NONE)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/beside: 1 of 1 splits\n")


@pytest.mark.parametrize("options", [["--for-training"], []])
def test_too_little_text_is_said_by_the_first_command(tmp_path, capsys, options):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(1))
    assert preprocess(corpus, "--out", tmp_path / "out", *NONE, *options) == (2 if options else 0)
    said = capsys.readouterr()
    assert "--validation-fraction" in (said.err if options else said.out)
