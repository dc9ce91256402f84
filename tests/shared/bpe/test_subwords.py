"""Byte-pair tokens: any bytes are tokens of the vocabulary, the same ones however a text arrives."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.subword_examples import LINES, WORDS, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shared.bpe import encoder as encoder_module
from shared.bpe.encoder import ChunkedSubwords, SubwordEncoder, pieces_of
from shared.bpe.folder import TOKENIZER_FILE, check_tokenizer, copy_tokenizer, load_making
from shared.bpe.vocabulary import NO_TOKEN, Subwords, byte_symbols, load_subwords
from shared.errors import DatasetError, IdentityError
from shared.patching import PatchingSettings, PatchStream
from shared.patching.settings import TokenizerIdentity
from shared.vocabulary import OFFSET, document_tokens

BYTES = [bytes([byte]) for byte in range(256)]
SPECIAL = [None] * OFFSET
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(str.encode),
    st.lists(st.sampled_from([*WORDS, b"\n", b" \n", b"\n\n", b"x\ny", b"\xff", "é".encode(), b"'s"])).map(b" ".join),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("subwords")
    return train_tokenizer(place / "data", place / "tokenizer", 300)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SubwordEncoder:
    return SubwordEncoder(folder)


@pytest.fixture(scope="module")
def tokens(folder: Path) -> dict[int, bytes]:
    """The bytes of each token id, from the library's own file."""
    bytes_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocabulary = json.loads((folder / TOKENIZER_FILE).read_text())["model"]["vocab"]
    return {number: bytes(bytes_of[symbol] for symbol in token) for token, number in vocabulary.items()}


@given(text=TEXTS)
def test_the_lengths_of_tokens_sum_to_any_text_and_its_ids_are_found_from_them_alone(
    encoder, tokens, text: bytes
) -> None:
    ids, lengths = encoder.ids(text), encoder.lengths(text)
    assert lengths.sum() == len(text)
    assert b"".join(tokens[number] for number in ids.tolist()) == text
    assert encoder.subwords.ids(np.frombuffer(text, np.uint8), lengths.astype(np.int64)).tolist() == ids.tolist()


def test_ids_are_those_of_the_library_and_our_bytes_keep_theirs(folder, encoder) -> None:
    library = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    text = "the tokens of a text: größer, 大きさ\n\n  and so on, it's 12345 <bos>"
    assert encoder.ids(text.encode()).tolist() == library.encode(text).ids
    assert library.decode(library.encode(text).ids) == text
    assert [int(encoder.ids(bytes([byte]))[0]) for byte in range(256)] == [byte + OFFSET for byte in range(256)]
    assert encoder.subwords.vocabulary == 300 == load_making(folder).vocabulary
    assert len(encoder.ids(b" the the the")) == 3  # merges are learned, and used


def test_an_invalid_byte_is_a_token_and_what_is_valid_around_it_is_encoded_as_ever(encoder) -> None:
    whole = encoder.ids(b"the tokens")
    assert encoder.ids(b"the tokens\xffthe tokens").tolist() == [*whole, 0xFF + OFFSET, *whole]
    assert encoder.ids("é".encode()[:1] + b"the").tolist()[0] == 0xC3 + OFFSET
    assert encoder.ids(b"\xed\xa0\x80").tolist() == [0xED + OFFSET, 0xA0 + OFFSET, 0x80 + OFFSET]  # a surrogate


@given(data=st.data(), text=TEXTS)
def test_a_text_in_chunks_has_the_tokens_of_the_whole(encoder, data, text: bytes) -> None:
    tokens = document_tokens(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=4)))  # EOS comes with the last chunk
    chunked, found = ChunkedSubwords(encoder), []
    for start, stop in zip([0, *cuts], [*cuts, len(tokens)]):
        found += chunked.add(tokens[start:stop], None, stop == len(tokens)).tolist()
    assert found == [1, *encoder.lengths(text).tolist(), 1]


def test_a_long_text_is_encoded_in_pieces_with_the_same_tokens(encoder, monkeypatch) -> None:
    text = b"\n".join(random.Random(2).choices([*LINES, b"", b"  indented", b"\t"], k=400))
    whole = encoder.ids(text).tolist()
    monkeypatch.setattr(encoder_module, "PIECE", 100)
    assert len(list(pieces_of(text))) > 20
    assert b"".join(pieces_of(text)) == text
    assert encoder.ids(text).tolist() == whole


