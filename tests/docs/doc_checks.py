"""What can be said of a command, a recipe or a link without trying it: the program, its options and the file exist."""

import argparse
import contextlib
import importlib
import io
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doc_blocks import DocsError
from doc_world import ROOT
from pydantic import BaseModel, ValidationError
from torch.distributed.run import get_args_parser

import pipeline.__main__ as pipeline_commands
import trainer.__main__ as trainer_commands
from infra import batch_generate, gpu_check, load_test, ray_serve
from shared.errors import ConfigError
from trainer.experiments.scaling.grid import Grid
from trainer.experiments.systems import Experiment
from trainer.planning.plan import load_plan
from trainer.settings import TrainSettings
from trainer.settings.recipe import check_recipe, read_recipe, with_places

OTHERS = (
    "cd",
    "cmp",
    "curl",
    "docker",
    "export",
    "envsubst",
    "git",
    "hf",
    "kubectl",
    "lm-eval",
    "mkdir",
    "pip",
    "ray",
    "sbatch",
    "serve",
    "tensorboard",
    "weed",
)
"""Programs of others, whose options are not ours to check."""

SCHEMAS: dict[str, type[BaseModel]] = {
    "trainer/experiments/systems.toml": Experiment,
    "trainer/experiments/scaling/scaling.toml": Grid,
}
"""Of files that blocks may be part of."""

