"""One rank of a node finds out, all know."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.node import once_a_node


def launched(folder: Path, rank: int, ranks: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    (folder / str(rank)).mkdir(parents=True, exist_ok=True)
    error_file = folder / str(rank) / "error.json"
    return {
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


def test_the_first_rank_finds_out_for_all(tmp_path: Path) -> None:
    asked = []

    def find(rank: int) -> str:
        asked.append(rank)
        time.sleep(0.2)  # the others are there meanwhile
        return f"found by {rank}"

    def ask(rank: int) -> str:
        return once_a_node("hash", lambda: find(rank), launched(tmp_path, rank, 3))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, (2, 1, 0))) == ["found by 0"] * 3
    assert asked == [0]


def test_another_attempt_and_another_question_are_asked_anew(tmp_path: Path) -> None:
    first, second = (launched(tmp_path / name, 0, 2) for name in ("attempt_0", "attempt_1"))
    assert once_a_node("hash", lambda: "before", first) == "before"
    assert once_a_node("hash", lambda: "after", second) == "after"
    assert once_a_node("other", lambda: "else", first) == "else"


def test_a_process_alone_asks_for_itself(tmp_path: Path) -> None:
    assert once_a_node("hash", lambda: "own", {}) == "own"
    assert once_a_node("hash", lambda: "own", launched(tmp_path, 0, 1)) == "own"
    assert not list(tmp_path.glob("*.answer"))
