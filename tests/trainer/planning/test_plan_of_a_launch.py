"""The files in infra/ that start training: their own tools and schemas accept them, and their commands train."""

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.tiny_runs import NONE, metric_lines, tiny_data, tiny_recipe, toml
from torch.distributed.run import get_args_parser

from shared.io.programs.child_processes import STOP_SIGNALS
from trainer.commands.serve import add_arguments as add_serve_arguments
from trainer.planning.plan import load_plan
from trainer.planning.report import warning

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
SCRIPTS = [*sorted(INFRA.glob("*.sh")), INFRA / "slurm.sbatch", ROOT / ".ci" / "run"]
BIN = Path(sys.executable).parent
IMAGE = "${PATCHWORK_IMAGE}"

SBATCH = (
    "account array begin comment constraint cpus-per-gpu cpus-per-task deadline dependency error exclude exclusive "
    "export gpus gpus-per-node gpus-per-task gres hint job-name kill-on-invalid-dep licenses mail-type mail-user mem "
    "mem-per-cpu mem-per-gpu nice no-kill no-requeue nodelist nodes ntasks ntasks-per-node open-mode output partition "
    "prefer qos requeue reservation signal switches threads-per-core time time-min tmp wait-all-nodes"
)
"""Options that sbatch documents, those of rare sites left out."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing_in_scripts(script):
    found = subprocess.run([BIN / "shellcheck", "--severity=warning", script], capture_output=True, text=True)
    assert found.stdout + found.stderr == ""
    assert os.access(script, os.X_OK)


def test_hadolint_finds_nothing_in_the_container_file():
    found = subprocess.run([BIN / "hadolint", INFRA / "Dockerfile"], capture_output=True, text=True)
    assert found.stdout + found.stderr == ""


def test_the_container_gets_what_it_copies_and_runs_as_nobody_special():
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert lines.index("USER 10001") > max(n for n, line in enumerate(lines) if line.startswith("RUN "))
    assert sum("constraints.txt" in line for line in lines if line.startswith("RUN ")) == 2
    python = next(line for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"FROM python:3\.1[1-9]\.\d+-slim-\w+ AS programs", python)
    assert {line.split()[1] for line in lines if line.startswith("FROM ")} == {python.split()[1], "programs"}
    assert lines[-2:] == ["FROM programs", 'CMD ["infra/train.sh"]'], "what is built where no target is named"


def test_the_container_of_a_server_runs_the_command_and_asks_for_its_health():
    text = (INFRA / "Dockerfile").read_text().partition(" AS serving\n")[2].replace("\\\n", "")
    lines = text.partition("\nFROM ")[0].splitlines()
    program, *words = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT "))[len("ENTRYPOINT ") :])
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    assert (program, words[:3]) == ("python", ["-m", "trainer", "serve"])
    given = parser.parse_args([*words[3:], "/data/run/model"])
    assert f"EXPOSE {given.port}" in lines
    check = next(line for line in lines if line.startswith("HEALTHCHECK "))
    python, option, code = json.loads(check.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f":{given.port}/health" in code


def launcher(tmp_path: Path, recipe: str, **variables: str) -> dict[str, object]:
    """What torchrun understands of the command that infra/train.sh makes."""
    echo = tmp_path / "torchrun"
    known = get_args_parser().format_help()
    echo.write_text(f'#!/bin/sh\n[ "$1" != --help ] || exec cat <<"END"\n{known}\nEND\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    env = os.environ | {"TORCHRUN": str(echo), "NPROC": "4"} | variables
    made = subprocess.run(
        [INFRA / "train.sh", recipe, "--run.steps", "2"], capture_output=True, text=True, check=True, env=env
    )
    return vars(get_args_parser().parse_args(made.stdout.splitlines()))


def test_one_machine_needs_no_rendezvous(tmp_path):
    options = launcher(tmp_path, "recipe.toml")
    assert options["standalone"]
    assert (options["nproc_per_node"], options["max_restarts"]) == ("4", 3)
    assert options.get("shutdown_timeout", 300) == 300  # torch 2.11 has no such option
    assert options["training_script"] == str(ROOT / "trainer" / "main.py")
    assert options["training_script_args"] == ["recipe.toml", "--run.steps", "2"]


def test_launchers_hand_on_every_signal_that_stops_a_run(tmp_path):
    handled = str(launcher(tmp_path, "recipe.toml")["signals_to_handle"]).split(",")
    assert {sent.name for sent in STOP_SIGNALS} <= set(handled)


def test_several_machines_meet_at_one_address(tmp_path):
    options = launcher(tmp_path, "recipe.toml", NODES="3", RENDEZVOUS="first:29400", JOB="a-run")
    assert not options["standalone"]
    assert (options["nnodes"], options["rdzv_backend"]) == ("3", "c10d")
    assert (options["rdzv_endpoint"], options["rdzv_id"]) == ("first:29400", "a-run")


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [([], {}, "usage: infra/train.sh RECIPE.toml"), (["recipe.toml"], {"NODES": "2"}, "NODES=2 needs RENDEZVOUS")],
)
def test_what_is_missing_is_one_line(arguments, variables, words):
    env = {name: value for name, value in os.environ.items() if name != "RENDEZVOUS"} | variables
    result = subprocess.run([INFRA / "train.sh", *arguments], capture_output=True, text=True, env=env)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line


def directives() -> dict[str, str]:
    """Options of the batch file; the first line that is no comment ends them."""
    found = {}
    for line in (INFRA / "slurm.sbatch").read_text().splitlines():
        if line.startswith("#SBATCH "):
            option, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[option] = value
        elif not line.startswith("#"):
            return found
    raise AssertionError("nothing but comments")


def test_the_batch_file_has_options_that_slurm_documents():
    options = directives()
    assert options.keys() <= set(SBATCH.split())
    assert options["ntasks-per-node"] == "1"
    assert "requeue" in options
    who, seconds = options["signal"].removeprefix("B:").split("@")
    assert (who, options["signal"][:2]) == ("USR1", "B:")
    text = (INFRA / "slurm.sbatch").read_text()
    (patience,) = re.findall(r"SHUTDOWN_TIMEOUT:-(\d+)", text)
    assert int(patience) < int(seconds)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", options["time"])


def batch_job(tmp_path: Path, srun: str) -> tuple[subprocess.Popen[str], Path]:
    """The batch file with a scontrol that keeps what it is asked, and this ``srun``."""
    said = tmp_path / "said"
    commands = {
        "srun": f'#!/bin/bash\necho "$@" "$NODES $NPROC $RENDEZVOUS" >{tmp_path}/started\n{srun}\n',
        "scontrol": "#!/bin/bash\n"
        f'if [ "$1" = show ]; then printf "node%d\\n" {{7..4000}}; else echo "$@" >>{said}; fi\n',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]"}
    env = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen([INFRA / "slurm.sbatch", "recipe.toml"], env=env, text=True)
    wait_for(lambda: (tmp_path / "started").exists() or job.poll() is not None)
    return job, said


def wait_for(there: Callable[[], object], seconds: float = 600) -> None:
    """Until it is there; AssertionError when it does not come."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def test_a_warning_of_slurm_reaches_the_launchers_and_the_job_is_queued_again(tmp_path):
    waiting = (
        f'trap "touch {tmp_path}/warned; sleep 0.3; exit 1" USR1\ntouch {tmp_path}/ready\nwhile :; do sleep 0.05; done'
    )
    job, said = batch_job(tmp_path, waiting)
    wait_for((tmp_path / "ready").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=600) == 1
    assert (tmp_path / "warned").exists()
    assert said.read_text() == "requeue 123\n"
    assert (tmp_path / "started").read_text() == "infra/train.sh recipe.toml 2 4 node7:20123\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_is_done_or_fails_ends_the_job(tmp_path, code):
    job, said = batch_job(tmp_path, f"exit {code}")
    assert job.wait(timeout=600) == code
    assert not said.exists()


