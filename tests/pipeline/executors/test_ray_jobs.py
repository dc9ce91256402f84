"""Jobs on a head that was started with ``ray start``: exit codes, tokens, the code that travels, metrics."""

import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.pipeline_helpers import preprocess, shard_hashes, some_records, write_jsonl
from helpers.ray_helpers import Head, ray_head

ROOT = Path(__file__).parents[3]
SUBMIT = ROOT / "infra" / "submit.sh"
SPACE = ("--rule", "space", "--split-bytes", 9000)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    """A head with two CPUs on which any `pipeline` but the one that a job brings along is broken."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").write_text("raise ImportError('not the code that was sent')")
    with ray_head(
        "--num-cpus", "2", "--system-config", '{"metrics_report_interval_ms": 500}', PYTHONPATH=str(folder)
    ) as head:
        yield head


def submitted(head: Head, *arguments: object) -> subprocess.Popen:
    line = [str(part) for part in (SUBMIT, *arguments)]
    return subprocess.Popen(line, env=head.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def exported(head: Head) -> dict[str, float]:
    """Sums over all processes of our metrics, by name and state."""
    try:
        with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}  # the agent that exports them is still starting
    found: dict[str, float] = {}
    for line in lines:
        if (match := re.match(r"ray_(patchwork_\w+)\{(.*)\} (\S+)$", line)) is not None:
            state = re.search(r'[Ss]tate="(\w+)"', match[2])
            name = match[1] + (f" {state[1]}" if state else "")
            found[name] = found.get(name, 0) + float(match[3])
    return found


def ended(job: subprocess.Popen) -> tuple[int, str]:
    """Exit code of a submission and what it said."""
    said, _ = job.communicate(timeout=600)
    return job.returncode, said


class Submitted(NamedTuple):
    """A job that has ended, with what was exported of it meanwhile, and one whose command is wrong."""

    folder: Path
    seen: dict[str, float]
    job: tuple[int, str]
    wrong: tuple[int, str]


@pytest.fixture(scope="module")
def jobs(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    folder = tmp_path_factory.mktemp("jobs")
    corpus = write_jsonl(folder / "a.jsonl", [*some_records(8000), {"no": "text"}])
    wrong = submitted(head, corpus, "--out", folder / "wrong", "--rule", "static")
    job = submitted(head, corpus, "--out", folder / "job", *SPACE)
    seen: dict[str, float] = {}
    while job.poll() is None and seen.get("patchwork_splits_total done", 0) < 1:
        seen = exported(head)
        time.sleep(0.1)
    return Submitted(folder, seen, ended(job), ended(wrong))


@pytest.mark.drill
def test_a_job_counts_for_prometheus_while_it_runs(jobs: Submitted) -> None:
    assert jobs.seen["patchwork_splits_total done"] >= 1
    assert jobs.seen["patchwork_documents_total"] >= 1


@pytest.mark.drill
def test_a_job_ends_with_the_code_of_the_pipeline(jobs: Submitted) -> None:
    code, said = jobs.job
    assert code == 3, said  # a dead letter
    assert "exit code 3" in said


@pytest.mark.drill
def test_a_job_writes_the_same_bytes(jobs: Submitted) -> None:
    here = ("--out", jobs.folder / "here", *SPACE, "--executor", "inline")
    assert preprocess(jobs.folder / "a.jsonl", *here) == 3
    assert shard_hashes(jobs.folder / "job") == shard_hashes(jobs.folder / "here")


@pytest.mark.drill
def test_a_job_whose_command_is_wrong_names_the_setting(jobs: Submitted) -> None:
    code, said = jobs.wrong
    assert code == 2, said
    assert "rule 'static' needs stride" in said


@pytest.mark.slow
def test_a_job_that_is_fine_and_one_with_a_failed_split_say_so_too(head, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(60))
    assert preprocess(corpus, "--out", tmp_path / "raw", "--rule", "none", "--executor", "inline") == 0
    (shard,) = (tmp_path / "raw" / "train").glob("*.arrow")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    fine = submitted(head, corpus, "--out", tmp_path / "fine", *SPACE)
    failed = submitted(head, tmp_path / "raw", "--out", tmp_path / "failed", *SPACE)
    for job, wanted in ((fine, 0), (failed, 1)):
        code, said = ended(job)
        assert code == wanted, said


@pytest.mark.drill
def test_without_the_token_there_is_one_line_and_no_job(head):
    for missing in ("RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        environment = {**head.environment, missing: "/nowhere" if "PATH" in missing else "http://127.0.0.1:1"}
        line = [str(SUBMIT), "x", "--out", "y"]
        result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 2
        assert result.stderr.startswith(f"submit: {environment['RAY_API_SERVER_ADDRESS']}: ")
        assert result.stderr.count("\n") == 1
