"""The layout that docs/architecture.md promises: small folders, no helper in a file of its own, no cycle of files."""

import ast
import io
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shared", "pipeline", "trainer")
MOST_AT_THE_TOP = 16
"""Modules directly in a package or folder."""
SHORT = 80
"""Lines of code below which a module with one importer is a part of that one."""
BY_NAME = ("commands", "formats", "settings", "recipes", "callbacks", "custom_code")
"""Folders of plug-ins, which are found by name or stand side by side."""
EXCEPTIONS = {
    "pipeline.calibration.sampling": "seeded draws: pure, apart from what they are drawn for",
    "pipeline.counting.made_by": "counted.json beside a table, a file that strangers may write",
    "pipeline.counting.pairs": "arithmetic on tokens: pure, apart from how splits are read and written",
    "pipeline.executors.ray_units": "imports Ray, which units does without",
    "pipeline.inputs.foreign_folders": "what other programs write, apart from how files are found",
    "pipeline.inputs.globs": "a language of its own, with tests of its own",
    "shared.layers.fused_ops": "backward passes by hand, apart from the blocks that work without them",
    "shared.incremental.hnet": "a kind of model",
    "shared.models.megabyte": "a kind of model",
    "shared.models.spacebyte": "a kind of model",
    "trainer.checkpoints.retention": "which checkpoints stay: pure, apart from how they are written",
    "trainer.data.sampling.streams": "the order of a subset's documents, which planning asks for",
    "trainer.data.teacher": "a feature that one section of a recipe turns on",
    "trainer.distributed.activation_checkpointing": "a feature that one key turns on",
    "trainer.distributed.float8": "a feature that one key turns on",
    "trainer.distributed.loopback": "replaces a part of torch, for the launcher alone",
    "trainer.distributed.matrix_exchange": "what ranks send; the rest of Muon is arithmetic",
    "trainer.experiments.adaptation.scoring": "what a model scores: apart from which runs there are",
    "trainer.experiments.page.texts": "a section of the page, as its neighbours are",
    "trainer.experiments.rates": "short runs before the others, which one table of systems.toml turns on",
    "trainer.experiments.scoring": "imports torch, which the process that starts runs does without",
    "trainer.memory.meter": "counts allocations, whatever for",
    "trainer.metrics.formulas": "formulas, apart from when they are asked for",
    "trainer.optim.muon": "an optimizer, beside torch's own",
    "trainer.optim.parameter_groups": "names to groups: pure, apart from optimizers",
    "trainer.serving.prefix_cache": "which states are kept: apart from the thread that reads prompts",
}
"""Modules that stay by themselves, each with the reason."""


def modules() -> dict[str, Path]:
    """Every module of the packages by its name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def imports() -> dict[str, set[str]]:
    """Of each module, those of ours that it imports, inside functions and for types too."""
    known, found = modules(), defaultdict(set)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found[name] |= {inner if inner in known else node.module} & known.keys()
    return {name: found[name] - {name} for name in known}


def code_lines(path: Path) -> int:
    """Lines without comments, docstrings and blank ones."""
    text = path.read_text()
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        and token.type != tokenize.ENDMARKER
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def helpers() -> dict[str, str]:
    """Short modules that one other module imports, with that one."""
    importers = defaultdict(set)
    for name, imported in imports().items():
        for other in imported:
            importers[other].add(name)
    return {
        name: importer
        for name, path in modules().items()
        if path.name not in ("__init__.py", "__main__.py") and not {*path.parts} & {*BY_NAME}
        for importer in importers[name]
        if len(importers[name]) == 1 and not _serves_others(name, importer) and code_lines(path) < SHORT
    }


def _serves_others(name: str, importer: str) -> bool:
    """Whether a module is the library below a command, or what a folder or another package is to be used by."""
    return ".commands." in importer or name.startswith(f"{importer}.") or name.split(".")[0] != importer.split(".")[0]


def test_no_helper_of_one_module_has_a_file_of_its_own() -> None:
    assert {name: importer for name, importer in helpers().items() if name not in EXCEPTIONS} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_has_many_modules(package: str) -> None:
    sizes = {
        str(folder.relative_to(ROOT)): len([path for path in folder.glob("*.py") if path.stem[0] != "_"])
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]
        if folder.name not in BY_NAME
    }
    assert {folder: size for folder, size in sizes.items() if size > MOST_AT_THE_TOP} == {}


def test_no_cycle_of_modules() -> None:
    """At run time or for types: a module can be read after those that it imports."""
    left = {name: set(imported) for name, imported in imports().items()}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []
