"""A cluster whose machines share nothing but an object store."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.pipeline_helpers import preprocess, shard_hashes, some_records
from helpers.ray_helpers import RAY, Head, ray_head
from helpers.store_runs import remote_hashes

from shared.io.stores.store import open_store
from shared.model_folder.files import build_model, save_model
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise

pytestmark = pytest.mark.drill


@contextmanager
def node_without(hidden: Path, head: Head, variables: dict[str, str]) -> Iterator[int]:
    """A second node in a mount namespace of its own, where a folder is empty; its process."""
    ray = " ".join([*RAY, "start", "--address", head.address, "--block", "--num-cpus", "1", "--disable-usage-stats"])
    script = (
        f"mount --make-rprivate / && mount -t tmpfs none '{hidden}' && exec {ray} --object-store-memory {128 * 2**20}"
    )
    line = ["unshare", "--mount", "bash", "-c", script]
    log = hidden.with_suffix(".log").open("wb")
    process = subprocess.Popen(line, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def seen_by(process: int, path: Path) -> bool:
    """Whether a process sees a file, in its own view of all mounts."""
    return Path(f"/proc/{process}/root{path}").exists()


def test_a_node_that_cannot_see_the_drivers_files_writes_the_same_bytes(bucket: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a mount namespace")
    hidden = tmp_path / "driver"
    hidden.mkdir()
    store = open_store(bucket)
    for number in range(2):
        lines = "".join(f'{{"id": "{r["id"]}", "text": "{r["text"]}"}}\n' for r in some_records(60, words=12))
        store.put(f"in/{number}.jsonl", lines.encode())
    settings = EntropyModelSettings(width=32, layers=2, heads=2, window=64, feed_forward=64)
    model = build_model(settings)
    initialise(model, 1)
    save_model(model, settings, hidden / "model")
    options = ("--rule", "entropy", "--theta", 5.5, "--entropy-model", hidden / "model", "--stream-length", 256)
    options = (f"{bucket}/in", *options, "--split-bytes", 4000)
    assert preprocess(*options, "--out", tmp_path / "quiet", "--executor", "inline", "--workers", 1) == 0

    with ray_head("--num-cpus", "0") as head:
        variables = head.environment | {"TMPDIR": str(hidden), "RAY_ADDRESS": head.address}
        with node_without(hidden, head, head.environment) as node:
            deadline = time.monotonic() + 120
            while seen_by(node, hidden / "model"):  # until the node has its own view
                assert time.monotonic() < deadline
                time.sleep(0.1)
            line = [sys.executable, "-m", "pipeline", "preprocess", *options, "--out", f"{bucket}/out"]
            done = subprocess.run(
                [str(word) for word in line], env=variables, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr
            assert (hidden / "model").exists()
            assert not seen_by(node, hidden / "model")
    assert remote_hashes(f"{bucket}/out") == shard_hashes(tmp_path / "quiet")
