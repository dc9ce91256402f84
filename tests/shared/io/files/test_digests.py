"""What two identities differ in."""

from shared.io.files.digests import differences, digest


def test_digests_are_shown_by_their_first_digits() -> None:
    one, two = digest("one"), digest("two")
    assert differences({"model": {"sha256": one}}, {"model": {"sha256": two}}) == [
        f"model.sha256: recorded '{one[:12]}'..., now '{two[:12]}'..."
    ]


def test_what_is_equal_is_left_out() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}) == ["b.c: recorded 2, now 3"]
