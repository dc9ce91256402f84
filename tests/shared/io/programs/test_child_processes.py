"""Processes that come from a server: which signals reach them."""

import signal
import subprocess
import sys

from shared.io.programs.child_processes import STOP_SIGNALS

PROGRAM = """
from multiprocessing import forkserver
from shared.io.programs.child_processes import worker_server
worker_server("json")
status = open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read()
print(status.partition("SigBlk:")[2].split()[0])
"""


def test_the_server_of_workers_starts_with_stop_signals_blocked() -> None:
    """Else Ctrl-C while it imports is a traceback, and the run says that no worker starts."""
    shown = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    blocked = int(shown, 16)
    assert [sent for sent in STOP_SIGNALS if not blocked >> (signal.Signals(sent) - 1) & 1] == []
