"""Worker servers whose temporary folder has a path that no Unix socket can have."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import tempfile
from shared.io.programs.child_processes import worker_server
if __name__ == "__main__":
    process = worker_server("math").Process(target=print, args=("ran",))
    process.start()
    process.join()
    print(len(tempfile.gettempdir()))
"""


def test_workers_start_beside_a_temporary_folder_with_a_long_path(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["ran", str(len(str(long)))], done.stderr