@pytest.fixture(scope="module")
def jobset() -> dict:
    return yaml.safe_load((INFRA / "jobset.yaml").read_text())


def test_the_job_set_fits_the_models_of_its_interface(jobset):
    """Names that the models do not know would be missing from what they give back."""
    # A second to import, which no other test need wait for.
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    wrong = json.loads(json.dumps(jobset).replace("completionMode", "completionsMode"))
    assert JobsetV1alpha2JobSet.from_dict(wrong).to_dict() != wrong


@pytest.fixture(scope="module")
def replicated(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated


@pytest.fixture(scope="module")
def job(replicated: dict) -> dict:
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job: dict) -> dict:
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict) -> dict:
    (container,) = pod["containers"]
    return container


@pytest.fixture(scope="module")
def variables(container: dict) -> dict[str, str | None]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_the_job_set_is_one_of_its_version(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_there_are_as_many_pods_as_nodes(job, variables):
    assert job["completionMode"] == "Indexed"
    assert int(variables["NODES"]) == job["parallelism"] == job["completions"]


def test_pods_find_each_other_by_the_name_of_the_first(jobset, replicated, variables):
    assert variables["RENDEZVOUS"] == f"$(JOB)-{replicated['name']}-0-0.$(JOB):29400"
    assert [*variables].index("JOB") < [*variables].index("RENDEZVOUS")
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def test_pods_start_anew_together(jobset, job):
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 1
    assert job["backoffLimit"] == 0


def test_a_pod_has_the_image_as_its_user_and_is_not_restarted_alone(pod, container):
    assert container["image"] == IMAGE
    user = next(line for line in (INFRA / "Dockerfile").read_text().splitlines() if line.startswith("USER "))
    assert pod["securityContext"]["runAsUser"] == int(user.split()[1])
    assert pod["restartPolicy"] == "Never"


def test_a_pod_has_a_gpu_for_each_rank(container, variables):
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == variables["NPROC"]


def test_a_pod_has_time_to_save(pod, variables):
    assert int(variables["SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_a_pod_has_the_shared_volume(pod, container):
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert any("persistentVolumeClaim" in volume for volume in pod["volumes"])


@pytest.mark.parametrize(
    ("file", "command"), [("jobset.yaml", "PATCHWORK_ARGUMENTS="), ("slurm.sbatch", "slurm.sbatch ")]
)
def test_the_examples_name_a_recipe_for_so_many_gpus(file, command):
    line = re.search(rf"#   .*{re.escape(command)}(.*)", (INFRA / file).read_text())
    assert line is not None
    recipe, *overrides = shlex.split(line[1].strip('"'))
    plan = load_plan(ROOT / recipe, overrides)
    assert str(plan.settings.data.path) == "/data/patched"
    assert plan.settings.plan.ranks == 64
    assert warning(plan) is None


@pytest.mark.drill
def test_two_machines_train_together_and_stop_together_when_they_are_warned(tmp_path):
    """Two launchers on this machine stand for two machines: one rank each, and a warning as Slurm sends it."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    model = {"kind": "entropy", "width": 32, "layers": 1, "heads": 2}
    sections = {"run": {"steps": 100_000}, "checkpoint": {"every": 100_000}, "parallel": {"dry_run": False}}
    recipe.write_text(toml(tiny_recipe(tiny_data(tmp_path / "data", NONE), out, model=model, **sections)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "NODES": "2",
        "NPROC": "1",
        "RENDEZVOUS": f"127.0.0.1:{port}",
        "TORCHRUN": str(BIN / "torchrun"),
    }
    command = [INFRA / "train.sh", recipe]
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    machines = [
        subprocess.Popen(command, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=tmp_path) for log in logs
    ]
    try:
        wait_for(lambda: metric_lines(out))
        for machine in machines:
            machine.send_signal(signal.SIGUSR1)
        codes = [machine.wait(timeout=600) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    said = "".join(log.read_text() for log in logs)
    assert 0 not in codes, said  # Slurm and Kubernetes must see that there is something left to do
    assert "2 ranks on cpu" in said
    assert "rerun the same command to resume" in said
    assert len(list((out / "checkpoints").glob("step-*/COMPLETE"))) == 1
