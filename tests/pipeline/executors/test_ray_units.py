"""Units of work as tasks of Ray: the same results, lost workers tried again, errors as they are."""

import os
from pathlib import Path

import pytest
from helpers.dataset_examples import SPACE, documents, save_dataset
from helpers.rewriting_examples import files, run
from helpers.target_examples import teacher_folder

from pipeline.executors.units import each
from pipeline.rewriting.rewrite import _write_here
from pipeline.settings import PipelineError, RayWorkers

pytestmark = pytest.mark.drill


def test_targets_made_on_ray_have_the_same_bytes(tmp_path: Path) -> None:
    save_dataset(tmp_path / "data", documents(SPACE), SPACE)
    line = ("targets", tmp_path / "data", "--teacher", teacher_folder(tmp_path / "t"), "--out")
    assert run(*line, tmp_path / "inline", "--workers", 1) == 0
    assert run(*line, tmp_path / "ray", "--workers", 2, "--executor", "ray") == 0
    assert files(tmp_path / "ray") == files(tmp_path / "inline")


def test_a_lost_worker_is_replaced_and_errors_are_those_of_the_function(tmp_path: Path) -> None:
    def squared(number: int) -> int:
        if number == 5:
            raise PipelineError("no square of 5")
        attempts = tmp_path / str(number)
        attempts.write_bytes(attempts.read_bytes() + b"x" if attempts.exists() else b"x")
        if number == 7 or (number == 2 and attempts.stat().st_size < 3):
            os._exit(1)
        return number**2

    assert dict(each(squared, range(4), RayWorkers(most=2))) == {0: 0, 1: 1, 2: 4, 3: 9}
    with pytest.raises(PipelineError, match="no square of 5"):
        list(each(squared, [5], RayWorkers(most=1)))
    with pytest.raises(PipelineError, match="lost a worker 3 times"):
        list(each(squared, [7], RayWorkers(most=1)))
    assert (tmp_path / "7").stat().st_size == 3


def test_a_node_that_does_not_see_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"does not see .*unfinished"):
        _write_here(None, tmp_path / ".out.unfinished", 0)  # type: ignore[arg-type]
