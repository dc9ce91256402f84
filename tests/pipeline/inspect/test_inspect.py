"""inspect reports the figures that the rows add up to, and ranks documents by how predictable they are."""

from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_examples import ENTROPY, MONOTONIC, NONE, STATIC, document, documents, in_two_parts, save_dataset

from pipeline.__main__ import main
from pipeline.charts import WIDTH, bar, bars, printable, with_boundaries, with_curve
from pipeline.commands.inspect import report
from pipeline.inspect.content_types import TYPES, WINDOW, content_types
from pipeline.inspect.survey import survey
from shared.io.display.tables import aligned
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.open import open_dataset


def command(folder: Path, *options: str) -> int:
    return main(["inspect", str(folder), *options])


def lines_of(folder: Path, examples: int = 3) -> list[str]:
    return list(report(open_dataset(folder), examples))


def row_of(lines: list[str], label: str) -> list[str]:
    """The cells of the only line that begins with a label."""
    (line,) = [line for line in lines if line.split()[:1] == [label]]
    return line.split()


def test_bytes_per_patch_of_each_subset_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [document("a", "code", b"x" * 40, STATIC), document("b", "prose", b"y" * 10, STATIC)]
    save_dataset(tmp_path, [rows], STATIC)
    lines = lines_of(tmp_path)
    # 40 bytes: ten patches of 4 and EOS alone; 10 bytes: 4, 4, and 2 with EOS
    assert row_of(lines, "code")[1:5] == ["1", "40", "11", f"{40 / 11:.2f}"]
    assert row_of(lines, "prose")[1:5] == ["1", "10", "3", f"{10 / 3:.2f}"]
    assert row_of(lines, "all")[1:5] == ["2", "50", "14", f"{50 / 14:.2f}"]
    assert "Patch lengths in tokens (of 14 patches): median 4, 90% up to 4, 99% up to 4" in lines
    assert row_of(lines, "4")[1] == f"{12 / 14:.1%}"


def test_a_subset_named_all_is_told_from_all_subsets(tmp_path: Path) -> None:
    rows = [document("a", "all", b"x" * 40, STATIC), document("b", "prose", b"y" * 10, STATIC)]
    save_dataset(tmp_path, [rows], STATIC)
    own, whole = [line.split() for line in lines_of(tmp_path) if line.split()[:1] == ["all"]]
    assert own[:3] == ["all", "1", "40"]
    assert whole[:4] == ["all", "subsets", "2", "50"]


def test_shares_of_easy_and_hard_positions_are_relative_to_theta(tmp_path: Path) -> None:
    theta = ENTROPY.for_subset(None).theta
    assert theta is not None
    entropies = np.array([0.1, theta / 3 - 0.1, theta / 3 + 0.1, theta, theta + 0.01, 5.0, 5.5, 5.5], np.float32)
    row = Row("a", "code", b"1234567", 0, np.array([1, 8], np.uint16), entropies)
    save_dataset(tmp_path, [[row]], ENTROPY)
    lines = lines_of(tmp_path)
    (at,) = [n for n, line in enumerate(lines) if line.startswith("Share of positions")]
    assert "theta" in lines[at]
    shares = {line.split()[0]: line.split("%")[0].split()[-1] for line in lines[at + 1 : at + 4]}
    assert shares == {"low": "25.0", "medium": "25.0", "high": "50.0"}
    assert any("(of 8 positions)" in line for line in lines)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
@pytest.mark.parametrize("sidecar", ["uint8", "float32"])
@pytest.mark.parametrize("patching", [NONE, ENTROPY, MONOTONIC])
def test_documents_are_ranked_by_mean_entropy(tmp_path: Path, format, sidecar, patching: PatchingSettings) -> None:
    levels = np.random.default_rng(0).permutation(20) / 4 + 0.25
    rows = [document(f"{n:02d}", "x", b"some text " * 20, patching, level) for n, level in enumerate(levels)]
    rows.append(document("short", "x", b"!", patching, 0.01))
    parted = [part for row in rows for part in (in_two_parts(row) if patching.patched and row.id == "03" else [row])]
    save_dataset(tmp_path, [parted[:7], parted[7:]], patching, format, sidecar)
    found = survey(open_dataset(tmp_path), 4)
    easy, hard = found.easiest, found.hardest
    means = {row.id: float(row.entropies.mean()) for row in rows if row.id != "short"}
    wanted = sorted(means, key=means.__getitem__)
    assert [example.id for example in easy] == wanted[:4]
    assert [example.id for example in hard] == wanted[:-5:-1]
    for example in [*easy, *hard]:
        assert example.mean == pytest.approx(means[example.id], abs=0.02 if sidecar == "uint8" else 1e-5)
        assert example.size == 200


def test_a_dataset_without_a_sidecar_says_how_to_see_examples(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY)
    assert "--sidecar uint8" in lines_of(tmp_path)[-1]
    assert "--sidecar" not in lines_of(tmp_path, examples=0)[-1]


def test_an_unpatched_dataset_is_described_without_patches(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(NONE), NONE)
    lines = lines_of(tmp_path)
    assert row_of(lines, "all")[1:] == ["4", "515", "-", "-"]
    assert not any(line.startswith("Patch lengths") for line in lines)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    save_dataset(tmp_path / "train", documents(ENTROPY), ENTROPY, sidecar="uint8")
    save_dataset(tmp_path / "validation", [], ENTROPY, split="validation")
    return tmp_path


