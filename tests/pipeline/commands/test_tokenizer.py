"""The BPE baseline's data: a tokenizer of the training split alone, and datasets whose patches are its tokens."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_examples import rewrite as rewrite_shard
from helpers.dataset_examples import set_value
from helpers.foreign_tokenizers import foreign_tokenizer, write_foreign
from helpers.pipeline_helpers import preprocess, write_jsonl
from helpers.refitted import change_manifest
from helpers.rewriting_examples import files, make_place, run, scored
from tokenizers import Tokenizer

from pipeline.records import Place, Record
from pipeline.scoring.cut import Document, Piece, cut
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import TOKENIZER_FILE, load_making
from shared.model_settings import FlatSettings
from shared.patching import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from shared.shards.rows import joined

VOCABULARY = 320


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus with a tokenizer of its training split, unpatched, and scored with a sidecar."""
    folder = make_place(tmp_path_factory.mktemp("tokenizer"))
    options = ("--executor", "inline", "--validation-fraction", "0.3", "--split-bytes", "1500")
    assert preprocess(folder / "a.jsonl", "--out", folder / "plain", "--rule", "none", *options) == 0
    scored(folder, folder / "scored", "--rule", "entropy", "--theta", "2", "--sidecar", "float32")
    assert run("tokenizer", folder / "plain", "--vocabulary", VOCABULARY, "--out", folder / "tokenizer") == 0
    return folder


def recut(place: Path, source: Path, out: Path) -> Path:
    tokenizer = place / "tokenizer"
    assert run("recut", source, "--rule", "bpe", "--tokenizer", tokenizer, "--out", out, "--workers", 1) == 0
    return out


def documents(dataset: Dataset) -> list[tuple[bytes, list[int]]]:
    """Text and patch lengths of each document."""
    found = []
    for row in dataset.rows():
        assert row.patch_lengths is not None
        found.append((row.text, row.patch_lengths.tolist()))
    return found


SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def cut_plain(place: Path) -> Path:
    return recut(place, place / "plain", place / "cut-plain")


@pytest.fixture(scope="module")
def cut_scored(place: Path) -> Path:
    return recut(place, place / "scored", place / "cut-scored")


@pytest.fixture(params=["plain", "scored"])
def out(request: pytest.FixtureRequest) -> Path:
    """The dataset whose patches are tokens, of each source."""
    return request.getfixturevalue(f"cut_{request.param}")


@pytest.mark.parametrize("split", SPLITS)
def test_patches_are_bos_the_tokens_and_eos(place: Path, out: Path, split: str) -> None:
    encoder = SubwordEncoder(place / "tokenizer")
    for text, lengths in documents(open_dataset(out / split)):
        assert lengths == [1, *encoder.lengths(text).tolist(), 1]


@pytest.mark.parametrize("split", SPLITS)
def test_a_dataset_names_and_carries_its_tokenizer(place: Path, out: Path, split: str) -> None:
    dataset, making = open_dataset(out / split), load_making(place / "tokenizer")
    patching = dataset.manifest.identity.patching
    assert patching.tokenizer == load_making(dataset.tokenizer).identity == making.identity
    assert patching.max_length == making.longest


def test_a_sidecar_stays_where_there_was_one(cut_plain: Path, cut_scored: Path) -> None:
    for out, sidecar in ((cut_plain, "none"), (cut_scored, "float32")):
        assert {open_dataset(out / split).manifest.identity.sidecar for split in SPLITS} == {sidecar}


