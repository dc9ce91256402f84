"""Well-formed UTF-8 byte by byte: what Python's strict decoder accepts, and how a text that is not goes on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.vocabulary import EOS, OFFSET, VOCABULARY_SIZE
from trainer.generation.utf8 import Utf8State

ENCODED = st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace"))
# Bytes near the limits of the ranges, so that overlong forms, surrogates and what is too large come often.
EDGES = st.lists(st.sampled_from([0x41, 0x7F, *range(0x80, 0xC4, 0x0F), *range(0xBF, 0xC3), *range(0xDF, 0x100)]))
ANY = st.binary(max_size=12) | EDGES.map(bytes) | st.tuples(ENCODED, EDGES.map(bytes)).map(b"".join)


def is_prefix_of_utf8(data: bytes) -> bool:
    """Whether some well-formed text begins with these bytes, asked of Python's decoder."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


@given(ANY)
def test_a_byte_is_accepted_where_pythons_strict_decoder_accepts_it(data: bytes) -> None:
    state = Utf8State()
    for place, byte in enumerate(data):
        begun = data[:place]
        assert state.complete == (begun.decode("utf-8", "ignore").encode() == begun)
        if not is_prefix_of_utf8(data[: place + 1]):
            assert not state.accepts(byte)
            return
        assert state.accepts(byte)
        state.push(byte)


def test_every_character_is_accepted_and_nothing_else_is() -> None:
    """All sequences of two bytes, and each of them before 80 and BF: every limit of the table of RFC 3629."""
    for lead in range(256):
        for second in range(256):
            for rest in (b"", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\xbf"):
                data, state, accepted = bytes((lead, second)) + rest, Utf8State(), True
                for byte in data:
                    accepted = accepted and state.accepts(byte)
                    state.push(byte)
                assert accepted == is_prefix_of_utf8(data), data
    for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF):
        assert Utf8State(chr(code).encode()).complete


@settings(deadline=None)
@given(ANY)
def test_after_bytes_that_are_not_utf8_it_goes_on_as_the_replacing_decoder_does(data: bytes) -> None:
    """An unfinished character at the end, one U+FFFD so far, is all that one more byte can change."""
    state = Utf8State(data)
    whole = data.decode("utf-8", "replace")
    for byte in range(256):
        followed = (data + bytes((byte,))).decode("utf-8", "replace")
        if state.complete or not state.accepts(byte):
            assert followed == whole + bytes((byte,)).decode("utf-8", "replace")
        else:
            assert whole.endswith("\ufffd")
            assert followed[:-1] == whole[:-1]


@given(ANY)
def test_allowed_ids_are_the_accepted_bytes_and_eos_between_characters(data: bytes) -> None:
    state = Utf8State(data)
    allowed = state.allowed()
    assert allowed.shape == (VOCABULARY_SIZE,)
    assert allowed[OFFSET:].tolist() == [state.accepts(byte) for byte in range(256)]
    assert np.flatnonzero(allowed[:OFFSET]).tolist() == ([EOS] if state.complete else [])
    with pytest.raises(ValueError, match="read-only"):
        allowed[EOS] = True


@settings(deadline=None)
@given(ENCODED, st.integers(0, 12), st.integers(0, 2**31))
def test_what_is_allowed_with_little_room_left_is_whole_characters(prompt: bytes, length: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    state, text = Utf8State(prompt), prompt
    for written in range(length):
        byte = int(draws.choice(np.flatnonzero(state.allowed(length - written)[OFFSET:])))
        text += bytes((byte,))
        state.push(byte)
    assert state.complete
    text.decode("utf-8")


def test_a_character_is_begun_and_gone_on_with_only_if_it_will_be_whole() -> None:
    for code in (0x41, 0xE9, 0x800, 0xD000, 0x20AC, 0x10000, 0x40000, 0x10FFFF):
        data = chr(code).encode()
        for place, byte in enumerate(data):
            state, needed = Utf8State(data[:place]), len(data) - place
            for room in range(1, 6):
                # Inside a character that cannot be finished any more, what would finish it is allowed all the same.
                assert state.allowed(room)[OFFSET + byte] == (room >= needed or place > 0), (code, place, room)


def test_a_prompt_that_ends_inside_a_character_has_it_finished_first_even_without_room() -> None:
    state = Utf8State("€".encode()[:1])
    assert np.flatnonzero(state.allowed()[OFFSET:]).tolist() == list(range(0x80, 0xC0))
    assert state.allowed(1).tolist() == state.allowed().tolist()
    assert Utf8State(b"\xff").complete
    assert Utf8State(b"\xe2A").complete
    assert not Utf8State(b"\xe2\xc3").complete
