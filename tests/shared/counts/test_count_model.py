"""A table of contexts says of every byte what the definition says, in every chunk, row and order of documents."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.counted_models import Context, key_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from shared.counts import table
from shared.counts.contexts import HIGHEST_ORDER, context_keys
from shared.counts.files import load_counts, write_counts
from shared.counts.scorer import TOGETHER, CountRows, CountScorer
from shared.counts.table import CountModel, place_contexts
from shared.errors import ModelFileError
from shared.inputs import Inputs
from shared.model_folder.identity import model_sha256, pack_model
from shared.model_settings import CountsSettings
from shared.vocabulary import BOS, EOS, NEWLINE, OFFSET, RESERVED, byte_tokens, document_tokens


def open_context(tokens: list[int], newline_reset: bool) -> Context:
    """What may be seen after the last of these tokens, oldest first."""
    for begin in range(len(tokens) - 1, -1, -1):
        if tokens[begin] < OFFSET or tokens[begin] >= 260 or (newline_reset and tokens[begin] == NEWLINE):
            return tuple(RESERVED if token >= 260 else token for token in tokens[begin:])
    return tuple(tokens)


def expected(table: dict[Context, float], tokens: list[int], settings: CountsSettings) -> list[np.float32]:
    found = []
    for stop in range(1, len(tokens) + 1):
        context = open_context(tokens[:stop], settings.newline_reset)[-settings.order :]
        while context not in table:
            context = context[1:]
        found.append(np.float32(table[context]))
    return found


@cache
def example(order: int = 4, newline_reset: bool = False, size: int = 3000) -> tuple[dict[Context, float], CountModel]:
    """A table of random contexts of a small alphabet, each with an entropy of its own."""
    rng = np.random.default_rng(order)
    alphabet = [OFFSET + byte for byte in b"ab\n"] + [OFFSET + 255]
    contexts = {
        opener + tuple(middle)
        for opener in ((), (BOS,), (RESERVED,))
        for length in range(order + 1 - len(opener))
        for middle in itertools.product(alphabet, repeat=length)
    }
    chosen = [context for context in sorted(contexts) if not context or rng.random() < 0.7][:size]
    table = {context: float(np.float32(rng.random() * 5)) for context in chosen}
    return table, model_of(table, CountsSettings(order=order, newline_reset=newline_reset))


def model_of(table: dict[Context, float], settings: CountsSettings) -> CountModel:
    keys = np.array([key_of(context, settings.order) for context in table if context], np.uint64)
    values = np.array([value for context, value in table.items() if context], np.float32)
    return CountModel(settings, place_contexts(keys, values, np.float32(table[()])), "a test")


TEXTS = st.lists(st.sampled_from([b"a"[0], b"b"[0], 10, 255, b"z"[0]]), max_size=40)


@pytest.mark.parametrize("order", range(1, HIGHEST_ORDER + 1))
@pytest.mark.parametrize("newline_reset", [False, True])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), special=st.integers(0, 60))
def test_every_position_has_the_entropy_of_its_longest_known_context(order, newline_reset, texts, special) -> None:
    entropies, model = example(order, newline_reset)
    documents = [[BOS, *(OFFSET + byte for byte in text)] for text in texts]
    documents[0][special:special] = [261]  # a named special id opens a context, as RESERVED
    documents[0][0] = BOS
    wanted = [expected(entropies, tokens, model.settings) for tokens in documents]
    joined = np.concatenate([np.array(tokens, np.int16) for tokens in documents])
    assert model.entropies(joined[None])[0].tolist() == [value for own in wanted for value in own]


@pytest.mark.parametrize("newline_reset", [False, True])
@given(text=TEXTS, end=TEXTS, other=TEXTS)
def test_no_entropy_depends_on_a_later_token(newline_reset, text, end, other) -> None:
    _, model = example(newline_reset=newline_reset)
    whole, changed = (document_tokens(bytes(text + rest))[None, :-1] for rest in (end, other))
    shared = len(text) + 1
    assert model.entropies(whole)[0, :shared].tobytes() == model.entropies(changed)[0, :shared].tobytes()


@given(text=TEXTS, cuts=st.sets(st.integers(1, 39)))
def test_chunks_and_rows_see_what_the_whole_document_sees(text, cuts) -> None:
    _, model = example(newline_reset=True)
    tokens = np.array([BOS, *(OFFSET + byte for byte in text)], np.int16)
    whole = model.entropies(tokens[None])[0]
    chunks = np.split(tokens, sorted(cut for cut in cuts if cut < len(tokens)))
    scorer = CountScorer(model)
    other = Inputs(3, iter([np.array([BOS, OFFSET + 97, OFFSET + 98], np.int16)]))
    pieces = list(scorer.score_pieces([Inputs(len(tokens), iter(chunks)), other]))
    assert np.concatenate([entropies for entropies, _ in pieces])[: len(tokens)].tobytes() == whole.tobytes()
    assert [last for _, last in pieces] == [False] * (len(chunks) - 1) + [True, True]
    rows = CountRows(model, 2)
    found = []
    for chunk in chunks:
        both = np.stack([chunk, chunk])
        rows.advance(np.concatenate([both, both[:, ::-1]], axis=1))  # more than is accepted
        found.append(rows.advance(both))
        rows.accept([len(chunk)] * 2)
    assert np.concatenate(found, axis=1)[0].tobytes() == whole.tobytes()
    rows.select([1])
    rows.append(CountRows(model))
    after = rows.advance(np.array([[OFFSET + 97], [BOS]], np.int16))
    assert after[0, 0] == model.entropies(np.append(tokens, OFFSET + 97)[None].astype(np.int16))[0, -1]
    assert after[1, 0] == model.entropies(np.array([[BOS]], np.int16))[0, 0]


def test_documents_longer_than_what_is_looked_up_at_once() -> None:
    _, model = example()
    text = np.random.default_rng(0).choice(np.frombuffer(b"ab\n\xff", np.uint8), 3 * TOGETHER).tobytes()
    documents = [document_tokens(part) for part in (b"a", text, b"", text[:TOGETHER])]
    found = list(CountScorer(model).score(documents))
    for tokens, entropies in zip(documents, found, strict=True):
        assert tokens[-1] == EOS
        assert entropies.tobytes() == model.entropies(tokens[None, :-1])[0].tobytes()


def test_a_table_is_the_same_file_whatever_order_its_contexts_come_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    settings = CountsSettings(order=3)
    keys = np.unique(context_keys(rng.integers(4, 260, (1, 5000)).astype(np.int16), 3, False)[0])
    values = rng.random(len(keys)).astype(np.float32)
    digests = set()
    for number in range(3):
        order = rng.permutation(len(keys))
        folder = tmp_path / str(number)
        folder.mkdir()
        write_counts(folder, settings, place_contexts(keys[order], values[order], np.float32(5)))
        digests.add(model_sha256(folder))
    assert digests == {"9d861a0c42062c00c2e1b8b471e95adc2123a3c100c318fd9b09f7242092eadd"}
    model = load_counts(folder)
    assert model.contexts == len(keys)
    assert load_counts(pack_model(folder)).contexts == len(keys)
    assert model._found(keys).tolist() == values.tolist()
    assert load_counts(pack_model(folder))._found(keys).tolist() == values.tolist()


def test_bits_of_a_key_are_those_of_the_format() -> None:
    """What a table holds must never come to mean something else."""
    tokens = np.array([[BOS, *byte_tokens(b"ab").tolist()]], np.int16)
    assert context_keys(tokens, 2, False).tolist() == [[1 << 9, 101 << 9 | 1, 102 << 9 | 101]]


def test_runs_are_measured_across_the_parts_that_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 30):
        monkeypatch.setattr(table, "_CHECKED", size)
        for _ in range(50):
            keys = (rng.random(20) < 0.8).astype(np.uint64)
            runs = max(len(run) for run in "".join("x" if key else " " for key in keys).split(" "))
            assert table._longest_run(keys) == runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made["keys"].__setitem__(-1, 77), "last slot must be empty"),
        (lambda made: made["keys"].__setitem__(slice(None), 77), "last slot must be empty"),
        (lambda made: made["entropies"].__setitem__(3, np.nan), "entropies"),
        (lambda made: made["entropies"].__setitem__(3, -1), "entropies"),
        (lambda made: made["root"].__setitem__(0, 6), "root"),
        (lambda made: made.update(keys=made["keys"].astype(np.int32)), "I64"),
        (lambda made: made.update(root=made["root"][:0]), "root"),
        (lambda made: made.update(entropies=made["entropies"][:-1]), "entropies"),
        (lambda made: made.update(keys=made["keys"][-1:], entropies=made["entropies"][-1:]), "table"),
        (lambda made: made.update(more=made["root"]), "more"),
        (lambda made: made.pop("root"), "root"),
        (
            lambda made: made.update(keys=np.append(np.full(2**17, 77), 0), entropies=np.zeros(2**17 + 1, "f4")),
            "in a row",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path, change, message: str) -> None:
    made = place_contexts(np.array([3 << 9], np.uint64), np.ones(1, np.float32), np.float32(1))
    write_counts(tmp_path, CountsSettings(order=2), made)
    change(made)
    save_file(made, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=message) as error:
        load_counts(tmp_path)
    assert "model.safetensors" in str(error.value)
