"""What training, scoring and generating import: the packages of docs/gpu.md, and no others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import importlib, importlib.machinery, json, os, sys

OURS = {"infra", "pipeline", "shared", "trainer"}
# What torch itself needs, or uses where it is.
TORCH = {"torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "networkx", "filelock", "jinja2",
         "markupsafe", "fsspec", "triton", "nvidia", "cuda"}
allowed = OURS | TORCH | set(sys.stdlib_module_names) | {"__editable___patchwork_blt_0_1_0_finder"}

class Filter(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.startswith("_sysconfigdata") or name.partition(".")[0] in allowed
        return super().find_spec(name, path, target) if known else None

sys.meta_path[:] = [Filter if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
tasks = json.loads(sys.argv[1])
allowed.add("numpy")
import torch, numpy
for task, (packages, modules) in tasks.items():
    allowed.update(packages)
    child = os.fork()
    if not child:
        try:
            for module in modules:
                importlib.import_module(module)
        except BaseException as error:
            print(f"{task}: {module}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
    allowed.difference_update(set(packages) - {"numpy"})
"""
PYDANTIC = ["pydantic", "pydantic_core", "annotated_types", "typing_inspection"]
TASKS = {
    "training": (
        ["numpy", "safetensors", "pyarrow", *PYDANTIC],
        ["trainer.main", "trainer.run.setup", "trainer.run.loop"],
    ),
    "scoring": (["numpy", *PYDANTIC], ["shared.models.scoring"]),
    "preprocess": (
        ["numpy", "safetensors", "pyarrow", *PYDANTIC],
        ["pipeline.__main__", "pipeline.commands.preprocess", "pipeline.run.driver", "pipeline.splits.worker"],
    ),
    "generation": (
        ["numpy", "safetensors", *PYDANTIC],
        ["trainer.__main__", "trainer.commands.generate", "trainer.generation.generator"],
    ),
    "the check": (
        ["numpy", "safetensors", "pyarrow", *PYDANTIC],
        ["infra.gpu_check", "infra.gpu.bench", "infra.gpu.numerics", "infra.gpu.speed", "infra.gpu.runs"],
    ),
}


@pytest.mark.drill
def test_each_task_imports_its_packages_alone() -> None:
    """Everything else that is installed here (ray, webdataset, torchdata, tomli_w, ...) cannot be found."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(TASKS)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == ""


def test_the_page_names_these_packages() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for task, (packages, _) in TASKS.items():
        row = re.search(rf"^\| {task} \|(.*?)\|", page, re.MULTILINE)
        assert row, task
        named = set(re.findall(r"`(\w+)`", row[1]))
        assert named == {"torch", *packages} - set(PYDANTIC[1:])
