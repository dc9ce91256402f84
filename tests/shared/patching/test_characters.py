"""Patches that keep characters whole: of valid text always; of any bytes within max_length, and decided by the past."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.patching.characters import awaited_after, awaited_bytes
from shared.patching.chunks import ChunkedLengths
from shared.vocabulary import OFFSET, byte_tokens, document_tokens, is_special

WIDE = "é한😀"  # 2, 3 and 4 bytes
SEQUENCES = st.sampled_from([b"\xc3", b"\xe3\x81", b"\xf0\x9f\x98", b"\x80", b"\xc3\xc3", b"\xc0", b"\xf5", b"a"])
ANY_BYTES = st.binary(max_size=80) | st.lists(SEQUENCES, max_size=40).map(b"".join)
ANY_TEXT = st.text(max_size=60) | st.text(st.sampled_from(" a" + WIDE), max_size=60)


@st.composite
def patchings(draw: st.DrawFn) -> PatchingSettings:
    longest = draw(st.integers(4, 8) | st.integers(4, 30))
    keys: dict = {"max_length": longest, "min_length": draw(st.integers(1, longest - 3)), "whole_characters": True}
    rule = draw(st.sampled_from(["byte", "static", "space", "entropy"]))
    if rule == "static":
        keys["stride"] = draw(st.integers(1, 40))
    if rule == "entropy":
        keys["theta"] = draw(st.sampled_from([0.0, 0.5, 0.9, 2.0]))
    return PatchingSettings(rule=rule, **keys)


def starts(tokens: np.ndarray, patching: PatchingSettings, seed: int = 0) -> np.ndarray:
    """Where patches start, with entropies drawn at random."""
    entropies = np.random.default_rng(seed).random(len(tokens) - 1).astype(np.float32)
    lengths = patch_lengths(tokens, patching, entropies).astype(np.int64)
    assert lengths.max() <= patching.max_length
    return np.cumsum(lengths) - lengths


def inside_characters(text: str) -> set[int]:
    """Tokens of a document that are no first byte of a character."""
    ends = accumulate((len(character.encode()) for character in text), initial=1)
    return set(range(1, len(text.encode()) + 1)) - set(ends)


def pieces(text: str, **keys) -> list[str]:
    """The text of each patch but that of BOS, when every position may be one or none is wanted at all."""
    patching = PatchingSettings(whole_characters=True, **keys)
    tokens = document_tokens(text.encode())
    ends = np.cumsum(patch_lengths(tokens, patching), dtype=np.int64).tolist()
    body = text.encode()
    return [body[begin - 1 : end - 1].decode() for begin, end in pairwise(ends)]


@given(ANY_TEXT, patchings(), st.integers(0, 99))
def test_no_patch_starts_inside_a_character(text: str, patching: PatchingSettings, seed: int) -> None:
    assert not inside_characters(text) & set(starts(document_tokens(text.encode()), patching, seed).tolist())


@given(ANY_BYTES, patchings(), st.integers(0, 99), st.data())
def test_any_bytes_with_special_ids_anywhere_stay_within_max_length(
    text: bytes, patching: PatchingSettings, seed: int, data: st.DataObject
) -> None:
    tokens = document_tokens(text)
    for _ in range(data.draw(st.integers(0, 3)) if text else 0):
        tokens[data.draw(st.integers(1, len(text)))] = data.draw(st.sampled_from([*range(OFFSET), 260, 263]))
    found = set(starts(tokens, patching, seed).tolist())
    assert {1, *(np.flatnonzero(is_special(tokens[:-1])) + 1).tolist()} <= found


@pytest.mark.parametrize("longest", range(4, 9))
@pytest.mark.parametrize("rule", [{"rule": "entropy", "theta": 9.0}, {"rule": "static", "stride": 999}])
def test_a_cut_falls_on_the_first_open_position_three_before_the_longest(longest: int, rule: dict) -> None:
    patching = PatchingSettings(max_length=longest, whole_characters=True, **rule)
    text = "aé한😀" * 9 + WIDE[::-1] * 9 + "a" * 9
    allowed = set(range(len(text.encode()) + 2)) - inside_characters(text)
    expected, last = [0, 1], 1
    for position in range(2, len(text.encode()) + 2):
        if position in allowed and position - last >= longest - 3:
            expected.append(position)
            last = position
    assert starts(document_tokens(text.encode()), patching).tolist() == expected


def test_every_character_is_a_patch_of_the_rule_byte_and_of_the_shortest_max_length() -> None:
    text = "aé한😀b"
    assert pieces(text, rule="byte") == [*text, ""]
    assert pieces(text, rule="static", stride=99, max_length=4) == [*text, ""]


def test_a_decision_inside_a_character_is_dropped_and_not_postponed() -> None:
    # wanted before every fourth byte: positions 5 and 13 lie inside characters of three bytes, 9 does not
    assert pieces("ab한한한한", rule="static", stride=4) == ["ab한한", "한한"]
    assert pieces("한" * 5, rule="static", stride=7) == ["한" * 5]


def test_a_minimum_counts_from_the_last_start_as_without() -> None:
    assert pieces("한한한한", rule="byte", min_length=4) == ["한한", "한한", ""]


def closed(text: bytes) -> list[int]:
    """Places in a text where no patch may start; len(text) is the place after it."""
    return np.flatnonzero(awaited_bytes(byte_tokens(text))).tolist()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("aéb".encode(), [2]),
        ("한".encode(), [1, 2]),
        ("😀".encode(), [1, 2, 3]),
        (b"\xf0\x9f\x98", [1, 2, 3]),  # what comes next may complete it
        (b"\xf0\x9fab", [1, 2]),  # a was expected to continue it; after it all is open
        (b"\xe3ab", [1]),
        (b"\x80\x80\x80", []),  # continue nothing
        (b"\xc0\x80\xc1\x80\xf5\x80\xff\x80", []),  # in no valid text
        (b"\xc3\xc3\xa9", [1]),  # the second lead is the offending byte of the first, and begins nothing
        (b"\xc3" * 6, [1, 3, 5]),
        (b"\xf0" * 5, [1, 3, 5]),
        (b"\xc3\xf0\x9f\x98\x80", [1]),
        (b"\xf0\x9f\xc3\xa9\xc3\xa9", [1, 2, 5]),
    ],
)
def test_closed_positions_worked_by_hand(text: bytes, places: list[int]) -> None:
    assert closed(text) == places


@given(ANY_BYTES | ANY_TEXT.map(str.encode), st.integers(0, 3), st.lists(st.integers(0, 80), max_size=3))
def test_what_is_awaited_all_at_once_is_what_is_awaited_byte_by_byte(
    text: bytes, awaited: int, specials: list[int]
) -> None:
    tokens = byte_tokens(text)
    for place in specials if text else []:
        tokens[place % len(tokens) : place % len(tokens) + 1] = 260 if place % 2 else 0
    expected = list(accumulate(tokens.tolist(), lambda left, token: awaited_after(token, left), initial=awaited))
    found = awaited_bytes(tokens, awaited)
    assert found.tolist() == expected
    longest = max(map(len, "".join("x" if left else " " for left in expected[1:]).split()), default=0)
    assert longest <= 3  # so that a cut is late by three at most


def test_a_special_id_inside_a_character_ends_its_patch_and_the_character() -> None:
    tokens = document_tokens("ab한한".encode())
    tokens[5] = 260  # instead of the last byte of the first 한
    patching = PatchingSettings(rule="byte", whole_characters=True)
    # BOS | a | b | 한 cut short, and the special id | 한 | EOS
    assert patch_lengths(tokens, patching).tolist() == [1, 1, 1, 3, 3, 1]


def test_megabytes_without_a_wanted_start_are_cut_quickly_and_in_chunks_alike() -> None:
    text = (WIDE * 120_000).encode()
    tokens = document_tokens(text)
    for longest in (4, 5, 512):
        patching = PatchingSettings(rule="static", stride=65_535, max_length=longest, whole_characters=True)
        chunked = ChunkedLengths(patching)
        parts = np.split(tokens, [1, 100_003, 100_004, 700_001])
        found = [chunked.add(part, last=number == 4) for number, part in enumerate(parts)]
        whole = patch_lengths(tokens, patching)
        np.testing.assert_array_equal(np.concatenate(found), whole)
        stream = PatchStream(patching)
        streamed = [place + 1 for place, token in enumerate(tokens[:2000].tolist()) if stream.push(token)]
        begins = np.cumsum(whole, dtype=np.int64)[: len(streamed)]
        assert begins.tolist() == streamed


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule": "none"}, "whole_characters"),
        ({"rule": "byte", "max_length": 3}, "at least 4"),
        ({"rule": "byte", "max_length": 8, "min_length": 6}, "min_length 6 is greater than 5"),
    ],
)
def test_settings_that_cannot_keep_characters_whole_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchingSettings(whole_characters=True, **keys)


def test_identities_without_it_stay_what_they_were() -> None:
    assert "whole_characters" not in PatchingSettings(rule="byte").model_dump(mode="json")
    kept = PatchingSettings(rule="entropy", theta=1.0, whole_characters=True)
    assert PatchingSettings.model_validate_json(kept.model_dump_json()) == kept
