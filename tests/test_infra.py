"""The files in infra/ are what Ray and KubeRay read, and name commands and options that exist."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from pipeline.commands.preprocess import add_arguments

INFRA = Path(__file__).parents[1] / "infra"
IMAGE = "${PATCHWORK_IMAGE}"


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load((INFRA / "kuberay-rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())


def test_the_cluster_file_fits_the_schema_of_ray(cluster):
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    assert cluster["docker"]["image"] == IMAGE
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in kinds.items() if name != cluster["head_node_type"]]
    assert any("GPU" in kind["resources"] for kind in workers)
    assert any("GPU" not in kind["resources"] for kind in workers)
    assert all(0 == kind["min_workers"] < kind["max_workers"] <= cluster["max_workers"] for kind in workers)


def test_the_cluster_asks_for_the_token_that_its_nodes_get(cluster):
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_the_start_commands_of_the_cluster_have_options_that_ray_knows(cluster, kind):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    (line,) = (line for line in cluster[f"{kind}_start_ray_commands"] if line.startswith("ray start"))
    assert {word.partition("=")[0] for word in shlex.split(line)[2:]} <= known


def test_the_job_cleans_up_after_itself_and_is_tried_again(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    assert spec["activeDeadlineSeconds"] > 86400
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True


@pytest.fixture
def groups(job) -> list[dict]:
    """The head, and the groups of workers."""
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def container_of(group: dict) -> dict:
    (container,) = group["template"]["spec"]["containers"]
    return container


def test_every_pod_of_the_job_has_the_image(groups):
    assert {container_of(group)["image"] for group in groups} == {IMAGE}


def test_every_pod_of_the_job_has_the_shared_volume(groups):
    for group in groups:
        (mount,) = container_of(group)["volumeMounts"]
        (volume,) = group["template"]["spec"]["volumes"]
        assert mount["name"] == volume["name"]
        assert "persistentVolumeClaim" in volume


def test_every_pod_of_the_job_gets_what_it_asks_for_and_one_group_gpus(groups):
    resources = [container_of(group)["resources"] for group in groups]
    assert [each["requests"] for each in resources] == [each["limits"] for each in resources]
    assert sorted("nvidia.com/gpu" in each["limits"] for each in resources[1:]) == [False, True]


def test_every_pod_of_the_job_exports_metrics_on_the_port_that_it_names(groups):
    for group in groups:
        port = next(port for port in container_of(group)["ports"] if port["name"] == "metrics")
        assert group["rayStartParams"]["metrics-export-port"] == str(port["containerPort"])


def test_workers_of_the_job_may_be_none(groups):
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups[1:])


def test_ray_of_the_job_is_the_ray_of_the_constraints(job):
    constraints = (INFRA.parent / "constraints.txt").read_text()
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in constraints


@pytest.mark.parametrize(
    ("file", "command"), [("kuberay-rayjob.yaml", "PATCHWORK_ARGUMENTS="), ("ray-cluster.yaml", "infra/submit.sh ")]
)
def test_the_examples_have_options_that_preprocess_knows(file, command):
    line = re.search(rf"#   .*{re.escape(command)}(.*)", (INFRA / file).read_text())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(shlex.split(line[1].strip('"')))
    assert str(arguments.out) == "/data/patched"


@pytest.mark.parametrize("script", ["submit.sh", "train.sh", "setup.sh"])
def test_a_script_says_how_it_is_used(script):
    nothing = subprocess.run([INFRA / script], capture_output=True, text=True)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith(f"usage: infra/{script} ")
    asked = subprocess.run([INFRA / script, "--help"], capture_output=True, text=True)
    usage, *about = asked.stdout.splitlines(keepends=True)
    assert (asked.returncode, usage, asked.stderr) == (0, nothing.stderr, "")
    assert about, "what it does and takes from the environment"
    assert "set -euo" not in asked.stdout


@pytest.mark.slow
def test_an_environment_that_was_copied_is_made_anew_and_the_original_left_alone(tmp_path):
    first, second = tmp_path / "a b", tmp_path / "c"
    (first / "infra").mkdir(parents=True)
    for name in ("infra/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(INFRA.parent / name, first / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", first / ".venv"], check=True)
    (first / ".venv" / "bin" / "pip").write_text(f"#!{first}/.venv/bin/python3\n")
    shutil.copytree(first, second, symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PYTHON": sys.executable}
    command = ["bash", second / "infra" / "setup.sh", ".venv"]
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode != 0  # there is nothing to install from
    assert "is made anew" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert str(second / ".venv") in (second / ".venv" / "bin" / "pip").read_text()
    again = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert "is made anew" not in again.stdout


def test_setup_leaves_a_folder_alone_that_is_no_environment(tmp_path):
    (tmp_path / "mine").write_text("")
    done = subprocess.run([INFRA / "setup.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
