"""What the generate command prints: rows in turn, objects that say all, a summary in one line."""

import json
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from trainer.commands.generate import in_turn, json_line, summary
from trainer.generation.piece import Piece, Statistics


def pieces_of(data: bytes, prompt: int = 0) -> list[Piece]:
    """Every second byte begins a patch; byte i has an entropy of i / 4."""
    return [Piece(bytes((byte,)), i % 2 == 0, i / 4, from_prompt=i < prompt) for i, byte in enumerate(data)]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_rows_of_a_batch_come_in_turn_with_their_pieces_in_order(order: list[int]) -> None:
    written = [(row, Piece(bytes((number,)), False)) for number, row in enumerate(order)]
    found = [list(pieces) for pieces in in_turn(iter(written), 4)]
    assert found == [[piece for row, piece in written if row == number] for number in range(4)]


def test_the_first_row_comes_as_it_is_written() -> None:
    taken: list[int] = []

    def writing() -> Iterator[tuple[int, Piece]]:
        for number, row in enumerate((0, 1, 0)):
            taken.append(number)
            yield row, Piece(b"x", False)

    first = next(in_turn(writing(), 2))
    next(first)
    assert taken == [0]
    next(first)
    assert taken == [0, 1, 2]


def test_an_object_holds_texts_starts_entropies_and_why_it_ended() -> None:
    line = json_line(pieces_of("né\n".encode(), prompt=1), "stop")
    assert "\n" not in line
    assert "é" in line
    assert json.loads(line) == {
        "prompt": "n",
        "text": "é\n",
        "ended": "stop",
        "starts": [True, False, True, False],
        "entropy": [0.0, 0.25, 0.5, 0.75],
    }


@given(st.binary(max_size=12), st.integers(0, 12))
def test_the_bytes_can_be_had_back_from_an_object_whatever_they_are(data: bytes, prompt: int) -> None:
    found = json.loads(json_line(pieces_of(data, prompt), "length"))
    for name, part in (("prompt", data[:prompt]), ("text", data[prompt:])):
        assert found[name] == part.decode("utf-8", "replace")
        hexed = found.get(f"{name}_hex")
        assert (found[name].encode() if hexed is None else bytes.fromhex(hexed)) == part


def test_entropies_that_are_missing_or_no_numbers_are_null() -> None:
    pieces = [Piece(b"a", True, None), Piece(b"b", False, float("nan")), Piece(b"c", False, 0.123456789)]
    assert json.loads(json_line(pieces, "length"))["entropy"] == [None, None, 0.123457]


def test_the_summary_says_what_there_was() -> None:
    whole = Statistics(bytes=1000, patches=250, global_forwards=240, drafted=200, accepted=150)
    assert summary(whole, ["length", "stop", "length"], 2.0) == (
        "1,000 bytes, 500.0 bytes/s, 250 patches, 4.00 bytes a patch, 240 global forwards, "
        "75.0% of 200 drafted bytes accepted; ended: 2 length, 1 stop"
    )
    assert summary(Statistics(bytes=3), ["end of document"], 1.0) == "3 bytes, 3.0 bytes/s; ended: end of document"
    assert summary(Statistics(), ["length"], 0.0).startswith("0 bytes, 0.0 bytes/s")
