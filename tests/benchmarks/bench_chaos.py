"""Kill after kill: a scored run on a Ray cluster whose driver, actors and nodes die in turn ends with the quiet bytes.

python tests/benchmarks/bench_chaos.py [KILLS] [MB]

A cluster of ``ray start`` processes on this machine: a head, and one node a worker. With 1, 2, 3 and 4 workers in turn
the same command is started again until it is done, while something is killed every few seconds; runs are repeated
until all kills are spent.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.chaos import Chaos, Kill, killed, processes, the_driver
from helpers.pipeline_helpers import command, counts, shard_hashes
from helpers.ray_helpers import RAY, Head, ray_head

from shared.model_folder.files import build_model, save_model
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise

MODEL = EntropyModelSettings(width=64, layers=2, heads=2, window=64)
SPLIT_BYTES = 2**18
TAG = "PATCHWORK_CHAOS_NODE"


def corpus(path: Path, size: int) -> int:
    """Write about ``size`` bytes of text as jsonl, pieces of this project's sources; every tenth comes twice."""
    sources = "\n".join(file.read_text() for file in sorted(Path(__file__).parents[2].glob("*/*.py")))
    chooser = random.Random(0)
    written = number = 0
    with path.open("w") as file:
        while written < size:
            begin, length = chooser.randrange(len(sources)), chooser.choice((200, 1_000, 5_000, 20_000))
            text = f"{number}: {sources[begin : begin + length]}"
            for _ in range(2 if number % 10 == 0 else 1):
                file.write(json.dumps({"id": number, "text": text}) + "\n")
                written += len(text)
            number += 1
        file.write('{"text": ""}\nno json\n')
    return written


class Nodes:
    """As many one-worker nodes as are wanted; one that is killed is replaced."""

    def __init__(self, head: Head, wanted: int) -> None:
        self._head, self._wanted, self._started = head, wanted, 0
        self._alive: dict[str, subprocess.Popen[bytes]] = {}

    def keep(self) -> None:
        """Start what is missing."""
        for name in [name for name, process in self._alive.items() if process.poll() is not None]:
            self._end(name)
        while len(self._alive) < self._wanted:
            self._started += 1
            name = f"{os.getpid()}-{self._wanted}-{self._started}"
            line = [*RAY, "start", "--address", self._head.address, "--block", "--num-cpus", "1"]
            line += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats", "--object-store-memory", str(2**27)]
            quiet = subprocess.DEVNULL
            variables = self._head.environment | {TAG: name}
            self._alive[name] = subprocess.Popen(
                line, env=variables, stdout=quiet, stderr=quiet, start_new_session=True
            )

    def kill_one(self, driver: int) -> bool:
        name = random.choice(list(self._alive))
        found = self._end(name)
        self.keep()
        return found

    def kill_actor(self, driver: int) -> bool:
        self.keep()
        actors = [pid for pid, _, line in processes() if line.startswith(b"ray::_Actor") and self._ours(pid)]
        return killed(random.sample(actors, min(1, len(actors))))

    def close(self) -> None:
        for name in list(self._alive):
            self._end(name)

    def _end(self, name: str) -> bool:
        """As when the power goes: everything of a node at once."""
        process = self._alive.pop(name)
        tag = f"{TAG}={name}".encode()
        found = killed(pid for pid, *_ in processes() if tag in _environment(pid))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return found

    def _ours(self, pid: int) -> bool:
        return TAG.encode() in _environment(pid)


def _environment(pid: int) -> list[bytes] | bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def main(kills: int, megabytes: float) -> None:
    random.seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        size = corpus(folder / "a.jsonl", int(megabytes * 1e6))
        model = build_model(MODEL)
        initialise(model, 1)
        save_model(model, MODEL, folder / "model")
        options = [folder / "a.jsonl", "--rule", "entropy", "--theta", "3.0", "--entropy-model", folder / "model"]
        options += ["--split-bytes", SPLIT_BYTES, "--threads", 1, "--dedup"]
        began = time.monotonic()
        quiet = command("preprocess", *options, "--out", folder / "quiet", "--executor", "inline", "--workers", 1)
        assert quiet.returncode == 3, quiet.stderr
        wanted, counted = shard_hashes(folder / "quiet"), counts(folder / "quiet")
        print(f"{size / 1e6:.1f} MB, {len(list((folder / 'quiet/splits').iterdir()))} splits; quiet run ", end="")
        print(f"{time.monotonic() - began:.0f} s, {len(wanted)} files, {counted['documents']} documents", flush=True)
        began = time.monotonic()
        again = command("preprocess", *options, "--out", folder / "quiet", "--executor", "inline", "--workers", 1)
        assert again.returncode == 3, again.stderr
        print(f"nothing to do: {time.monotonic() - began:.2f} s", flush=True)
        quick = ray_head("--num-cpus", "0", RAY_health_check_period_ms="500", RAY_health_check_failure_threshold="4")
        head = stack.enter_context(quick)
        spent, run = 0, 0
        while spent < kills:
            workers = run % 4 + 1
            left = min(kills - spent, -(-kills // 4))
            nodes = Nodes(head, workers)
            stack.callback(nodes.close)
            nodes.keep()
            out = folder / f"run{run}"
            victims: dict[str, Kill] = {"driver": the_driver, "actor": nodes.kill_actor, "node": nodes.kill_one}
            chaos = Chaos(left, victims, seed=run, pause=(2.0, 8.0), variables=head.environment)
            began = time.monotonic()
            line = ["preprocess", *options, "--out", out, "--executor", "ray", "--ray-address", head.address]
            chaos.finish([*line, "--workers", workers], folder / "log", limit=3600)
            nodes.close()
            found = shard_hashes(out)
            same = found == wanted and counts(out) == counted
            verified = command("verify", out).returncode == 0
            spent, run = spent + sum(chaos.done.values()), run + 1
            print(
                f"{workers} workers: {dict(chaos.done)} killed, {chaos.starts} starts, "
                f"{time.monotonic() - began:.0f} s; bytes {'equal' if same else 'DIFFER'}, "
                f"verify {'ok' if verified else 'FAILED'}",
                flush=True,
            )
            assert same, sorted(set(found.items()) ^ set(wanted.items()))
            assert verified
        print(f"{spent} kills in {run} runs; every run left the bytes of the quiet one")


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    main(int(arguments[0]) if arguments else 12, arguments[1] if len(arguments) > 1 else 8.0)
