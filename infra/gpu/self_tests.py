"""Rows that fail on purpose: python -m infra.gpu_check --rows self-crash,self-kill,self-hang,self-memory."""

import os
import signal
import time

from infra.gpu.bench import Bench


def self_crash(bench: Bench) -> None:
    """Raises after a finding."""
    bench.found("before the crash", "kept", ok=True)
    raise ValueError("on purpose")


def self_kill(bench: Bench) -> None:
    """Ends as a process that the system has killed."""
    bench.found("before the end", "kept", ok=True)
    os.kill(os.getpid(), signal.SIGKILL)


def self_hang(bench: Bench) -> None:
    """Never ends."""
    bench.found("before the wait", "kept", ok=True)
    time.sleep(10**6)


def self_memory(bench: Bench) -> None:
    """Asks for more memory than there is."""
    bench.found("before the allocation", "kept", ok=True)
    bytearray(2**60)
