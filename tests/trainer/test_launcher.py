"""trainer/launch.py: torchrun whose own pages do not follow the line that a rank has said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import quiet_environment

from trainer.launch import main, unsaid

ROOT = Path(__file__).parents[2]


class Failure:
    """What torchrun tells of a rank that failed."""

    local_rank = 1

    def __init__(self, exitcode: int, error_file: str) -> None:
        self.exitcode, self.error_file = exitcode, error_file

    def signal_name(self) -> str:
        return "SIGKILL"


@pytest.mark.parametrize(("failure", "said"), [(Failure(-9, "<N/A>"), True), (Failure(1, "/a/error.json"), False)])
def test_only_what_a_rank_could_not_say_is_said_for_it(failure, said):
    line = unsaid(failure)
    assert (line is not None) == said
    if line is not None:
        assert "rank 1" in line
        assert "SIGKILL" in line


def test_an_option_that_torchrun_does_not_know_is_its_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-option"])
    assert ended.value.code == 2


def test_an_error_of_the_ranks_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "trainer/launch.py"), "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "trainer/main.py"), str(ROOT / "trainer/recipes/entropy-small.toml")]
    command += ["--data.path", str(tmp_path / "nosuch"), "--run.out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **quiet_environment()}, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("patchwork: error: ")
    assert "nosuch" in line