def test_verify_checks_boundaries_of_tokens(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", out) == 0
    assert "boundaries of" in capsys.readouterr().out


def test_inspect_shows_the_size_of_the_vocabulary(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", out) == 0
    assert f"vocabulary {VOCABULARY}" in capsys.readouterr().out


def test_tokens_are_the_same_from_any_source(cut_plain: Path, cut_scored: Path) -> None:
    found, wanted = (sorted(documents(open_dataset(out / "train"))) for out in (cut_plain, cut_scored))
    assert found == wanted


def test_tokens_and_the_tokenizer_survive_another_format(cut_plain: Path, tmp_path: Path) -> None:
    assert run("convert", cut_plain, "--to", "webdataset", "--out", tmp_path / "tar", "--workers", 1) == 0
    assert run("convert", tmp_path / "tar", "--to", "arrow", "--out", tmp_path / "back", "--workers", 1) == 0
    assert files(tmp_path / "back") == files(cut_plain)
    assert f"train/tokenizer/{TOKENIZER_FILE}" in files(cut_plain)


def test_tokens_survive_a_split(cut_plain: Path, tmp_path: Path) -> None:
    options = ("--validation-fraction", 0.5, "--workers", 1)
    assert run("split", cut_plain, "--out", tmp_path / "split", *options) == 0
    assert run("verify", tmp_path / "split") == 0


def test_another_rule_leaves_the_tokenizer_out(cut_plain: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    assert run("recut", cut_plain, "--rule", "space", "--out", space, "--workers", 1) == 0
    identity = open_dataset(space / "train").manifest.identity
    assert (identity.patching.tokenizer, identity.patching.max_length) == (None, 512)
    assert not (space / "train" / "tokenizer").exists()


def test_a_validation_split_alone_is_no_data_of_a_tokenizer(place: Path, tmp_path: Path, capsys) -> None:
    validation, out = place / "plain" / "validation", tmp_path / "out"
    assert run("tokenizer", validation, "--vocabulary", VOCABULARY, "--out", out) == 2
    assert f"{validation} is a validation split" in capsys.readouterr().err
    assert not out.exists()


def test_the_tokenizer_sees_the_training_split_alone(tmp_path: Path) -> None:
    """A word that only validation has, however often, is no token."""
    rare = [{"id": str(n), "text": "zyxwvu " * 50, "kind": "held"} for n in range(9)]
    common = [{"id": str(n), "text": "abcdef " * 50, "kind": "seen"} for n in range(9, 19)]
    both, out = tmp_path / "both", tmp_path / "out"
    both.mkdir()
    for name, records, fraction in (("train", common, "0"), ("validation", rare, "1")):
        corpus = write_jsonl(tmp_path / f"{name}.jsonl", records)
        options = ("--rule", "none", "--validation-fraction", fraction, "--executor", "inline")
        assert preprocess(corpus, "--out", tmp_path / name, *options) == 0
        (tmp_path / name / name).rename(both / name)
    assert run("tokenizer", both, "--vocabulary", 265, "--out", out) == 0
    tokens = Tokenizer.from_file(str(out / TOKENIZER_FILE)).get_vocab()
    assert [token for token in tokens if "abc" in token or "def" in token]
    assert not [token for token in tokens if "zy" in token or "wv" in token]
    assert load_making(out).trained_on == open_dataset(both / "train").fingerprint


def test_what_is_done_is_current_and_what_does_not_fit_is_refused(place, tmp_path, capsys) -> None:
    plain, tokenizer = place / "plain", place / "tokenizer"
    assert run("tokenizer", plain, "--vocabulary", VOCABULARY, "--out", tokenizer) == 0
    assert "nothing to do, all is current" in capsys.readouterr().out
    for arguments, problem in (
        (("tokenizer", plain, "--vocabulary", 300, "--out", tokenizer), "holds a tokenizer of 320 ids"),
        (("tokenizer", plain, "--vocabulary", 260, "--out", tmp_path / "a"), "more than the 260 ids of bytes alone"),
        (("tokenizer", plain, "--vocabulary", 99_999, "--out", tmp_path / "a"), "has pairs for"),
        (("recut", plain, "--rule", "bpe", "--out", tmp_path / "b"), "--rule bpe and --tokenizer FOLDER go together"),
        (("recut", plain, "--rule", "byte", "--tokenizer", tokenizer, "--out", tmp_path / "b"), "go together"),
        (
            ("recut", plain, "--rule", "bpe", "--tokenizer", plain, "--out", tmp_path / "b"),
            "is not a tokenizer's folder: identity.json cannot be read",
        ),
        (
            ("recut", plain, "--rule", "bpe", "--tokenizer", tokenizer, "--stride", 2, "--out", tmp_path / "b"),
            "'bpe' does not take stride",
        ),
    ):
        assert run(*arguments) == 2
        assert problem in capsys.readouterr().err


def test_verify_finds_boundaries_that_are_not_the_tokenizers(place, tmp_path, capsys) -> None:
    out = recut(place, place / "plain", tmp_path / "out") / "train"
    entry = open_dataset(out).shard(0)
    row = next(iter(open_dataset(out).rows()))
    assert row.patch_lengths is not None
    lengths = row.patch_lengths.copy()
    first = int(np.flatnonzero(np.diff(lengths[1:-1].astype(int)) != 0)[0]) + 1
    lengths[first : first + 2] = lengths[first : first + 2][::-1]
    rewrite_shard(out / entry.name, set_value("patch_lengths", 0, lengths.astype("<u2").tobytes()))
    assert run("verify", out) == 1
    assert "stored boundaries are not those of the rule" in capsys.readouterr().out
    (out / "tokenizer" / TOKENIZER_FILE).write_text("{}")
    assert run("verify", out) == 1
    assert "is damaged: sha256" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen2", "llama2"])
def test_tokens_of_another_model_are_patches(place: Path, tmp_path: Path, family: str, capsys) -> None:
    model, out = write_foreign(tmp_path / "model", foreign_tokenizer(family)), tmp_path / "tokenizer"
    assert run("tokenizer", "--from", model, "--out", out) == 0
    left_out = "left out: normalizer " + {"qwen2": "NFC", "llama2": "Prepend"}[family]
    assert left_out in capsys.readouterr().out
    tokens = tmp_path / "tokens"
    assert run("recut", place / "plain" / "train", "--rule", "bpe", "--tokenizer", out, "--out", tokens) == 0
    assert run("verify", tokens) == 0
    encoder, dataset = SubwordEncoder(out), open_dataset(tokens)
    for text, lengths in documents(dataset):
        assert lengths == [1, *encoder.lengths(text).tolist(), 1]
    patching = dataset.manifest.identity.patching
    assert patching.tokenizer == load_making(dataset.tokenizer).identity
    flat = FlatSettings(width=32, layers=2, heads=2, feed_forward=64, vocabulary=encoder.subwords.vocabulary)
    assert "trained here" in (flat.objection(patching) or "")


def test_a_tokenizer_of_another_model_is_written_once_and_in_the_place_of_no_other(place, tmp_path, capsys) -> None:
    model, out = write_foreign(tmp_path / "model", foreign_tokenizer("llama3")), tmp_path / "out"
    assert run("tokenizer", "--from", model, "--out", out) == 0
    written = files(out)
    assert run("tokenizer", "--from", model / TOKENIZER_FILE, "--out", out) == 0
    assert "nothing to do, all is current" in capsys.readouterr().out
    assert files(out) == written
    for arguments, problem in (
        (("--from", model, "--out", place / "tokenizer"), "holds a tokenizer of 320 ids trained on"),
        ((place / "plain", "--vocabulary", 300, "--out", out), "holds a tokenizer of 423 ids made from"),
        ((place / "plain", "--from", model, "--out", out), "give either DATASET and --vocabulary, or --from"),
        ((place / "plain", "--out", out), "give either DATASET and --vocabulary, or --from"),
        (("--from", place / "plain", "--out", tmp_path / "no"), "tokenizer.json cannot be read"),
    ):
        assert run("tokenizer", *arguments) == 2
        assert problem in capsys.readouterr().err


def test_what_own_tokenizers_record_is_what_it_was(place: Path) -> None:
    """Identities of datasets and tokenizers do not change because others can be imported."""
    making = load_making(place / "tokenizer")
    assert list(making.model_dump()) == ["trained_on", "vocabulary", "longest", "sha256", "library"]
    assert list(making.identity.model_dump()) == ["sha256", "vocabulary"]


def test_a_chat_dataset_is_refused(place, tmp_path, capsys) -> None:
    named = tmp_path / "named"
    assert run("recut", place / "plain" / "train", "--rule", "byte", "--out", named, "--workers", 1) == 0
    change_manifest(named, lambda values: values["identity"].update(specials=("user", "end")))
    assert run("recut", named, "--rule", "bpe", "--tokenizer", place / "tokenizer", "--out", tmp_path / "no") == 2
    assert "cuts plain text only" in capsys.readouterr().err


def test_a_document_of_several_rows_in_many_chunks_has_the_tokens_of_the_whole(place) -> None:
    text = b"".join(b"line %d of a text that fills more than one row\n" % n for n in range(100)) + b"\xff" * 7
    encoder, record = SubwordEncoder(place / "tokenizer"), Record(Place("x"), "x", "x", text)
    places = [*range(0, len(text), 700), len(text)]
    document = Document(record)
    pieces = [Piece(document, end - begin, None, end == len(text)) for begin, end in pairwise(places)]
    patching = PatchingSettings(rule="bpe", tokenizer=load_making(place / "tokenizer").identity)
    rows = joined([rows for _, rows in cut(pieces, patching, 1000, encoder)])
    assert rows.last.tolist() == [False] * (len(rows) - 1) + [True]
    assert len(rows) > 4
    assert b"".join(rows.texts) == text
    assert rows.lengths.tolist() == [1, *encoder.lengths(text), 1]
