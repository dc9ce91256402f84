"""Virtual environments in which this project is not: made once, and kept below build/ by what they contain."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from shared.io.files.digests import digest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "environments"
ACCELERATE = "accelerate==1.15.0"
"""What `transformers.Trainer` asks for beside the packages that constraints.txt pins."""


class UnreachableError(Exception):
    """A package index gives no answer; says what cannot be installed."""


def pinned(*names: str) -> list[str]:
    """Requirements of packages as `make test` has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [next(line for line in lines if line.startswith(f"{name}==")) for name in names]


@cache
def newest(*names: str) -> tuple[str, ...]:
    """Requirements of the newest releases that there are. Raises UnreachableError."""
    options = ("--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--report", "-")
    patience = ("--retries", "0", "--timeout", "15")
    done = _pip(sys.executable, "install", *options, *patience, *names)
    if done.returncode:
        raise UnreachableError(f"no package index gives the newest {' and '.join(names)}: {_last_line(done.stderr)}")
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    return tuple(f"{name}=={found[name]}" for name in names)


def environment(requirements: list[str]) -> Path:
    """The interpreter of an environment with these packages. Raises UnreachableError where it is not there yet."""
    folder = KEPT / digest({"python": sys.version, "requirements": sorted(requirements)})[:16]
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        try:
            newest("transformers")  # is there an index at all?
        except UnreachableError as error:
            raise UnreachableError(f"an environment with {' '.join(requirements)} is missing: {error}") from None
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        done = _pip(python, "install", "--quiet", *requirements)
        assert done.returncode == 0, f"{' '.join(requirements)} cannot be installed: {done.stderr}"
        complete.write_text("\n".join(requirements) + "\n")
    return python


def _pip(python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
