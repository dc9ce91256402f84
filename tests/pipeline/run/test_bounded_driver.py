"""What a driver holds of a run: at most 300 bytes for each input file and split (law 9)."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import bounded_driver
from helpers.pipeline_helpers import environment


@pytest.mark.parametrize(
    ("how", "few", "many"),
    [
        pytest.param("traced", 2000, 8000, marks=pytest.mark.drill),
        pytest.param("resident", 6000, 26_000, marks=pytest.mark.slow),
    ],
)
def test_a_driver_holds_less_than_300_bytes_for_each_file_with_its_split(
    tmp_path: Path, how: str, few: int, many: int
) -> None:
    def most(count: int, again: int) -> int:
        folder = tmp_path / f"{count}-{again}"
        folder.mkdir()
        command = [sys.executable, bounded_driver.__file__, folder, count, how]
        return int(subprocess.run([*map(str, command)], check=True, capture_output=True, env=environment()).stdout)

    # What is resident depends on the moment at which the system takes pages back, by more than a tenth.
    assert any((most(many, again) - most(few, again)) / (many - few) < 300 for again in range(3))
