"""What a text says of a place: a path, or a URL, however its scheme is written; never a folder `s3:` by mistake."""

from pathlib import Path

import pytest

from shared.io.stores.locations import local_path, location_of, path_of, without_secrets


@pytest.mark.parametrize("text", ["s3:/bucket/x", "s3:bucket/x", "S3:/bucket/x", "gs:/bucket/x", "az:/c/x", "file:/x"])
@pytest.mark.parametrize("read", [local_path, location_of, path_of])
def test_a_url_that_lacks_a_slash_is_refused(read: object, text: str) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match="://"):
        read(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("S3://Bucket/X", "s3://Bucket/X"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("FILE:///A", Path("/A")),
        ("./s3:/x", Path("s3:/x")),
        ("s3/x", Path("s3/x")),
        ("a:/x", Path("a:/x")),
    ],
)
def test_a_place_is_a_url_or_a_path(text: str, place: Path | str) -> None:
    assert location_of(text) == place


def test_a_misspelt_url_shows_no_password() -> None:
    with pytest.raises(ValueError, match="misspelt") as caught:
        location_of("s3:/user:hush-hush@bucket/x")
    assert "hush" not in str(caught.value)


def test_a_password_is_found_whatever_the_case() -> None:
    assert "hush" not in without_secrets("S3://user:hush-hush@bucket/x S3://bucket/x?sig=hush")