def test_what_is_no_token_is_said_and_never_guessed() -> None:
    subwords = Subwords([*SPECIAL, *BYTES, b"ab", b"abc"])
    found = subwords.ids(np.frombuffer(b"ababcxyab", np.uint8), np.array([2, 3, 2, 1, 1]))
    assert found.tolist() == [260, 261, NO_TOKEN, ord("a") + 4, ord("b") + 4]
    assert subwords.ids(np.zeros(0, np.uint8), np.zeros(0, np.int64)).tolist() == []


def test_of_equal_tokens_the_lowest_id_is_found_and_a_spare_one_last() -> None:
    tokens = [b"a", b"ab", None, *BYTES, b"ab"]
    text, lengths = np.frombuffer(b"aabb", np.uint8), np.array([1, 2, 1])
    assert Subwords(tokens).ids(text, lengths).tolist() == [0, 1, 3 + ord("b")]
    spare = Subwords(tokens, spare=[0, 1, 3 + ord("b")])
    assert spare.ids(text, lengths).tolist() == [3 + ord("a"), 259, 3 + ord("b")]
    assert spare.tokens == tokens
    assert not spare.trained_here
    assert Subwords([*SPECIAL, *BYTES, b"ab"]).trained_here


def test_a_vocabulary_that_some_texts_have_no_tokens_of_is_refused() -> None:
    with pytest.raises(ValueError, match="0x07 is no token"):
        Subwords([*BYTES[:7], *BYTES[8:], b"ab"])
    with pytest.raises(ValueError, match="token 256 has no bytes"):
        Subwords([*BYTES, b""])


def test_one_large_id_does_not_take_memory(folder, tmp_path: Path) -> None:
    content = json.loads((folder / TOKENIZER_FILE).read_text())
    content["model"]["vocab"]["thethe"] = 2**24 - 1
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="ids reach 16777215, but there are 297 tokens"):
        load_subwords(tmp_path)


def test_a_damaged_folder_is_refused_in_one_line(folder, tmp_path: Path) -> None:
    making = load_making(folder)
    copy_tokenizer(folder, tmp_path / "copy", making.identity)
    check_tokenizer(tmp_path / "copy", making.identity)
    with pytest.raises(IdentityError, match="holds another tokenizer"):
        check_tokenizer(folder, TokenizerIdentity(sha256="0" * 64, vocabulary=300))
    content = json.loads((folder / TOKENIZER_FILE).read_text())
    content["model"]["vocab"].popitem()
    (tmp_path / "copy" / TOKENIZER_FILE).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="is damaged: sha256"):
        load_making(tmp_path / "copy")
    with pytest.raises(DatasetError, match=r"out of vocabulary|ids must be"):
        SubwordEncoder(tmp_path / "copy")
    (tmp_path / "copy" / TOKENIZER_FILE).unlink()
    with pytest.raises(DatasetError, match=r"tokenizer\.json cannot be read"):
        load_subwords(tmp_path / "copy")


def test_training_does_not_depend_on_threads_or_on_the_run(folder, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from helpers.subword_examples import train_tokenizer; "
        "train_tokenizer(Path(sys.argv[1]) / 'data', Path(sys.argv[1]) / 'tokenizer', 300)"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, capture_output=True)
    assert load_making(tmp_path / "tokenizer") == load_making(folder)


def test_no_other_rule_knows_of_tokenizers_and_no_stream_finds_tokens() -> None:
    assert "tokenizer" not in PatchingSettings(rule="space").model_dump()
    with pytest.raises(ValueError, match="'bpe' needs tokenizer"):
        PatchingSettings(rule="bpe")
    identity = TokenizerIdentity(sha256="0" * 64, vocabulary=300)
    with pytest.raises(ValueError, match="'space' does not take tokenizer"):
        PatchingSettings(rule="space", tokenizer=identity)
    patching = PatchingSettings(rule="bpe", tokenizer=identity)
    assert PatchingSettings.model_validate(patching.model_dump()) == patching
    with pytest.raises(ValueError, match="looks at later bytes"):
        PatchStream(patching)
