"""Finds phrases and names that this project does not use: python tests/wording.py. tests/wording.toml lists them."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests/wording.toml"
KINDS = {".py", ".md", ".toml", ".sh", ".yaml", ".html", ".js", ".css"}
ELSEWHERE = {"tests/wording.toml", "tests/renames.toml", "CHANGELOG.md"}
"""What quotes old words on purpose."""


def found(text: str, words: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """(line, what is there, what to write instead) for each hit, in order."""
    patterns = [(re.compile(pattern), better) for pattern, better in words.items()]
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, better in patterns:
            if hit := pattern.search(line):
                yield number, hit.group(), better


def main() -> int:
    """Print every hit; 1 when there is one."""
    table = tomllib.loads(LIST.read_text())
    words = table["phrases"] | table["names"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hits = 0
    for name in listed.splitlines():
        if Path(name).suffix not in KINDS or name in ELSEWHERE or not (ROOT / name).is_file():
            continue
        for line, what, better in found((ROOT / name).read_text(), words):
            print(f"{name}:{line}: {what!r}; write: {better}")
            hits += 1
    return int(hits > 0)


if __name__ == "__main__":
    sys.exit(main())
