"""What commands may replace: files that we wrote, or any regular file with --overwrite; streams are written to."""

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from shared.errors import OutputError
from shared.io.files.outputs import Output, check_folder, whole_folder

OURS = re.compile(rb"ours: ")


def test_a_new_file_and_one_of_ours_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    Output(path, OURS).write("ours: 1")
    Output(path, OURS).write("ours: 2")
    assert path.read_text() == "ours: 2"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("content", ["theirs", "", " ours: almost"])
def test_a_foreign_file_is_replaced_with_overwrite_only(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(OutputError, match="--overwrite"):
        Output(path, OURS)
    assert path.read_text() == content
    Output(path, OURS, overwrite=True).write("ours: 1")
    assert path.read_text() == "ours: 1"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["ours", "nothing", "folder"])
def test_symbolic_links_and_folders_are_never_replaced(tmp_path: Path, target: str, overwrite: bool) -> None:
    (tmp_path / "ours").write_text("ours: 1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="symbolic link"):
        Output(tmp_path / "link", OURS, overwrite)
    with pytest.raises(OutputError, match="folder"):
        Output(tmp_path / "folder", OURS, overwrite)
    assert (tmp_path / "link").is_symlink()


def test_a_file_that_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    out = Output(tmp_path / "a.txt", OURS)
    out.path.write_text("theirs")
    with pytest.raises(OutputError):
        out.write("ours: 1")
    assert out.path.read_text() == "theirs"


@pytest.mark.parametrize("linked", [False, True])
def test_a_fifo_is_written_to(tmp_path: Path, linked: bool) -> None:
    fifo = path = tmp_path / "fifo"
    os.mkfifo(fifo)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    Output(path, OURS).write("ours: 1" * 50_000)
    reader.join()
    assert read == [b"ours: 1" * 50_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_fifo_without_a_reader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.io.files.outputs.READER_SECONDS", 0.0)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputError, match="fifo is a FIFO"):
        Output(tmp_path / "fifo", OURS).write("ours: 1")


def test_devices_and_open_files_are_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Output(Path("/dev/null"), OURS).write("ours: 1")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    print("before")
    Output(Path("/dev/stdout"), OURS).write("ours: 1\n")
    Output(Path("/dev/fd/2"), OURS).write("ours: 2\n")
    assert capfd.readouterr() == ("before\nours: 1\n", "ours: 2\n")
    with pytest.raises(OSError, match="/dev/full"):
        Output(Path("/dev/full"), OURS).write("ours: 1")


def test_what_can_never_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        Output(tmp_path / "file" / "a.txt", OURS)
    with pytest.raises(OutputError, match="file"):
        check_folder(tmp_path / "file" / "a")


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    folder = tmp_path / "folder"
    folder.mkdir()
    check_folder(folder)
    (folder / "note").write_text("theirs")
    check_folder(folder, lambda folder: (folder / "note").exists())
    (tmp_path / "link").symlink_to(folder)
    os.mkfifo(tmp_path / "fifo")
    for path in (folder, folder / "note", tmp_path / "link", tmp_path / "fifo"):
        with pytest.raises(OutputError, match=re.escape(str(path))), whole_folder(path):
            raise AssertionError("nothing is made")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fifo", "folder", "link"]


def test_each_command_that_writes_a_file_refuses_foreign_ones_before_it_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model and no dataset is there: only the output can be what is refused."""
    from pipeline.__main__ import main as pipeline
    from trainer.__main__ import main as trainer

    foreign, folder, here = tmp_path / "theirs", tmp_path / "folder", str(tmp_path / "nothing")
    foreign.write_text("theirs")
    folder.mkdir()
    (folder / "theirs").write_text("theirs")
    for main, *arguments in (
        (pipeline, "inspect", here, "--html", foreign),
        (pipeline, "calibrate", here, "--target", "4", "--out", foreign),
        (pipeline, "preprocess", here, "--rule", "byte", "--out", foreign),
        (trainer, "report", here, "--out", foreign),
        (trainer, "sweep", here, here, "--out", foreign),
        (trainer, "evaluate", here, here, "--json", foreign),
        (trainer, "evaluate", here, here, "--documents", foreign),
        (trainer, "tasks", here, here, "--json", foreign),
        (trainer, "tasks", here, here, "--examples", foreign),
        (trainer, "lm-eval", here, "--tasks", "x", "--json", foreign),
        (trainer, "export-hf", here, folder),
        (trainer, "import-hf", here, folder),
        (trainer, "byteify", here, folder, "--recipe", here),
        (trainer, "merge-weights", here, "--out", folder),
    ):
        assert main([str(part) for part in arguments]) != 0
        said = capsys.readouterr().err
        assert str(folder if folder in arguments else foreign) in said, arguments
        assert "nothing" not in said, arguments
    assert foreign.read_text() == (folder / "theirs").read_text() == "theirs"


def test_no_command_replaces_what_it_reads_or_writes_twice_whatever_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.__main__ import main as pipeline
    from trainer.__main__ import main as trainer

    file, folder = tmp_path / "x.jsonl", tmp_path / "folder"
    file.write_text('{"text": "theirs"}\n')
    folder.mkdir()
    (folder / "model.safetensors").write_text("theirs")
    linked, inside, new = tmp_path / "linked", folder / "model.safetensors", tmp_path / "new"
    os.link(file, linked)
    for main, *arguments in (
        (trainer, "evaluate", folder, file, "--json", file),
        (trainer, "evaluate", folder, file, "--json", f"{tmp_path}/folder/../x.jsonl"),
        (trainer, "evaluate", folder, file, "--documents", linked),
        (trainer, "evaluate", folder, folder, "--beside", folder, file, "--json", file),
        (trainer, "evaluate", folder, file, "--json", inside),
        (trainer, "evaluate", folder, file, "--json", new, "--documents", new),
        (trainer, "tasks", folder, file, "--json", file),
        (trainer, "tasks", folder, file, "--examples", file),
        (trainer, "tasks", folder, file, "--examples", new, "--json", new),
        (trainer, "lm-eval", folder, "--tasks", "x", "--json", inside),
        (trainer, "report", folder, "--out", inside),
        (trainer, "sweep", folder, folder, "--out", inside),
        (pipeline, "inspect", folder, "--html", inside),
        (pipeline, "calibrate", folder, "--target", "4", "--entropy-model", folder, "--out", inside),
    ):
        assert main([*(str(part) for part in arguments), "--overwrite"]) != 0
        assert re.search("this command (uses|reads); ", capsys.readouterr().err), arguments
    assert file.read_text() == '{"text": "theirs"}\n'
    assert inside.read_text() == "theirs"
    assert not new.exists()


def test_a_stream_may_be_named_twice_and_a_file_of_ours_may_lie_in_what_is_read(tmp_path: Path) -> None:
    Output(Path(os.devnull), OURS, others=(Path(os.devnull),)).write("ours: now")
    (tmp_path / "figures").write_text("ours: before")
    Output(tmp_path / "figures", OURS, others=(tmp_path,)).write("ours: now")
    Output(tmp_path / "new", OURS, others=(tmp_path, Path("-"))).write("ours: now")
    assert (tmp_path / "figures").read_text() == (tmp_path / "new").read_text() == "ours: now"