_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_PATH = re.compile(r"(?<![\w/.:])((?:tests|docs|trainer|shared|pipeline|infra)/[\w./-]*\w(?:::\w+)?)(?!\w*\()")
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def check_command(script: str) -> None:
    """DocsError unless every command of a script is one of ours with options that it knows, or of OTHERS."""
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    if parsed.returncode:
        raise DocsError(parsed.stderr.strip())
    for line in script.replace("\\\n", " ").splitlines():
        for command in re.split(r" (?:&&|\|) ", line.partition(" # ")[0]):
            words = shlex.split(command.partition(" < ")[0].partition(" > ")[0], comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                _check_words(words)


def _check_words(words: list[str]) -> None:
    """One command without its redirections."""
    match words:
        case ["ray", "job", "submit", *options] if "--" in options:
            _check_words(options[options.index("--") + 1 :])
        case ["python", "-m", "pipeline", name, *arguments]:
            _parse(_pipeline(name), arguments)
        case ["python", "-m", "trainer", name, *arguments]:
            parser, takes_overrides = _trainer(name)
            _parse(parser, arguments, takes_overrides)
        case ["python", "trainer/main.py", recipe, *overrides]:
            _check_recipe(recipe, [word for word in overrides if word != "--plan"])
        case ["torchrun", *arguments]:
            with _complaints():
                options = get_args_parser().parse_args(arguments)
            _check_words(["python", options.training_script, *options.training_script_args])
        case ["python", "-m", "infra.gpu_check", *arguments]:
            _parse(gpu_check.make_parser(), arguments)
        case ["python", "-m", "infra.batch_generate", *arguments]:
            parser = argparse.ArgumentParser(prog="python -m infra.batch_generate")
            batch_generate.add_arguments(parser)
            _parse(parser, arguments)
        case ["python", "-m", "infra.ray_serve", *arguments]:
            _parse(ray_serve.options(), arguments)
        case ["python", "-m", "infra.load_test", *arguments]:
            _parse(load_test.options(), arguments)
        case ["infra/gpu_wheels.sh", _]:
            _check_file("infra/gpu_wheels.sh")
        case ["infra/submit.sh", *arguments]:
            _parse(_pipeline("preprocess"), arguments)
        case ["infra/train.sh", recipe, *overrides]:
            _check_recipe(recipe, overrides)
        case ["sbatch", "infra/slurm.sbatch", recipe, *overrides]:
            _check_recipe(recipe, overrides)
        case ["make", *targets]:
            for target in (word for word in targets if "=" not in word and not word.startswith("-")):
                if target not in _TARGETS:
                    raise DocsError(f"the Makefile has no target {target!r}")
        case ["python", "-c", program]:
            compile(program, "python -c", "exec")
        case ["python", script, *_] if not script.startswith("-"):
            _check_file(script)
        case [program, *arguments] if program in OTHERS:
            for word in arguments:
                if word.startswith("infra/"):
                    _check_file(word)
        case _:
            raise DocsError(f"nobody knows whether {shlex.join(words)!r} is right; extend doc_checks.py")


def _check_file(name: str) -> None:
    if not (ROOT / name).exists():
        raise DocsError(f"there is no {name}")


def _check_recipe(recipe: str, overrides: list[str]) -> None:
    """A recipe of ours with overrides; of a reader's recipe, only the overrides' form."""
    try:
        if (ROOT / recipe).exists():
            load_plan(ROOT / recipe, overrides)
        elif recipe.startswith("trainer/"):
            raise DocsError(f"there is no {recipe}")
        else:
            check_pieces(overrides)
    except ConfigError as error:
        raise DocsError(str(error)) from None


def check_pieces(overrides: list[str]) -> None:
    """Overrides that fit a recipe of ours."""
    load_plan(ROOT / "trainer/recipes/blt-small.toml", overrides)


def check_piece(text: str, file: str | None) -> None:
    """DocsError unless a piece of TOML, laid over a file of ours (a small recipe if none is named), is a whole one."""
    try:
        piece = tomllib.loads(text)
        if file is None:
            whole = read_recipe(ROOT / "trainer/recipes/blt-small.toml", ["--run.out", "RUN"], TrainSettings)
            if "datasets" not in piece.get("data", {}):
                whole["data"]["path"] = "DATA"
            if "kind" in piece.get("model", {}):
                whole["model"] = {}
            check_recipe(with_places(_laid_over(whole, piece)), TrainSettings, Path("recipe.toml"))
        else:
            if file not in SCHEMAS:
                raise DocsError(f"no block is part of {file}; there is {', '.join(SCHEMAS)}")
            SCHEMAS[file].model_validate(_laid_over(tomllib.loads((ROOT / file).read_text()), piece))
    except (tomllib.TOMLDecodeError, ConfigError, ValidationError) as error:
        raise DocsError(str(error)) from None


def _laid_over(base: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in piece.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _laid_over(base[key], value) if nested else value
    return merged


def _pipeline(name: str) -> argparse.ArgumentParser:
    if name not in pipeline_commands.COMMANDS:
        raise DocsError(f"python -m pipeline has no command {name!r}")
    parser = argparse.ArgumentParser(prog=f"python -m pipeline {name}")
    importlib.import_module(f"pipeline.commands.{name}").add_arguments(parser)
    return parser


def _trainer(name: str) -> tuple[argparse.ArgumentParser, bool]:
    if name not in trainer_commands.COMMANDS:
        raise DocsError(f"python -m trainer has no command {name!r}")
    module = importlib.import_module(f"trainer.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"python -m trainer {name}")
    module.add_arguments(parser)
    return parser, hasattr(module, "TAKES_OVERRIDES")


def _parse(parser: argparse.ArgumentParser, arguments: list[str], takes_overrides: bool = False) -> None:
    with _complaints():
        _, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("--") and not (takes_overrides and "." in word)]
    if unknown:
        raise DocsError(f"{parser.prog} does not know {' '.join(unknown)}")


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """What a parser prints before it exits, as a DocsError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        raise DocsError(said.getvalue().strip().splitlines()[-1]) from None


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Lines of a page outside its blocks, with their numbers."""
    lines, inside = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


def check_prose(path: Path) -> list[str]:
    """What is wrong with commands, files and links that the prose of a page names."""
    wrong = []
    for number, line in prose_of(path):
        for check, found in ((_check_span, _SPAN), (_check_path, _PATH)):
            for name in found.findall(line):
                try:
                    check(name)
                except DocsError as error:
                    wrong.append(f"line {number}: {error}")
        targets = [target for target in _LINK.findall(line) if not re.match(r"[a-z]+:", target)]
        wrong += [
            f"line {number}: the link {each} leads nowhere" for each in targets if not _leads_somewhere(path, each)
        ]
    return wrong


def _check_span(text: str) -> None:
    """A command in the middle of a sentence: what it names exists, and so do its options."""
    try:
        words = shlex.split(text)
    except ValueError:
        return
    match words:
        case ["python", "-m", "pipeline", name, *rest]:
            _check_options(_pipeline(name), rest)
        case ["python", "-m", "trainer", name, *rest]:
            parser, takes_overrides = _trainer(name)
            _check_options(parser, [word for word in rest if not (takes_overrides and "." in word)])
        case ["make", *_]:
            _check_words(words)


def _check_options(parser: argparse.ArgumentParser, words: list[str]) -> None:
    for word in words:
        if word.startswith("--") and word not in parser._option_string_actions:
            raise DocsError(f"{parser.prog} does not know {word}")


def _check_path(name: str) -> None:
    """A file or folder, or the beginning of names with a star; FILE::NAME is a function of a file."""
    file, _, function = name.partition("::")
    if not (ROOT / file).exists() and not any(ROOT.glob(f"{file}*")):
        raise DocsError(f"there is no {file}")
    if function and f"def {function}(" not in (ROOT / file).read_text():
        raise DocsError(f"{file} has no {function}")


def _leads_somewhere(path: Path, target: str) -> bool:
    """Whether a relative link leads to a file and, behind #, to one of its headings."""
    name, _, anchor = target.partition("#")
    file = (path.parent / name) if name else path
    if not file.exists():
        return False
    return not anchor or anchor in {_slug(line) for _, line in prose_of(file) if line.startswith("#")}


def _slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    text = heading.lstrip("#").strip().lower().replace("`", "")
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
