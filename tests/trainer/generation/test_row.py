"""A row's decisions: when it ends, what it shows, and that drafts choose what plain writing would."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.vocabulary import EOS, OFFSET, VOCABULARY_SIZE, byte_tokens
from trainer.generation.piece import Piece, Statistics, TokenScore
from trainer.generation.row import Row, choose_next
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.generation.utf8 import Utf8State

GREEDY = SamplingSettings(temperature=0)


def row(prompt: bytes = b"", length: int = 100, **options) -> Row:
    return Row(prompt, GenerateSettings(**({"length": length, "sampling": GREEDY} | options)))


def wanting(*tokens: int) -> np.ndarray:
    """Logits of these tokens, the first the likeliest."""
    logits = np.full(VOCABULARY_SIZE, -9.0, np.float32)
    logits[list(tokens)] = 9.0 - np.arange(len(tokens), dtype=np.float32)
    return logits


def chosen(target: Row, logits: np.ndarray, pending: Sequence[int] = ()) -> int | None:
    return choose_next([target], logits[None], [pending])[0]


def write(target: Row, text: bytes) -> bytes:
    """Push bytes until the row ends; what it shows."""
    shown: list[Piece] = []
    for token in byte_tokens(text).tolist():
        if target.ended is None:
            shown += target.push(token)
    return b"".join(piece.byte for piece in shown)


def test_a_row_ends_by_length() -> None:
    three = row(length=3)
    assert (write(three, b"abcd"), three.ended, three.written, three.left) == (b"abc", "length", 3, 0)
    assert row(length=0).ended == "length"
    assert chosen(row(length=0), wanting(5)) is None


def test_a_row_ends_with_its_document() -> None:
    some = row()
    assert write(some, b"ab") == b"ab"
    assert chosen(some, wanting(EOS, 7)) == EOS
    assert some.push(EOS) == []
    assert (some.ended, some.written, some.left) == ("end of document", 2, 0)
    assert chosen(some, wanting(7)) is None


def test_a_row_ends_before_a_stop_that_the_prompt_does_not_count_for() -> None:
    some = row(b"ends", stop=(b"stop", b"\n\n"))
    assert (write(some, b"top a\nstop it"), some.ended) == (b"top a\n", "stop")
    assert some.written == len(b"top a\nstop")


def test_what_was_held_back_is_shown_at_the_end_unless_it_is_a_stop() -> None:
    by_length, by_document = row(length=3, stop=(b"abcd",)), row(stop=(b"abcd",))
    assert (write(by_length, b"abc"), by_length.ended) == (b"abc", "length")
    assert write(by_document, b"abc") == b""
    assert b"".join(piece.byte for piece in by_document.push(EOS)) == b"abc"
    last = row(length=4, stop=(b"bcd",))
    assert (write(last, b"abcd"), last.ended) == (b"a", "stop")


def test_pieces_keep_what_was_said_of_them_while_held_back() -> None:
    some = row(b"\xffp", stop=(b"ab!",))
    assert some.show_prompt(1, [True, False], [0.5, 1.5]) == [
        Piece(b"\xff", True, 0.5, from_prompt=True),
        Piece(b"p", False, 1.5, from_prompt=True),
    ]
    a, b, c = byte_tokens(b"abc").tolist()
    assert some.push(a, True, 0.25) == []
    assert some.push(b, False, 0.75) == []
    assert some.push(c, True, 2.0) == [Piece(b"a", True, 0.25), Piece(b"b", False, 0.75), Piece(b"c", True, 2.0)]
    assert [piece.entropy for piece in some.show_prompt(1, [False, False])] == [None, None]


def test_utf8_is_finished_before_anything_else_and_before_the_length_is_reached() -> None:
    euro = "€".encode()
    continuation, letter, lead = OFFSET + euro[1], OFFSET + ord("a"), OFFSET + euro[0]
    some = row(euro[:1], length=4, utf8=True)
    assert chosen(some, wanting(EOS, letter, lead, continuation)) == continuation
    assert write(some, euro[1:] + b"a")
    assert some.left == 1
    assert chosen(some, wanting(lead, letter)) == letter
    assert chosen(row(euro[:1], length=4), wanting(EOS, letter)) == EOS


def random_logits(text: bytes) -> np.ndarray:
    """A model: logits that are a function of the text before."""
    return np.random.default_rng([*text, 1]).normal(size=VOCABULARY_SIZE).astype(np.float32) * 2


@settings(deadline=None)
@given(
    st.binary(max_size=4),
    st.integers(0, 20),
    st.booleans(),
    st.lists(st.binary(min_size=1, max_size=2), max_size=60),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 6),
)
def test_a_choice_with_pending_tokens_is_the_choice_after_they_are_pushed(
    prompt: bytes, length: int, utf8: bool, stops: list[bytes], temperature: float, ahead: int
) -> None:
    sampling = SamplingSettings(temperature=temperature, top_k=20)
    options = GenerateSettings(length=length, utf8=utf8, stop=tuple(stops), sampling=sampling)
    plain, drafting = Row(prompt, options), Row(prompt, options)
    text = prompt
    while plain.ended is None:
        drafted: list[int] = []
        draft = text
        for _ in range(ahead):
            token = chosen(drafting, random_logits(draft), drafted)
            if token is None:
                break
            drafted.append(token)
            draft += bytes((token - OFFSET,)) if token != EOS else b""
        for token in drafted:
            assert chosen(plain, random_logits(text)) == token
            assert plain.push(token) == drafting.push(token)
            text += bytes((token - OFFSET,)) if token != EOS else b""
        assert plain.ended == drafting.ended
        assert len(drafted) == ahead or plain.ended is not None
    assert chosen(drafting, random_logits(text)) is None
    if utf8 and not prompt and plain.ended != "stop":  # a stop may be half a character
        text.decode("utf-8")


def test_a_row_draws_as_if_alone_and_each_token_anew() -> None:
    even = np.zeros(VOCABULARY_SIZE, np.float32)
    sampling = SamplingSettings(temperature=1.0, seed=3)
    rows = [row(prompt, sampling=sampling) for prompt in (b"", b"another")]
    sampled = []
    for _ in range(20):
        tokens = {chosen(some, even) for some in rows}
        assert len(tokens) == 1
        sampled += tokens
        for some in rows:
            some.push(sampled[-1])
        if sampled[-1] == EOS:
            break
    assert len(set(sampled)) > 10


@pytest.mark.parametrize(
    "bad",
    [{"length": -1}, {"stop": (b"",)}, {"theta": float("nan")}, {"draft": -1}, {"sampling": {"top_k": 0}}, {"utf": 1}],
)
def test_settings_out_of_range_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        GenerateSettings.model_validate({"length": 1} | bad)


def test_acceptance_is_a_share_of_what_was_drafted() -> None:
    assert Statistics(drafted=8, accepted=6).acceptance == 0.75
    assert Statistics().acceptance is None


@given(st.lists(st.sampled_from([*"aé€😀".encode(), 0x80, 0xBF, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xFF]), max_size=12))
def test_where_in_a_character_a_prompt_ends_is_seen_from_its_last_bytes(prompt: list[int]) -> None:
    draw = row(bytes(prompt), utf8=True).draw()
    assert draw is not None
    assert draw.allowed is not None
    assert (draw.allowed == Utf8State(prompt).allowed(100)).all()


def test_what_the_model_thought_of_the_end_is_kept() -> None:
    target, score = row(), TokenScore(-1.5)
    assert target.push(EOS, score=score) == []
    assert target.end_score == score
