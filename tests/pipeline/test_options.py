"""Options of commands that stand for keys of settings."""

import pytest

from pipeline.__main__ import main


@pytest.mark.parametrize(
    ("option", "value"), [("--workers", "0"), ("--validation-fraction", "3"), ("--sample-bytes", "0")]
)
def test_a_wrong_value_is_named_with_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out") / "run"
    assert main(["preprocess", __file__, "--rule", "space", "--out", str(out), option, value]) == 2
    assert f"error: {option}: " in capsys.readouterr().err
    assert not out.exists()
