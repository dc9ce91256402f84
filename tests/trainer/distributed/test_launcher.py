"""trainer/launch.py: torchrun whose own pages do not follow the line that a rank has said."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_runs import quiet_environment
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.run import config_from_args, parse_args

from shared.errors import ExitCode
from trainer.distributed.loopback import meet_on_loopback
from trainer.distributed.world import stay_on_this_machine
from trainer.launch import main, unreported

ROOT = Path(__file__).parents[3]


class Failure:
    """What torchrun tells of a rank that failed."""

    local_rank = 1

    def __init__(self, exitcode: int, error_file: str) -> None:
        self.exitcode, self.error_file = exitcode, error_file

    def signal_name(self) -> str:
        return "SIGKILL"


@pytest.mark.parametrize(("failure", "said"), [(Failure(-9, "<N/A>"), True), (Failure(1, "/a/error.json"), False)])
def test_only_what_a_rank_could_not_say_is_said_for_it(failure, said):
    line = unreported(failure)
    assert (line is not None) == said
    if line is not None:
        assert "rank 1" in line
        assert "SIGKILL" in line


@pytest.mark.parametrize(
    ("program", "named"),
    [("trainer/recipes/blt-small.toml", "trainer/main.py trainer/recipes/blt-small.toml"), ("mian.py", "mian.py does")],
)
def test_what_is_no_program_is_one_line(program: str, named: str, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--standalone", program]) == ExitCode.REFUSED
    assert named in caplog.messages[-1]


def test_an_option_that_torchrun_does_not_know_is_its_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-option", "trainer/main.py"])
    assert ended.value.code == 2
    (usage, line) = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert "--no-such-option" in line


def test_torchrun_says_nothing_of_a_signal_that_the_ranks_have_reported():
    from torch.distributed.elastic.agent.server import api

    with pytest.raises(SystemExit):
        main([])
    assert not api.logger.isEnabledFor(logging.WARNING)


@pytest.mark.drill
def test_an_error_of_the_ranks_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "trainer/launch.py"), "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "trainer/main.py"), str(ROOT / "trainer/recipes/entropy-small.toml")]
    command += ["--data.path", str(tmp_path / "nosuch"), "--run.out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **quiet_environment()}, cwd=tmp_path, timeout=120
    )
    assert done.returncode == ExitCode.REFUSED
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("patchwork: error: ")
    assert "nosuch" in line


def listening_at(port: int) -> list[str]:
    """The addresses at which something listens on a port, as the kernel writes them."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    places = [row[1].partition(":") for row in rows if row[3] == "0A"]
    return [address for address, _, number in places if int(number, 16) == port]


@pytest.mark.parametrize("options", [["--standalone"], [], ["--nnodes", "1:1", "--max-restarts", "3"]])
def test_ranks_of_one_machine_meet_on_loopback_alone(options):
    chosen = parse_args([*options, "main.py"])
    meet_on_loopback(chosen)
    config, _, _ = config_from_args(chosen)
    handler = get_rendezvous_handler(
        RendezvousParameters(config.rdzv_backend, config.rdzv_endpoint, config.run_id, 1, 1)
    )
    for _ in range(2):  # the second one as after a restart
        found = handler.next_rendezvous()
        assert (found.rank, found.world_size) == (0, 1)
        found.store.set("key", "value")
        assert listening_at(found.bootstrap_store_info.master_port) == ["0100007F"]
    rank = TCPStore("127.0.0.1", found.bootstrap_store_info.master_port, is_master=False)
    assert rank.num_keys() >= 2


@pytest.mark.parametrize(
    "options", [["--nnodes", "2", "--rdzv-endpoint", "a:1", "--rdzv-backend", "c10d"], ["--master-port", "29501"]]
)
def test_options_that_choose_where_to_meet_stay(options):
    chosen, before = parse_args([*options, "main.py"]), parse_args([*options, "main.py"])
    meet_on_loopback(chosen)
    assert vars(chosen) == vars(before)


@pytest.mark.parametrize(
    ("variables", "interface"),
    [
        ({}, "lo"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "lo"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, None),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth7"}, "eth7"),
    ],
)
def test_gloo_listens_on_loopback_where_all_ranks_are_on_this_machine(monkeypatch, variables, interface):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stay_on_this_machine()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface


@pytest.mark.parametrize("program", ["trainer/launch.py", "trainer/main.py"])
def test_ctrl_c_while_a_program_is_imported_leaves_no_traceback(tmp_path, program):
    # Ctrl-C at a moment that does not depend on how busy the machine is: at the first import of these.
    (tmp_path / "interrupting.py").write_text(
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('torch', 'shared')): os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    command = [sys.executable, str(tmp_path / "interrupting.py"), str(ROOT / program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
