"""What is shown: whole characters only, patches where they begin, colours that end."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.generation.piece import Piece
from trainer.generation.text import PATCH_COLOURS, RESET, PatchStyle, characters, text_of, visible

ANY = st.binary(max_size=16) | st.tuples(st.text(max_size=12), st.binary(max_size=3)).map(
    lambda parts: parts[0].encode("utf-8", "replace") + parts[1]
)


def pieces_of(data: bytes, starts: set[int] | None = None, prompt: int = 0) -> list[Piece]:
    """Bytes with patches that begin at some places, the first ones from the prompt."""
    return [
        Piece(bytes((byte,)), place in (starts or set()), from_prompt=place < prompt) for place, byte in enumerate(data)
    ]


@given(ANY)
def test_no_half_character_is_shown_and_what_is_not_utf8_is_replaced(data: bytes) -> None:
    assert "".join(text_of(pieces_of(data))) == data.decode("utf-8", "replace")
    shown = list(characters(pieces_of(data)))
    assert all(len(text) == 1 for text, _ in shown)
    assert b"".join(piece.byte for _, of in shown for piece in of) == data


@given(ANY)
def test_a_character_is_shown_as_soon_as_its_last_byte_has_come(data: bytes) -> None:
    """Nothing that the next byte cannot change waits for it."""
    for text, of in characters(iter(pieces := pieces_of(data))):
        assert text == b"".join(piece.byte for piece in of).decode("utf-8", "replace")
    taken = []
    for text, of in characters(piece for piece in pieces if not taken.append(piece)):  # type: ignore[func-returns-value]
        if text != "\ufffd":
            assert taken[-1] is of[-1]


@settings(deadline=None)
@given(ANY, st.sets(st.integers(0, 60)), st.integers(0, 20))
def test_marks_and_colours_add_nothing_to_the_text_but_themselves(data: bytes, starts: set[int], prompt: int) -> None:
    pieces = pieces_of(data.replace(b"|", b"").replace(b"\x1b", b""), starts, prompt)
    plain = "".join(text_of(pieces))
    assert "".join(text_of(pieces, "marks")).replace("|", "") == plain
    coloured = "".join(text_of(pieces, "colours"))
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert not coloured or coloured.endswith((RESET, "\n"))
    for line in coloured.split("\n")[:-1]:
        assert "\x1b" not in line or line.endswith(RESET)


def marked(data: bytes, starts: set[int]) -> str:
    return "".join(text_of(pieces_of(data, starts), "marks"))


def test_patches_are_set_apart() -> None:
    assert marked(b"abc", {0, 2}) == "|ab|c"


def test_a_patch_that_begins_inside_a_character_is_marked_before_it_once() -> None:
    data = "a€b".encode()
    for inside in ({1}, {2}, {3}, {2, 3}, {1, 2, 3}):
        assert marked(data, {0} | inside) == "|a|€b"
    assert marked(data, {0, 4}) == "|a€|b"


def test_a_mark_stands_between_a_character_that_was_cut_off_and_the_next() -> None:
    assert marked(b"\xe2\x82a", {0, 2}) == "|\ufffd|a"
    assert marked(b"\xe2\x82a", {1}) == "|\ufffda"
    assert marked(b"\xff\xffa", {1}) == "\ufffd|\ufffda"


def test_colours_change_with_the_patch_and_the_prompt_is_dim() -> None:
    first, second = PATCH_COLOURS
    shown = "".join(text_of(pieces_of("aé\nbcd".encode(), {0, 1, 2, 5}, prompt=5), "colours"))
    assert shown == (
        f"\x1b[2;{first}ma"
        f"{RESET}\x1b[2;{second}mé"  # two patches begin in it, and it still differs from its neighbour
        f"{RESET}\n"
        f"\x1b[2;{second}mb"
        f"{RESET}\x1b[{first}mcd{RESET}"
    )


def test_a_character_that_the_prompt_begins_is_shown_as_what_finishes_it() -> None:
    shown = "".join(text_of(pieces_of("é".encode(), {0}, prompt=1), "colours"))
    assert shown == f"\x1b[{PATCH_COLOURS[0]}mé{RESET}"


@pytest.mark.parametrize("patches", ["none", "marks", "colours"])
def test_no_text_steers_a_terminal(patches: PatchStyle) -> None:
    data = "tab\tline\nbell\x07 escape\x1b[31m return\r delete\x7f csi\u009b".encode()
    shown = "".join(text_of(pieces_of(data), patches, terminal=True))
    shown = re.sub(r"\x1b\[(0|30;47|30;46)m", "", shown)
    assert shown == "tab\tline\nbell␇ escape␛[31m return␍ delete␡ csi\ufffd"
    assert "".join(text_of(pieces_of(data))) == data.decode()


def test_only_control_characters_are_made_visible() -> None:
    changed = {code for code in range(0x3000) if visible(chr(code)) != chr(code)}
    reordering = {0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
    assert changed == (set(range(0x20)) - {9, 10}) | set(range(0x7F, 0xA0)) | reordering
