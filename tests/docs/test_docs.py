"""Every command and program of README.md and docs/ is run, or marked with what it needs; docs/README.md says how."""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from doc_blocks import RUN, Block, DocsError, blocks_of
from doc_checks import check_command, check_piece, check_prose
from doc_world import PREPARATIONS, ROOT, Readers

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def all_blocks() -> list[Block]:
    """Blocks of all pages; one that is not well formed has none here, and fails its own test."""
    found: list[Block] = []
    for page in PAGES:
        try:
            found += blocks_of(page, name_of(page))
        except DocsError:
            continue
    return found


BLOCKS = [block for block in all_blocks() if block.language in RUN]
TRIED = [block for block in BLOCKS if not block.elsewhere]


LONG = ("make train", "make compare", "make scaling", "make entropy", "trainer adaptation", "trainer compare")
"""What begins so trains several models."""


def drills(blocks: list[Block]) -> set[str]:
    """Places of the blocks for which models are trained: by the block itself, or before it on its page."""
    trained, found = set[str](), set[str]()
    for block in blocks:
        if block.after or block.page in trained or any(word in block.program for word in LONG):
            trained.add(block.page)
            found.add(block.place)
    return found


def each(blocks: list[Block], drills: Collection[str] = ()) -> pytest.MarkDecorator:
    marked = [pytest.param(one, id=one.place, marks=[pytest.mark.drill] * (one.place in drills)) for one in blocks]
    return pytest.mark.parametrize("block", marked)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_have_languages_and_marks_that_mean_something(page: Path) -> None:
    names = {name for block in blocks_of(page, name_of(page)) for name in block.after}
    assert names <= PREPARATIONS.keys(), f"after: takes {', '.join(PREPARATIONS)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_commands_and_links_in_sentences_exist(page: Path) -> None:
    assert check_prose(page) == []


@pytest.mark.parametrize(
    "guide", [ROOT / f"docs/{folder}README.md" for folder in ("", "decisions/", "results/")], ids=name_of
)
def test_every_page_of_a_folder_is_in_its_guide(guide: Path) -> None:
    listed = guide.read_text()
    missing = [page.name for page in guide.parent.glob("*.md") if f"({page.name})" not in listed and page != guide]
    assert missing == []


@each([block for block in all_blocks() if block.language == "toml"])
def test_pieces_of_recipes_fit_into_one(block: Block) -> None:
    check_piece(block.text, block.marks.get("part of"))


@each([block for block in BLOCKS if block.needs])
def test_commands_that_need_more_have_options_that_exist(block: Block) -> None:
    if block.language == "python":  # tests/trainer/serving/test_http.py runs it
        assert block.page == "docs/serving.md", "only commands can be checked without being run"
        compile(block.program, block.place, "exec")
        return
    assert block.language in {"console", "sh"}, "only commands can be checked without being run"
    check_command(block.program)


@each([block for block in BLOCKS if block.file])
def test_commands_that_run_elsewhere_do(block: Block) -> None:
    """Targets of make in a script; a drill in a test that has the same parts and shorter runs."""
    check_command(block.program)
    file = ROOT / str(block.file)
    for line in block.program.splitlines():
        program, what = line.partition("#")[0].split()[:2]
        if program == "make":
            assert what in file.read_text().split(), f"{block.file} does not run {line!r}"
        else:
            assert parts_of(ROOT / what) & parts_of(file), f"{block.file} and {what} have no part in common"


def parts_of(program: Path) -> set[str]:
    """Modules of the tests that a program imports."""
    nodes = ast.walk(ast.parse(program.read_text()))
    names = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    helpers = {name.removeprefix("helpers.") for name in names if name.startswith("helpers.")}
    return helpers - {"tiny_runs", "ray_helpers"}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    opened = Readers(tmp_path_factory.mktemp("readers"), TRIED)
    yield opened
    opened.close()


@each(TRIED, drills(TRIED))
def test_blocks_run(block: Block, readers: Readers) -> None:
    wrong = readers.tried(block)
    if wrong:
        pytest.fail(wrong, pytrace=False)