def test_the_command_takes_both_splits(both: Path, capsys) -> None:
    assert command(both, "--documents", "1") == 0
    out = capsys.readouterr().out
    assert ("split train" in out, "split validation" in out) == (True, True)
    assert out.count("Most predictable") == 1


def test_a_folder_without_a_dataset_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    assert command(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not a finished dataset" in error


def test_a_negative_number_of_documents_is_refused(both: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        command(both, "--documents", "-1")
    assert "-1 is less than 0" in capsys.readouterr().err


def test_a_shard_that_is_gone_is_named(both: Path, capsys) -> None:
    (both / "train" / "shard-00000.arrow").unlink()
    assert command(both) == 2
    assert "shard-00000.arrow is missing" in capsys.readouterr().err


def test_boundaries_are_drawn_behind_characters_and_bytes_are_escaped() -> None:
    assert with_boundaries(b"abcd", [0, 1, 3]) == "a│bc│d"
    assert with_boundaries("a大b".encode(), [0, 2, 3, 4]) == "a大│b"
    assert with_boundaries(b"", [0]) == ""
    assert printable(b"\x1b[31m\xff\n") == "\\x1b[31m\\xff\\n"


def test_a_curve_stands_under_its_characters() -> None:
    text = "a大\n\u0301b".encode()  # one column, two, two for the escape, none for the accent, one
    heights = [0.0, 1.0, 0.0, 0.0, 0.5, 0.9, 0.9, 0.26]
    assert with_boundaries(text, [0, 2, 4]) == "a大│\\n\u0301b"
    assert with_curve(text, [0, 2, 4], heights) == "▁██│▅▅▃"
    assert with_curve(b"", [0], []) == ""


def test_content_types_are_told_with_their_patch_sizes(tmp_path: Path) -> None:
    rows = [document("a", "x", b"def f(x):\n    return {x[0]: -x}\n" * 9, STATIC)]
    rows.append(document("b", "x", "Когда пришёл корабль, на пристани никого не было. ".encode() * 9, STATIC))
    save_dataset(tmp_path, [rows], STATIC, sidecar="uint8")
    lines = lines_of(tmp_path)
    assert any(line.startswith("Content types") and "all text" in line for line in lines)
    code, other = row_of(lines, "code"), row_of(lines, "Cyrillic")
    total = sum(len(row.text) for row in rows)
    assert code[1] == f"{len(rows[0].text) / total:.1%}"
    assert float(code[2]) == pytest.approx(float(rows[0].entropies[:-1].mean()), abs=0.02)
    for row, cells in zip(rows, (code, other)):
        assert float(cells[3]) == pytest.approx(len(row.text) / np.ceil(len(row.text) / 4), abs=0.005)


def by_bytes(rows: list[Row], patched: bool) -> tuple[dict, dict, dict]:
    """What the figures by content type and by subset must be, byte by byte: patch lengths, nats, lengths by subset."""
    lengths: dict = {}
    nats: dict = {}
    by_subset: dict = {}
    for row in rows:
        kinds = content_types(np.frombuffer(row.text, np.uint8), np.array([len(row.text)]))
        kind_of = [TYPES[kind] for kind in np.repeat(kinds, WINDOW)[: len(row.text)]]
        first = row.part == 0
        place = -1 if first else 0  # of the token, in bytes of the row
        for length in row.patch_lengths.tolist() if patched else []:
            if place >= 0:
                by_subset.setdefault(row.subset, []).append(min(length, 65))
            if 0 <= place < len(row.text):
                lengths.setdefault(kind_of[place], []).append(min(length, 65))
            place += length
        for number, value in enumerate(row.entropies.tolist()):
            byte = number if first else number + 1
            if byte < len(row.text):
                nats.setdefault(kind_of[byte], []).append(value)
    return lengths, nats, by_subset


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_figures_are_those_of_every_byte(tmp_path: Path, format) -> None:
    patching = PatchingSettings(rule="entropy", theta=4.8, max_length=512)
    texts = [
        b"def f(x): return {x[0]: -x}\n" * 30,
        "Größe 大きさ, размер. ".encode() * 40,
        bytes(range(256)) * 2,
        b"",
        b"ab",
    ]
    rows = [document(str(n), "pq"[n % 2], text, patching) for n, text in enumerate(texts)]
    rows = [*rows, *in_two_parts(document("z", "q", "слово word ".encode() * 50, patching))]
    save_dataset(tmp_path, [rows[:2], rows[2:]], patching, format, "float32")
    figures = survey(open_dataset(tmp_path), 0).figures
    lengths, nats, by_subset = by_bytes(rows, True)
    for code, name in enumerate(TYPES):
        assert figures.type_lengths[code].tolist() == np.bincount(lengths.get(name, []), minlength=66)[1:].tolist()
        assert figures.type_nats[code] == pytest.approx(sum(nats.get(name, [])))
        assert figures.type_scored[code] == len(nats.get(name, []))
    for code, name in enumerate("pq"):
        assert figures.lengths[code].tolist() == np.bincount(by_subset[name], minlength=66)[1:].tolist()
    manifest = open_dataset(tmp_path).manifest
    assert figures.entropies.sum(0).tolist() == manifest.entropy_histogram


def test_bars_are_proportional_and_tables_aligned() -> None:
    assert bar(1, 1) == "█" * WIDTH
    assert bar(0, 0) == ""
    assert len(bar(1, 2)) == WIDTH // 2
    assert bars([("a", 3), ("bb", 1)])[1].startswith("  bb   25.0%  █")
    assert aligned(["a", "n", ""], [["long", "1", "x"]], left=(0, 2), indent="  ") == "  a     n\n  long  1  x"
