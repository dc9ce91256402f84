"""A Python that has imported torch and its like once, and forks for every command that is given to it.

Starting torch takes seconds, which the hundred commands of the documentation need not each spend. `python` and
`torchrun` in a reader's path hand their arguments, folder, environment and streams to this process; a fork of it runs
them as a fresh interpreter would. Nothing of this project is imported before the fork, and nothing that starts threads.

    python doc_server.py NUMBER        # of an inherited socket that listens
"""

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "numpy",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydantic",
    "safetensors.torch",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "torchdata.stateful_dataloader",
)
HEAD = 8
"""Bytes that say how long a request is."""

CLIENT = """import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes({head}, "big")], [0, 1, 2])
    server.sendall(request)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


def write_commands(folder: Path, address: Path) -> None:
    """`python` and `torchrun` that ask the server."""
    folder.mkdir(parents=True)
    client = folder / "client.py"
    client.write_text(CLIENT.format(address=str(address), head=HEAD))
    # Not by a first line that names the interpreter: there may be spaces in where it lies.
    asked = shlex.join([sys.executable, "-SE", str(client)])
    (folder / "python").write_text(f'#!/bin/sh\nexec {asked} "$@"\n')
    run = shlex.quote("import sys; from torch.distributed.run import main; sys.exit(main())")
    (folder / "torchrun").write_text(f'#!/bin/sh\nexec {asked} -c {run} "$@"\n')
    for name in ("python", "torchrun"):
        (folder / name).chmod(0o755)


def started(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server in a process group of its own, with commands in ``folder``/bin that ask it; the path must be short."""
    address = folder / "socket"
    write_commands(folder / "bin", address)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        number = listener.fileno()
        command = [sys.executable, __file__, str(number)]
        return subprocess.Popen(command, env=environment, pass_fds=[number], start_new_session=True)


def serve(listener: socket.socket) -> NoReturn:
    """Answer until someone ends this process."""
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        client, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        with client:
            if os.fork() == 0:
                listener.close()
                answer(client)


def answer(client: socket.socket) -> NoReturn:
    """Run one command in a process of its own, and send its exit code."""
    head, streams, _, _ = socket.recv_fds(client, HEAD, 3)
    request = bytearray()
    while len(request) < int.from_bytes(head, "big"):
        request += client.recv(1 << 20)
    arguments, folder, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), line_buffering=True)
        become(arguments)
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def become(arguments: list[str]) -> NoReturn:
    """Do what `python ARGUMENTS` does, for -m, -c and scripts, and end."""
    code = 0
    try:
        match arguments:
            case ["-m", name, *_]:
                sys.argv, sys.path[0] = arguments[1:], os.getcwd()
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            case ["-c", program, *_]:
                sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
                exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
            case ["-", *_] | []:
                sys.argv, sys.path[0] = ["-"], ""
                exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
            case ["-u", *rest]:
                become(rest)
            case [script, *_]:
                sys.argv, sys.path[0] = arguments, str(Path(script).resolve().parent)
                runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
