"""The tests marked `numerics`, again and again, each time as they come out on another processor.

    python tests/numerics_matrix.py [PYTEST ARGUMENTS]

Variables make the libraries leave out instructions that this processor has. What it does not have cannot be tried here,
and is named.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.surroundings import workers

PROCESSORS: dict[str, dict[str, str]] = {
    "this processor": {},
    "ATen with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL with AVX2": {"MKL_CBWR": "AVX2"},
    "AVX2 in all three": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}

INSTRUCTIONS = {
    "AVX512": "avx512f",
    "AVX512-BF16": "avx512_bf16",
    "AVX512-FP16": "avx512_fp16",
    "AVX10.2": "avx10_2",
    "AMX-BF16": "amx_bf16",
    "AMX-FP16": "amx_fp16",
}
"""Sets that change how a matrix product rounds -> their names in /proc/cpuinfo."""


def missing() -> list[str]:
    """The sets of instructions that this processor does not have."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    has = {word for line in lines if line.startswith("flags") for word in line.split()}
    return [name for name, flag in INSTRUCTIONS.items() if flag not in has]


def capability(variables: dict[str, str]) -> str:
    """What ATen says that it uses."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    return found.stdout.strip()


def tried(variables: dict[str, str], threads: int, arguments: list[str]) -> int:
    """Run the tests; the exit code of pytest."""
    processes = max(1, workers() // threads)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "numerics",
        "--numprocesses",
        str(processes),
        "--dist",
        "loadfile",
        *arguments,
    ]
    # torch finds kernels that it compiled for another capability of ATen in its cache, and they give NaN.
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        own = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": cache}
        return subprocess.run(command, env=os.environ | variables | own).returncode


def main(arguments: list[str]) -> int:
    rows = []
    for name, variables in PROCESSORS.items():
        for threads in (1, 2):
            setting = " ".join(f"{key}={value}" for key, value in variables.items())
            print(f"== {name}, {threads} thread{'s'[: threads - 1]}{setting and f': {setting}'}", flush=True)
            begin = time.monotonic()
            code = tried(variables, threads, arguments)
            rows.append((name, threads, capability(variables), time.monotonic() - begin, code))
    print(f"\n{'processor':<22}{'threads':>8}  {'ATen':<10}{'seconds':>8}  pytest")
    for name, threads, found, seconds, code in rows:
        print(f"{name:<22}{threads:>8}  {found:<10}{seconds:>8.0f}  {'passed' if code == 0 else f'exit code {code}'}")
    print(f"not tried, since this processor does not have them: {', '.join(missing()) or 'none'}")
    return max(code for *_, code in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
