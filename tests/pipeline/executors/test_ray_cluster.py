"""Runs on clusters of several nodes on this machine: nodes that join, nodes that die, a driver that is killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from helpers.pipeline_helpers import preprocess, shard_hashes, some_records, write_jsonl
from helpers.ray_helpers import ray_head
from ray.cluster_utils import Cluster

import pipeline.executors.ray as ray_executor
from pipeline.executors import ray_cluster
from pipeline.executors.ray import require_shared
from pipeline.files import Files, SourceFile
from pipeline.plan import Plan
from pipeline.settings import Job, OutputSettings, PipelineError, ReadSettings
from pipeline.splits.run_file import RunFile, plan_digest
from pipeline.stamp import Stamp
from shared.errors import ModelFileError
from shared.model_folder.files import build_model, load_model, save_model
from shared.model_folder.identity import model_sha256, pack_model
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise
from shared.patching import PatchingSettings

OBJECT_STORE = {"object_store_memory": 128 * 2**20}
SPACE = ("--rule", "space", "--split-bytes", 9000)
# A dead node is noticed within two seconds, not fifteen.
WATCHFUL = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that does no splits, to which the tests add nodes."""
    options = {"num_cpus": 0, "include_dashboard": False, "_system_config": WATCHFUL, **OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    yield cluster
    cluster.shutdown()


def with_nodes(cluster: Cluster, count: int) -> None:
    """Let the cluster have so many nodes of one CPU beside its head."""
    while len(cluster.worker_nodes) < count:
        cluster.add_node(num_cpus=1, **OBJECT_STORE)
    while len(cluster.worker_nodes) > count:
        kill_node(cluster)


def kill_node(cluster: Cluster) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", some_records(2000))


@pytest.fixture(scope="module")
def quiet(corpus) -> Path:
    """The undisturbed run, without Ray."""
    out = corpus.parent / "quiet"
    assert preprocess(corpus, "--out", out, *SPACE, "--executor", "inline", "--workers", 1) == 0
    return out


def started(corpus: Path, out: Path, *options: object, environment: Mapping[str, str] = os.environ) -> subprocess.Popen:
    line = [sys.executable, "-m", "pipeline", "preprocess", corpus, "--out", out, *SPACE, *options]
    return subprocess.Popen([str(part) for part in line], env=environment, stdout=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def markers(out: Path) -> int:
    return len(list(out.glob("splits/*.json")))


def actors() -> dict[int, int]:
    """Process id of each Ray worker of a run on our cluster -> that of its node's daemon.

    Other tests may run on this machine at the same time: what we have started has our token.
    """
    found, token = {}, os.environ["RAY_AUTH_TOKEN"].encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                    daemon = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if token in Path(f"/proc/{daemon}/environ").read_bytes():
                        found[int(entry.name)] = daemon
            except OSError:
                continue
    return found


@pytest.mark.drill
def test_two_nodes_write_what_one_process_writes_and_need_no_model_folder(cluster, tmp_path, monkeypatch):
    corpus, model = write_jsonl(tmp_path / "a.jsonl", some_records(200, words=12)), tmp_path / "model"
    settings = EntropyModelSettings(width=32, layers=2, heads=2, window=64, feed_forward=64)
    network = build_model(settings)
    initialise(network, 1)
    save_model(network, settings, model)
    scoring = (
        "--rule",
        "entropy",
        "--theta",
        5.5,
        "--entropy-model",
        model,
        "--stream-length",
        512,
        "--split-bytes",
        2000,
    )
    assert preprocess(corpus, "--out", tmp_path / "one", *scoring, "--executor", "inline", "--workers", 1) == 0

    def pack_and_hide(folder):
        packed = pack_model(folder)
        model.rename(tmp_path / "hidden")
        return packed

    with_nodes(cluster, 2)
    monkeypatch.setattr(ray_executor, "pack_model", pack_and_hide)
    daemons: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            daemons.update(actors().values())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert preprocess(corpus, "--out", tmp_path / "two", *scoring, "--ray-address", cluster.address) == 0
    finally:
        over.set()
        watcher.join()
    assert not model.exists()
    assert len(daemons) == 2
    assert shard_hashes(tmp_path / "two") == shard_hashes(tmp_path / "one")


@pytest.mark.drill
def test_nodes_that_die_are_survived_and_one_that_joins_is_used(cluster, corpus, quiet, tmp_path):
    with_nodes(cluster, 1)
    process = started(corpus, tmp_path / "out", "--ray-address", cluster.address)
    wait_until(lambda: markers(tmp_path / "out") >= 3 or process.poll() is not None)
    kill_node(cluster)
    assert markers(tmp_path / "out") < markers(quiet)
    with_nodes(cluster, 1)  # only this one is there to finish the work
    assert process.wait(600) == 0
    assert shard_hashes(tmp_path / "out") == shard_hashes(quiet)


@pytest.mark.slow
def test_workers_of_a_killed_driver_end_by_themselves(cluster, corpus, quiet, tmp_path):
    with_nodes(cluster, 2)
    out = tmp_path / "out"
    process = started(corpus, out, "--ray-address", cluster.address)
    wait_until(lambda: markers(out) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not actors())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    time.sleep(1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert preprocess(corpus, "--out", out, *SPACE, "--ray-address", cluster.address) == 0
    assert shard_hashes(out) == shard_hashes(quiet)


@pytest.mark.slow
def test_an_autoscaling_cluster_grows_for_the_run(corpus, quiet, tmp_path):
    worker_kind = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    head_kind = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "patchwork",
        "provider": {"type": "fake_multinode"},
        "max_workers": 2,
        "available_node_types": {"ray.head.default": head_kind, "cpu": worker_kind},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10,
        "idle_timeout_minutes": 5,
        **{key: {} for key in ("auth", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{f"{kind}_commands": [] for kind in ("setup", "head_setup", "worker_setup")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
        "file_mounts_sync_continuously": False,
    }
    (tmp_path / "cluster.json").write_text(json.dumps(config))
    options = ("--num-cpus", "0", "--autoscaling-config", str(tmp_path / "cluster.json"))
    # Nodes of the provider for tests look for their head at Ray's own port.
    with ray_head(*options, port=6379, AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1") as head:
        process = started(corpus, tmp_path / "out", "--ray-address", head.address, environment=head.environment)
        assert process.wait(600) == 0  # done by nodes that were not there before
    assert shard_hashes(tmp_path / "out") == shard_hashes(quiet)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines whose GPU is a claim")
def test_a_gpu_that_is_only_claimed_is_named_and_the_cpus_can_be_chosen(cluster, tmp_path, capsys):
    corpus, model = write_jsonl(tmp_path / "a.jsonl", some_records(5)), tmp_path / "model"
    settings = EntropyModelSettings(width=32, layers=1, heads=2, window=64, feed_forward=64)
    network = build_model(settings)
    initialise(network, 1)
    save_model(network, settings, model)
    cluster.add_node(num_cpus=2, num_gpus=1, **OBJECT_STORE)
    scoring = ("--rule", "entropy", "--theta", 5.5, "--entropy-model", model, "--stream-length", 512)
    options = (corpus, "--out", tmp_path / "out", *scoring, "--ray-address", cluster.address)
    assert preprocess(*options, "--gpus-per-worker", 0.5) == 2
    assert f"on {socket.gethostname()} PyTorch finds no GPU; use --device cpu" in capsys.readouterr().err
    assert preprocess(*options, "--device", "cpu") == 0


# ---- what is checked before a split is begun


def test_a_node_without_the_folder_or_the_input_is_named(tmp_path):
    file = SourceFile(root=str(tmp_path / "input"), path="a", kind="text", stamp=Stamp(1), span=1)
    plan = Plan(Files.of([file]), split_bytes=1)
    digest, roots = plan_digest(plan), plan.files.roots
    job = Job(
        out=tmp_path / "out", reading=ReadSettings(), output=OutputSettings(patching=PatchingSettings(rule="byte"))
    )
    job.out.mkdir()
    with pytest.raises(PipelineError, match=r"node n7 .*/out/run.json .*--out"):
        require_shared(job, digest, roots, "n7")
    RunFile(identity={}, plan=plan).save(job.out)
    with pytest.raises(PipelineError, match=r"node n7 .*/input"):
        require_shared(job, digest, roots, "n7")
    (tmp_path / "input").mkdir()
    require_shared(job, digest, roots, "n7")
    with pytest.raises(PipelineError, match="node n7"):
        require_shared(job, "0", roots, "n7")


def test_a_packed_model_is_the_model(tmp_path):
    settings = EntropyModelSettings(width=32, layers=1, heads=2, window=64, feed_forward=64)
    network = build_model(settings)
    initialise(network, 3)
    save_model(network, settings, tmp_path / "m")
    packed, sha256 = pack_model(tmp_path / "m"), model_sha256(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    assert packed.sha256 == sha256
    for name, tensor in load_model(packed).state_dict().items():
        assert tensor.equal(network.state_dict()[name])
    packed.weights[:8] = 255
    assert packed.sha256 != sha256
    with pytest.raises(ModelFileError, match=r"m/model\.safetensors is not a whole safetensors file"):
        load_model(packed)
    with pytest.raises(ModelFileError, match="m does not exist"):
        pack_model(tmp_path / "m")


def test_a_model_that_changed_since_the_run_began_is_refused(tmp_path, monkeypatch, capsys):
    corpus, settings = (
        write_jsonl(tmp_path / "a.jsonl", some_records(5)),
        EntropyModelSettings(width=32, layers=1, heads=2, window=64, feed_forward=64),
    )
    network = build_model(settings)
    save_model(network, settings, tmp_path / "m")

    def swapped(folder):
        initialise(network, 9)
        save_model(network, settings, folder)
        return pack_model(folder)

    monkeypatch.setattr(ray_executor, "pack_model", swapped)
    options = ("--rule", "entropy", "--theta", 1, "--entropy-model", tmp_path / "m")
    assert preprocess(corpus, "--out", tmp_path / "out", *options) == 2
    assert "m is not the model that was recorded" in capsys.readouterr().err


def test_ray_leaves_sigterm_to_the_program_and_no_alarm_behind() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with ray_cluster._our_handlers():
        ray_cluster.ray_utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) == handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as its compiled part does
        signal.alarm(60)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.alarm(0) == 0
