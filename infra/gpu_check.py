"""Checks what of Patchwork runs on this machine's GPUs, and how fast: python -m infra.gpu_check [--wheels DIR].

One table, row by row in order of importance. Each row runs in a process of its own with a time limit, and is printed
and appended to a file of JSON lines as soon as something is known: a row that fails, hangs or runs out of memory costs
nothing else. At most nine minutes. Without a GPU the same code runs on the processor at small sizes.

With --wheels packages that are missing are installed from DIR (infra/gpu_wheels.sh fills it), into a folder of their
own; nothing is downloaded, and the system's Python stays as it is.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from infra.gpu import ROWS, SELF_TESTS, TOTAL_SECONDS, Row

ROOT = Path(__file__).parents[1]
NEEDED = ("numpy", "pydantic", "safetensors", "pyarrow")
"""Beside torch and what it brings: what training, scoring and generating import."""
USEFUL = ("torchdata", "tensorboard", "zstandard", "transformers", "torchao")
"""What they can do without."""
OK = ("ok", "", "skipped")
WIDTHS = (11, 50, 76)


class Report:
    """The table on the terminal, and the file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self.failed = 0

    def say(self, row: str, finding: dict[str, Any]) -> None:
        """A line of both, at once."""
        cells = (row, finding["what"], finding["found"])
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS)), finding["status"], flush=True)
        self.keep({"row": row} | finding)
        self.failed += finding["status"] not in OK

    def keep(self, line: dict[str, Any]) -> None:
        """A line of the file, on storage before anything else is begun."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        with contextlib.suppress(OSError):  # a pipe has nothing to sync
            os.fsync(self._file.fileno())


def finding(what: str, found: str, status: str = "") -> dict[str, Any]:
    """A line of the check's own."""
    return {"what": what, "found": found, "status": status, "figures": {}}


def missing(names: Sequence[str]) -> list[str]:
    """Packages that cannot be imported."""
    return [name for name in names if find_spec(name) is None]


