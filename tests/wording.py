"""Checks how things are worded: python tests/wording.py [--fix].

Finds phrases and names that this project does not use, which tests/wording.toml lists, and pages that are not wrapped
at the ends of sentences, so that a change of one sentence changes one line. ``--fix`` wraps the pages.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests/wording.toml"
KINDS = {".py", ".md", ".toml", ".sh", ".yaml", ".html", ".js", ".css"}
ELSEWHERE = {"tests/wording.toml", "tests/renames.toml", "tests/same_results.py", "CHANGELOG.md"}
"""What quotes old words on purpose."""

END_OF_SENTENCE = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!e\.g\.)(?<!i\.e\.)(?<!\.\.\.) (?=[A-Z0-9`*\[\"(])")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")


def wrapped(page: str) -> str:
    """A page of Markdown with a line for each sentence; code, tables, headings and comments stay."""
    lines: list[str] = []
    paragraph: list[str] = []

    def end() -> None:
        if paragraph:
            first = ITEM.match(paragraph[0])
            indent = " " * (len(first.group()) if first else len(paragraph[0]) - len(paragraph[0].lstrip()))
            lead = paragraph[0][: len(indent)]
            text = " ".join(line.strip() for line in [paragraph[0][len(indent) :], *paragraph[1:]])
            sentences = END_OF_SENTENCE.split(text)
            lines.extend([lead + sentences[0], *(indent + sentence for sentence in sentences[1:])])
            paragraph.clear()

    in_code = False
    for line in page.splitlines():
        fence = line.lstrip().startswith("```")
        if fence or in_code or not line.strip() or line.lstrip().startswith(("|", "#", "<!--", ">", "![", "[![")):
            end()
            lines.append(line.rstrip() if not in_code else line)
            in_code ^= fence
            continue
        if ITEM.match(line):
            end()
        paragraph.append(line.rstrip())
    end()
    return "\n".join(lines) + "\n"


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
        if name.endswith(".md") and (page := (ROOT / name).read_text()) != wrapped(page):
            if "--fix" in sys.argv:
                (ROOT / name).write_text(wrapped(page))
            else:
                print(f"{name}: not wrapped at the ends of sentences; python tests/wording.py --fix does it")
                hits += 1
    return int(hits > 0)


if __name__ == "__main__":
    sys.exit(main())
