"""Bounded reading: size, kind of file, and JSON that would choke a parser."""

import os
import tracemalloc
from pathlib import Path

import pytest

from shared.io.files.json_reader import parse_json, read_bounded, read_json


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": [1, 2.5, "x"]}')
    assert read_json(path, 20) == {"a": [1, 2.5, "x"]}
    with pytest.raises(OSError, match=r"larger than 19 bytes.*a\.json"):
        read_bounded(path, 19)


def test_nothing_of_a_file_that_is_too_large_is_read_and_one_that_fits_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(bytes(8 << 20))
    tracemalloc.start()
    with pytest.raises(OSError, match="larger than"):
        read_bounded(path, (8 << 20) - 1)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert len(read_bounded(path, 8 << 20)) == 8 << 20
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
    tracemalloc.stop()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=str(path)):
            read_bounded(path)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "missing")


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("a")
    assert read_bounded(tmp_path / "link") == b"1"
    with pytest.raises(OSError, match="link"):
        read_bounded(tmp_path / "link", follow=False)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"NaN",
        b"[Infinity]",
        b"\xff",
        b'"\\ud800"',
        b"",
        b'{"a": [1, -1e999]}',
        b"9" * 300 + b"e9",
    ],
    ids=["lists", "objects", "digits", "nan", "infinity", "bytes", "surrogate", "empty", "exponent", "large"],
)
def test_hostile_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"line 1|EOF|too large for 64 bits"):
        parse_json(content)


def test_large_numbers_that_are_finite_are_numbers() -> None:
    assert parse_json(b'[1e308, 1E+0300, "1e999"]') == [1e308, 1e300, "1e999"]
    assert parse_json("9" * 400) == int("9" * 400)
    assert parse_json("[1e999]", finite=False) == [float("inf")]