def install(names: Sequence[str], wheels: Path, target: Path) -> str | None:
    """Install packages from a folder of wheels into ``target``; the problem in words, if there is one.

    Torch's own packages are left alone: what a wheel needs is beside it, or the machine has it.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links",
        str(wheels),
        "--target",
        str(target),
    ]
    command += ["--no-deps", "--quiet", "--disable-pip-version-check"]
    chosen = [str(path) for path in sorted(wheels.glob("*.whl")) if _wanted(path, names)]
    if not chosen:
        return f"{wheels} has no wheel of {', '.join(names)}"
    found = subprocess.run([*command, *chosen], capture_output=True, text=True)
    return found.stderr.strip().splitlines()[-1] if found.returncode and found.stderr.strip() else None


def _wanted(wheel: Path, names: Sequence[str]) -> bool:
    """Whether a wheel is of one of these packages, or is what pydantic needs."""
    name = wheel.name.split("-")[0].lower()
    return name in names or ("pydantic" in names and name in PYDANTIC)


PYDANTIC = ("pydantic_core", "annotated_types", "typing_inspection", "typing_extensions")
"""In the versions that it goes with, whatever there is already."""


def describe(device: str) -> list[tuple[str, str]]:
    """What this machine is, for the head of the table."""
    import torch

    found = [
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    if device == "cuda":
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            capability = f"{facts.major}.{facts.minor}"
            found.append(
                (f"GPU {number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {capability}")
            )
    else:
        found.append(("GPU", "none that torch sees: small sizes on the processor"))
    for name in (*NEEDED, *USEFUL):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "missing"))
    return found


def run_row(row: Row, report: Report, device: str, small: bool, limit: float, environment: dict[str, str]) -> None:
    """One row in a process group of its own; what it finds is reported as it comes."""
    command = [sys.executable, "-m", "infra.gpu.bench", row.name, row.module, device, "small" if small else "full"]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None  # noqa: PT018
    said: deque[str] = deque(maxlen=30)
    readers = [
        Thread(target=_pass_on, args=(process.stdout, row, report), daemon=True),
        Thread(target=said.extend, args=(process.stderr,), daemon=True),
    ]
    for reader in readers:
        reader.start()
    late = False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that it has started, too
    code = process.wait()
    for reader in readers:
        reader.join(5)
    lines = [line.strip() for line in said if line.strip()]
    if late:
        report.say(row.name, finding("time limit", f"not done after {limit:.0f} s", "TIME LIMIT"))
    elif code < 0:
        report.say(row.name, finding("killed", f"by {signal.Signals(-code).name}; memory of the host?", "KILLED"))
    elif code:
        report.say(row.name, finding("crashed", lines[-1][:100] if lines else f"exit code {code}", "CRASHED"))
    report.keep({"row": row.name, "seconds": time.monotonic() - began, "code": code, "stderr": lines if code else []})


def _pass_on(stream: TextIO, row: Row, report: Report) -> None:
    for line in stream:
        with contextlib.suppress(json.JSONDecodeError):
            report.say(row.name, json.loads(line))


def chosen_rows(names: str | None) -> list[Row]:
    """Those of ``names``, or all but the self-tests, in order of importance. Raises ValueError."""
    known = {row.name: row for row in (*ROWS, *SELF_TESTS)}
    if names is None:
        return list(ROWS)
    asked = names.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"--rows: {', '.join(unknown)}: there are {', '.join(row.name for row in ROWS)}")
    return [row for row in known.values() if row.name in asked]


@contextlib.contextmanager
def packages(wheels: Path | None) -> Iterator[tuple[dict[str, str], list[tuple[str, str, str]]]]:
    """The environment for rows, with missing packages installed from ``wheels``, and lines about them."""
    said: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as target:
        paths = [str(ROOT)]
        needed = missing(NEEDED)
        lacking = missing(USEFUL)
        if wheels is not None and (needed or lacking):
            problem = install([*needed, *lacking], wheels, Path(target))
            if problem is None or any(Path(target).iterdir()):
                paths.append(target)
                sys.path.append(target)
                said.append(("installed", ", ".join(sorted({p.name for p in Path(target).glob("*.dist-info")})), ""))
            if problem:
                said.append(("installing", problem[:100], "FAILED" if needed else ""))
        if still := missing(NEEDED):
            said.append(("missing", f"{', '.join(still)}: give --wheels DIR, filled by infra/gpu_wheels.sh", "FAILED"))
        if lacking := missing(USEFUL):
            said.append(("missing, not needed", ", ".join(lacking), ""))
        behind = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        threads = os.environ.get("OMP_NUM_THREADS", "1")  # more of them wait for one another on a busy machine
        yield os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *behind]), "OMP_NUM_THREADS": threads}, said


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.gpu_check", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing; nothing is downloaded")
    parser.add_argument("--rows", help=f"some of {','.join(row.name for row in ROWS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.jsonl"), help="file of JSON lines to append to")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--small", action="store_true", help="small sizes on a GPU too: a minute")
    parser.add_argument("--limit", type=float, help="seconds a row, in place of its own")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 0 where nothing failed, 1 otherwise."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    try:
        rows = chosen_rows(given.rows)
        if given.wheels is not None and not given.wheels.is_dir():
            raise ValueError(f"--wheels: {given.wheels} is not a folder; infra/gpu_wheels.sh fills one")
        report = Report(given.out)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out: {given.out}: {error.strerror}")
    if missing(["torch"]):
        print("gpu_check: torch is missing, and is not among the wheels; install torch >= 2.11", file=sys.stderr)
        return 1
    began = time.monotonic()
    with packages(given.wheels) as (environment, said):
        import torch

        device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        report.keep({"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": device})
        for name, value in describe(device):
            report.say("machine", finding(name, value))
        for what, found, status in said:
            report.say("packages", finding(what, found, status))
        if device == "cuda" and not torch.cuda.is_available():
            report.say("machine", finding("device", "--device cuda, but torch sees no CUDA device", "FAILED"))
            return 1
        for row in rows:
            left = TOTAL_SECONDS - (time.monotonic() - began)
            if left < 5:
                report.say(row.name, finding(row.what, "no time is left", "TIME LIMIT"))
                continue
            limit = given.limit or row.seconds * (1 if device == "cuda" else SLOWER)
            run_row(row, report, device, given.small or device == "cpu", min(left, limit), environment)
        report.say(
            "", finding("all", f"{time.monotonic() - began:.0f} s, {report.failed} not as promised; {given.out}")
        )
    return 1 if report.failed else 0


SLOWER = 4
"""Times a row's limit on a processor, which may be a busy one."""

if __name__ == "__main__":
    sys.exit(main())
