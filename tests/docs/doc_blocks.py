"""The code blocks of a Markdown page, and the marks that say how they are tried.

A mark is an HTML comment on a line of its own before a block; readers do not see it. `docs/README.md` says which there
are. A block without marks is run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RUN = {"console", "sh", "python", "pycon"}
"""Languages that are run: commands after `$ ` with what they print, a script, a program, a session."""

SHOWN = {"text", "toml"}
"""Languages that are not: what is printed or drawn, and pieces of recipes, which are checked against the settings."""

MARKS = {"needs", "after", "exits", "shorter", "runs in", "part of"}

NEEDS = {
    "a Ray cluster",
    "Slurm",
    "Kubernetes",
    "a container engine",
    "a quarter of an hour",
    "a GPU",
    "8 GPUs",
    "several machines",
    "the internet",
    "an account for object storage",
    "a server in the background",
}
"""What a block may need that a machine of continuous integration lacks."""

_MARK = re.compile(r"<!-- ([a-z ]+): (.+) -->")
_FENCE = re.compile(r"(\s*)```(\w*)\s*")
_LIST = re.compile(r"\s*([-*]|\d+\.) ")
_LOOKS_LIKE_A_COMMAND = re.compile(r"\s*(\$ |>>> |python -m |torchrun |make [a-z]|infra/\w+\.sh )")


class DocsError(Exception):
    """What is wrong with a page, and where."""


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is where its fence is."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs(self) -> str | None:
        return self.marks.get("needs")

    @property
    def file(self) -> str | None:
        """The file of continuous integration that runs the very commands of the block."""
        return self.marks.get("runs in")

    @property
    def elsewhere(self) -> bool:
        """Whether the block is not run by these tests."""
        return bool(self.needs or self.file)

    @property
    def after(self) -> list[str]:
        """Preparations that come before it."""
        return self.marks["after"].split(", ") if "after" in self.marks else []

    @property
    def shorter(self) -> str | None:
        """A form of the same command that takes seconds instead of minutes."""
        return self.marks.get("shorter")

    @property
    def code(self) -> int:
        """The exit code that the last command of the block must have."""
        return int(self.marks.get("exits", "0"))

    @property
    def program(self) -> str:
        """What is run: a bash script or a Python program."""
        if self.language == "console":
            return "\n".join(_prompted(self.text.splitlines(), "$ ", ""))
        if self.language == "pycon":
            return "\n".join(_prompted(self.text.splitlines(), ">>> ", "... "))
        return self.text


def blocks_of(path: Path, page: str) -> list[Block]:
    """All blocks of a page, in order; DocsError where something could be a command that nobody tries."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    fence: tuple[int, str, str] | None = None
    inside: list[str] = []
    before, in_list = "", False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{page}:{number}"
        if fence is not None:
            if line.strip() == "```":
                began, indent, language = fence
                text = "\n".join(each.removeprefix(indent) for each in inside) + "\n"
                found.append(_checked(Block(page, began, language, text, marks)))
                fence, marks, inside = None, {}, []
            else:
                inside.append(line)
        elif opened := _FENCE.fullmatch(line):
            fence = (number, opened[1], opened[2])
        elif mark := _MARK.fullmatch(line.strip()):
            if mark[1] not in MARKS:
                raise DocsError(f"{place}: no mark is called {mark[1]!r}; there are {', '.join(sorted(MARKS))}")
            marks = marks | {mark[1]: mark[2]}
        elif line.strip():
            if marks:
                raise DocsError(f"{place}: a mark stands before a block, and here is none")
            if line.startswith("    ") and not before and not in_list:
                raise DocsError(f"{place}: an indented block; fence it and name its language")
            in_list = bool(_LIST.match(line)) or (in_list and (line.startswith(" ") or bool(before)))
        before = line.strip()
    if fence is not None:
        raise DocsError(f"{page}:{fence[0]}: the block has no end")
    if marks:
        raise DocsError(f"{page}: the mark at the end stands before no block")
    return found


def _checked(block: Block) -> Block:
    """The block; DocsError when its language or its marks mean nothing."""
    if block.language not in RUN | SHOWN:
        known = ", ".join(sorted(RUN | SHOWN))
        raise DocsError(f"{block.place}: the language {block.language!r} is none of {known}")
    if block.needs is not None and block.needs not in NEEDS:
        raise DocsError(f"{block.place}: {block.needs!r} is none of {', '.join(sorted(NEEDS))}")
    if block.language in SHOWN:
        if block.marks and (block.language != "toml" or block.marks.keys() != {"part of"}):
            raise DocsError(f"{block.place}: nothing of the language {block.language} is run, so a mark means nothing")
        for line in block.text.splitlines():
            if block.language == "text" and _LOOKS_LIKE_A_COMMAND.match(line):
                raise DocsError(f"{block.place}: {line.strip()!r} looks like a command; use console or sh")
    elif not block.program.strip():
        raise DocsError(f"{block.place}: a block of the language {block.language} without a command")
    if not block.marks.get("exits", "0").isdecimal():
        raise DocsError(f"{block.place}: exits: takes a number")
    shorter = block.marks.get("shorter")
    if shorter is not None and not _same_program(shorter, block.program):
        raise DocsError(f"{block.place}: {shorter!r} is no shorter form of the same command")
    return block


def _prompted(lines: list[str], prompt: str, goes_on: str) -> Iterator[str]:
    """The lines after a prompt, and those that go on with them: after a backslash, or after a prompt of their own."""
    more = False
    for line in lines:
        if line.startswith(prompt):
            line, more = line[len(prompt) :], True
        elif goes_on and line.rstrip() + " " == goes_on:
            line = ""
        elif goes_on and line.startswith(goes_on):
            line = line[len(goes_on) :]
        elif not more:
            continue
        yield line
        more = not goes_on and line.endswith("\\")


def _same_program(one: str, other: str) -> bool:
    """Whether both begin with the same program, module or script, and the same subcommand."""
    words = [[word for word in shlex.split(each, comments=True) if "=" not in word] for each in (one, other)]
    first, second = (each[: 4 if each[1:2] == ["-m"] else 2] for each in words)
    return first == second
