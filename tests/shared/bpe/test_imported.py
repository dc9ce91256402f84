"""Tokenizers of other models, in the shape of each family: their tokens are a text's bytes, however it arrives."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.foreign_tokenizers import BY_CHARACTERS, FAMILIES, TEXTS, added, foreign_tokenizer, write_foreign
from tokenizers import Tokenizer

from pipeline.rewriting.tokenizer import import_tokenizer
from shared.bpe import encoder as encoder_module
from shared.bpe.encoder import ChunkedSubwords, SubwordEncoder
from shared.bpe.imported import imported_tokenizer
from shared.distillation.byte_targets import TokenTree
from shared.errors import DatasetError
from shared.patching.settings import LONGEST_PATCH
from shared.vocabulary import document_tokens

PARTS = ["a", "B", "ab", "12", " ", "   ", "\n", "\n\n", "\r\n", "\t", ";", "'s", "//", "<|end|>", "<tool>", "<s>"]
PARTS += ["é", "e\u0301", "大", "\u00a0", "\u2581", "👩‍👩‍👧", "x\ny", "};\n}", "1\n2", "the tokens", "\n    return"]
CUT = [family for family in FAMILIES if family != "tekken"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    for family in FAMILIES:
        write_foreign(folder / "models" / family, foreign_tokenizer(family))
        import_tokenizer(folder / "models" / family, folder / family)
    return folder


def random_text(seed: int) -> bytes:
    """A text of parts that tokens may join, sometimes with bytes that are no UTF-8."""
    choose = random.Random(seed)
    parts = [part.encode() for part in choose.choices(PARTS, k=choose.randint(1, 25))]
    return b"".join([*parts, b"\xff\xe2\x96", *parts[:5]] if seed % 4 == 0 else parts)


RANDOM = [random_text(seed) for seed in range(100)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_tokens_are_the_text_and_its_ids_are_found_from_them_alone(place: Path, family: str) -> None:
    encoder = SubwordEncoder(place / family)
    tokens = encoder.subwords.tokens
    for text in [*(text.encode() for text in TEXTS), *RANDOM]:
        ids = encoder.ids(text)
        assert b"".join(tokens[number] or b"" for number in ids.tolist()) == text
        lengths = encoder.lengths(text).astype(np.int64)
        assert encoder.subwords.ids(np.frombuffer(text, np.uint8), lengths).tolist() == ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_that_the_model_reads(place: Path, family: str) -> None:
    encoder = SubwordEncoder(place / family)
    source = Tokenizer.from_file(str(place / "models" / family / "tokenizer.json"))
    assert encoder.subwords.vocabulary == max(source.get_vocab(with_added_tokens=True).values()) + 1
    # The space that the model's own tokenizer puts before a text stands in ours.
    before = " " if family in BY_CHARACTERS else ""
    for text in TEXTS[1:]:
        if text.startswith(" ") and family.startswith("mistral"):
            continue  # Metaspace puts none before a space
        assert encoder.ids((before + text).encode()).tolist() == source.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_in_chunks_or_pieces_has_the_tokens_of_the_whole(place: Path, family: str, monkeypatch) -> None:
    encoder = SubwordEncoder(place / family)
    assert encoder.cuttable == (family in CUT)
    found_earlier = 0
    for number, text in enumerate([*(text.encode() for text in TEXTS), *RANDOM]):
        whole, tokens = encoder.lengths(text).tolist(), document_tokens(text)
        cuts = [0, *sorted(random.Random(number).choices(range(len(tokens)), k=4)), len(tokens)]
        chunked, found = ChunkedSubwords(encoder), []
        for start, stop in pairwise(cuts):
            found.append(chunked.add(tokens[start:stop], None, stop == len(tokens)).tolist())
        assert [length for lengths in found for length in lengths] == [1, *whole, 1]
        found_earlier += sum(len(lengths) for lengths in found[:-1])
        with monkeypatch.context() as patch:
            patch.setattr(encoder_module, "PIECE", 0)
            assert encoder.lengths(text).tolist() == whole
    assert (found_earlier > len(TEXTS) + len(RANDOM)) == (family in CUT)  # more than each BOS


def test_a_word_that_goes_on_behind_the_end_of_a_line_is_not_cut(place: Path, monkeypatch) -> None:
    encoder = SubwordEncoder(place / "tekken")
    text = b"x;\n// y"
    assert b";\n//" in [encoder.subwords.tokens[number] for number in encoder.ids(text).tolist()]
    whole = encoder.ids(text).tolist()
    monkeypatch.setattr(encoder_module, "PIECE", 0)
    assert encoder.ids(text).tolist() == whole
    encoder.cuttable = True
    assert encoder.ids(text).tolist() != whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_special_id_is_never_in_a_text_and_an_added_word_is_one_token(place: Path, family: str) -> None:
    encoder = SubwordEncoder(place / family)
    tokens = encoder.subwords.tokens
    ids = encoder.ids(b"a<|end|><tool><s>").tolist()
    assert tokens.count(None) == (5 if family in BY_CHARACTERS else 2)
    assert tokens[-3:] == [None, b"<tool>", None]
    assert len(tokens) - 2 in ids
    assert len(ids) > 3


@pytest.mark.parametrize("family", ["llama3", "llama2"])
def test_bytes_that_are_no_text_are_tokens_of_one_byte(place: Path, family: str) -> None:
    encoder = SubwordEncoder(place / family)
    for text in (b"\xff\xfe", "é".encode()[:1] + b"the", b"\xed\xa0\x80"):
        assert encoder.lengths(text)[0] == 1
    mark = encoder.ids("\u2581".encode()).tolist()
    if family == "llama2":  # a space's mark in a vocabulary, three bytes in a text
        assert mark == [3 + 0xE2, 3 + 0x96, 3 + 0x81]
        assert encoder.subwords.byte_ids[ord("a")] > 258  # the character's token, not the byte's


def test_a_tree_of_bytes_is_made_of_its_tokens(place: Path) -> None:
    """Bytes of a character's token and of the byte's are the same ones."""
    encoder = SubwordEncoder(place / "llama2")
    tree, ids = TokenTree(encoder.subwords.tokens), encoder.ids(TEXTS[2].encode())
    found = tree.targets(torch.zeros(len(ids), tree.size), ids.astype(np.int64))
    assert found.next_bytes().exp().sum(1).allclose(torch.ones(len(TEXTS[2].encode())))


def changed(family: str = "llama3", **values: Any) -> dict[str, Any]:
    return foreign_tokenizer(family) | values


def with_model(family: str = "llama3", **values: Any) -> dict[str, Any]:
    content = foreign_tokenizer(family)
    return content | {"model": content["model"] | values}


def without_byte() -> dict[str, Any]:
    content = foreign_tokenizer("llama2")
    content["model"]["vocab"]["<0xx7>"] = content["model"]["vocab"].pop("<0x07>")
    return content


def with_gap() -> dict[str, Any]:
    content = foreign_tokenizer("llama3")
    content["added_tokens"][-1]["id"] += 7
    return content


def with_token(text: str) -> dict[str, Any]:
    """A further one in the vocabulary, as no merge makes it."""
    content = changed(added_tokens=[])
    content["model"]["vocab"][text] = len(content["model"]["vocab"])
    return content


BERT = {"type": "BertPreTokenizer"}
REMOVING = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_model(type="WordPiece"), "its model is WordPiece, only BPE"),
        (with_model(dropout=0.1), "dropout 0.1"),
        (with_model(end_of_word_suffix="</w>"), "end_of_word_suffix, '</w>'"),
        (changed(normalizer={"type": "Lowercase"}), "its normalizer Lowercase changes texts"),
        (changed("llama2", normalizer={"type": "NFKC"}), "its normalizer NFKC changes texts"),
        (changed(pre_tokenizer=BERT), "its pre-tokenizer BertPreTokenizer"),
        (changed(pre_tokenizer=REMOVING), "its pre-tokenizer Split"),
        (changed(pre_tokenizer=None), "it is not byte-level"),
        (changed("llama2", normalizer=None), "that marks spaces"),
        (without_byte(), "the byte 0x07 is no token"),
        (with_gap(), "the added token '<|pad|>' has the id"),
        (with_token("x" * (LONGEST_PATCH + 1)), "longest: must be less than or equal to"),
        ({"model": {}}, "model.type is missing"),
        ([], "valid dictionary"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_with_the_reason(content: Any, reason: str, tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "model", content)
    with pytest.raises(DatasetError) as refused:
        import_tokenizer(model, tmp_path / "out")
    message = str(refused.value)
    assert message.startswith(f"{model / 'tokenizer.json'}: ")
    assert reason in message
    assert "\n" not in message
    assert len(message) < 400
    assert not (tmp_path / "out").exists()


def test_an_added_token_that_takes_spaces_along_is_not_looked_for() -> None:
    content = foreign_tokenizer("llama3")
    number = content["added_tokens"][-1]["id"] + 1
    content["added_tokens"].append(added(number, "<mask>", special=False, lstrip=True))
    found = imported_tokenizer(content)
    assert found.content["added_tokens"][-1] == added(number, "<mask>")
    assert found.left_out == ("added tokens that take more of a text than their own: '<mask>'",)


def test_what_a_pattern_leaves_between_words_is_kept(tmp_path: Path) -> None:
    content = foreign_tokenizer("olmo2")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+"}
    import_tokenizer(write_foreign(tmp_path / "model", content), tmp_path / "out")
    assert SubwordEncoder(tmp_path / "out").lengths(b"ab 12 cd").sum() == 8


def test_tokens_that_are_not_the_bytes_of_a_text_are_an_error(tmp_path: Path) -> None:
    stripped = changed(normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
    encoder = SubwordEncoder(write_foreign(tmp_path, stripped))
    with pytest.raises(DatasetError, match="tokens of a text of 4 bytes have other bytes"):
        encoder.ids(b" ab ")


def test_long_tokens_are_taken(tmp_path: Path) -> None:
    content = foreign_tokenizer("llama3")
    model, number = content["model"], content["added_tokens"][-1]["id"]
    content["added_tokens"] = []
    for length in (2, 4, 8, 16, 32, 64, 128):
        if "-" * length not in model["vocab"]:
            model["vocab"]["-" * length] = number = number + 1
        model["merges"].append(["-" * (length // 2)] * 2)
    making, _ = import_tokenizer(write_foreign(tmp_path / "model", content), tmp_path / "out")
    assert making.longest == 128
    assert SubwordEncoder(tmp_path / "out").lengths(b"-" * 130).tolist() == [128, 2]


def test_a_folder_says_whose_tokenizer_it_holds(place: Path, tmp_path: Path) -> None:
    making, made = import_tokenizer(place / "models" / "qwen2", place / "qwen2")
    assert not made
    assert making.identity.imported
    recorded = json.loads((place / "qwen2" / "identity.json").read_text())
    assert "trained_on" not in recorded
    assert recorded["left_out"] == ["normalizer NFC: text in another form than NFC keeps its bytes"]
    with pytest.raises(DatasetError, match="give the folder of a model"):
        import_tokenizer(tmp_path, tmp_path / "out")
