"""Task files: which fields are understood, what each record asks, and what is said of a record that asks nothing."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.shards.formats.arrow_messages import messages
from trainer.errors import TaskError
from trainer.evaluation.tasks import records
from trainer.evaluation.tasks.opening import ChoiceTask, CompletionTask, Shots, open_task, open_tasks
from trainer.evaluation.tasks.questions import Choice, Completion, joined
from trainer.evaluation.tasks.records import read_records

PLAIN = {"context": "The sky is", "choices": ["blue.", "green."], "answer": 0}


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        (PLAIN, Choice("The sky is", ("blue.", "green."), 0)),
        (PLAIN | {"answer": "1"}, Choice("The sky is", ("blue.", "green."), 1)),
        (PLAIN | {"answer": "b"}, Choice("The sky is", ("blue.", "green."), 1)),
        (PLAIN | {"answer": "green."}, Choice("The sky is", ("blue.", "green."), 1)),
        # A choice that is itself a number is meant as the choice.
        (PLAIN | {"choices": ["1", "2", "0"], "answer": "2"}, Choice("The sky is", ("1", "2", "0"), 1)),
        (
            {"ctx": "A man sits. he", "ctx_a": "A man sits.", "ctx_b": "he", "activity_label": "Rowing",
             "endings": ["rows [step] away.", "flies."], "label": "0"},
            Choice("A man sits. he", ("rows [step] away.", "flies."), 0),
        ),
        ({"ctx": "A man", "endings": ["rows.", "flies."], "label": 1}, Choice("A man", ("rows.", "flies."), 1)),
        (
            {"question": "Which?", "choices": {"text": ["iron", "wood"], "label": ["1", "2"]}, "answerKey": "2"},
            Choice("Question: Which?\nAnswer:", ("iron", "wood"), 1),
        ),
        (
            {"question_stem": "Which?", "choices": {"text": ["iron", "wood"], "label": ["A", "B"]}, "answerKey": "A"},
            Choice("Question: Which?\nAnswer:", ("iron", "wood"), 0),
        ),
        (
            {"goal": "To sit", "sol1": "use a chair", "sol2": "use a lamp", "label": 0},
            Choice("Question: To sit\nAnswer:", ("use a chair", "use a lamp"), 0),
        ),
        ({"prompt": "1 + 1 =", "answer": "2"}, Completion("1 + 1 =", ("2",))),
        ({"question": "Who?", "answers": ["me", "I"]}, Completion("Question: Who?\nAnswer:", ("me", "I"))),
    ],
)  # fmt: skip
def test_fields_by_any_of_the_known_names_ask_the_same(tmp_path: Path, record: dict[str, Any], asked: object) -> None:
    assert open_task(lines(tmp_path / "task.jsonl", record)).questions == (asked,)


CODE = {"ctx_a": "def f():", "ctx_b": "    x  = [0]", "activity_label": "Code",
        "endings": ["\n    return  x[0]\n", " pass "], "label": 0}  # fmt: skip


def test_what_is_in_the_file_is_asked_and_hellaswags_normalisation_is_an_option(tmp_path: Path) -> None:
    path = lines(tmp_path / "code.jsonl", CODE)
    assert open_task(path).questions == (Choice("def f():    x  = [0]", ("\n    return  x[0]\n", " pass "), 0),)
    changed = open_task(path, normalize="hellaswag")
    assert isinstance(changed, ChoiceTask)
    assert changed.normalized == "hellaswag"
    assert changed.questions == (Choice("Code: def f():   x =", ("return x", "pass"), 0),)
    both = [path, lines(tmp_path / "plain.jsonl", PLAIN)]
    assert [task.normalized for task in open_tasks(both, normalize="hellaswag")] == ["hellaswag", None]  # type: ignore[union-attr]
    with pytest.raises(TaskError, match="--normalize hellaswag changes nothing"):
        open_tasks(both[1:], normalize="hellaswag")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (PLAIN | {"answer": 2}, "answer is 2; give the number of one of the 2 choices"),
        (PLAIN | {"answer": True}, "answer is True"),
        (PLAIN | {"answer": "neither"}, "answer is 'neither'"),
        (PLAIN | {"choices": ["blue."]}, "two non-empty choices"),
        (PLAIN | {"choices": ["blue.", ""]}, "two non-empty choices"),
        (PLAIN | {"choices": "blue"}, "choices is not a list of texts"),
        ({"choices": ["a", "b"], "answer": 0}, "has only choices, answer; a multiple-choice record has one of"),
        ({"question": "?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "C"}, "answerKey is 'C'"),
        ({"prompt": "1 + 1 ="}, "has no answer"),
        ({"prompt": 3, "answer": "2"}, "prompt is not a text"),
        ({"text": "x"}, "has only text"),
    ],
)  # fmt: skip
def test_a_record_that_asks_nothing_is_named_with_its_line(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    path = lines(tmp_path / "task.jsonl", PLAIN, record)
    with pytest.raises(TaskError) as error:
        open_task(path)
    assert str(error.value).startswith(f"{path}:2")
    assert said in str(error.value)


def test_lines_that_are_not_records_and_paths_without_tasks_are_said(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    for content, said in (("{}\n[1]\n", "not a JSON object"), ('{"a": 1}\n{"b"\n', "not JSON"), ("\n", "is empty")):
        path.write_text(content)
        with pytest.raises(TaskError, match=said):
            open_task(path)
    lines(path, PLAIN, {"prompt": "1 + 1 =", "answer": "2"})
    with pytest.raises(TaskError, match="with choices or without them, not both"):
        open_task(path)
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "none.jsonl", lines(tmp_path / "task.txt")):
        with pytest.raises(TaskError, match=str(where)):
            open_tasks([where])


def test_all_formats_hold_the_same_task(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [{"goal": "sit", "sol1": "chair", "sol2": "lamp", "label": number % 2} for number in range(3)]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as file:
        file.write_table(table)
    lines(tmp_path / "d.jsonl", *table.to_pylist())
    tasks = open_tasks([tmp_path])
    assert [task.name for task in tasks] == ["a", "b", "c", "d"]
    assert len({task.questions for task in tasks}) == 1
    assert len(open_task(tmp_path / "a.parquet", limit=2).questions) == 2
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(TaskError, match=r"a\.parquet"):
        open_task(tmp_path / "a.parquet")


def test_a_file_named_as_a_split_is_called_by_its_folder_and_names_are_unique(tmp_path: Path) -> None:
    lines(tmp_path / "hellaswag" / "validation.jsonl", PLAIN)
    lines(tmp_path / "piqa" / "validation-00000.jsonl", PLAIN)
    assert [task.name for task in open_tasks([tmp_path])] == ["hellaswag", "piqa"]
    lines(tmp_path / "hellaswag" / "test.jsonl", PLAIN)
    with pytest.raises(TaskError, match=r"2 .* hellaswag"):
        open_tasks([tmp_path])


def test_shots_are_other_questions_with_their_answers(tmp_path: Path) -> None:
    task = open_task(lines(tmp_path / "task.jsonl", *(PLAIN | {"context": f"{number}:"} for number in range(6))))
    shots = Shots(task, 3)
    for number in range(6):
        before = shots.before(number)
        assert before.count(": blue.\n\n") == 3
        assert f"{number}:" not in before
    assert Shots(task, 0).before(2) == ""
    assert Shots(task, 3).before(4) == shots.before(4)
    with pytest.raises(TaskError, match="--shots 6"):
        Shots(task, 6)


def test_one_blank_stands_between_a_context_and_what_follows() -> None:
    assert joined("It is", "so") == "It is so"
    assert joined("It is ", "so") == joined("It is", " so") == "It is so"
    assert joined("", "so") == "so"


def test_tasks_of_cute_are_known_by_their_published_names(tmp_path: Path) -> None:
    record = {"prompt": 'Spell out the word " cat ".', "answer": "c a t"}
    table = pa.Table.from_pylist([record])
    for name in ("data/spell-00000-of-00001.parquet", "del_char/0000.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name)
    lines(tmp_path / "swap_word.jsonl", record)
    lines(tmp_path / "mine.jsonl", record)
    lines(tmp_path / "orth.jsonl", PLAIN)
    tasks = open_tasks([tmp_path])
    assert [task.name for task in tasks] == ["spell", "del_char", "mine", "orth", "swap_word"]
    assert [getattr(task, "cute", None) for task in tasks] == ["spell", "del_char", None, None, "swap_word"]
    assert isinstance(tasks[3], ChoiceTask)
    assert isinstance(tasks[0], CompletionTask)
    assert tasks[0].questions == (Completion('Spell out the word " cat ". Answer: "', ("c a t",)),)
    assert Shots(tasks[0], 4).before(0) == ""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_a_fifo_in_the_place_of_a_task_file_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    for given in (tmp_path, tmp_path / f"a{suffix}"):
        with pytest.raises(TaskError, match=rf"a\{suffix}: not a regular file"):
            open_tasks([given])


def stream(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=ZSTD) as writer:
        writer.write_table(table)
    return path


def arrow_file(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=ZSTD) as writer:
        writer.write_table(table)
    return path


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, compression="zstd")
    return path


ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")
WRITERS = {"stream": (stream, "t.arrow"), "file": (arrow_file, "t.arrow"), "parquet": (parquet, "t.parquet")}


@pytest.mark.parametrize("way", WRITERS)
def test_records_of_all_types_are_what_was_written(tmp_path: Path, way: str) -> None:
    values = {
        "question": ["What?", "Why?"],
        "choices": [["x", "y"], None],
        "meta": [{"a": "s", "b": [1.5]}, None],
        "label": ["left", "right"],
        "count": [1, None],
    }
    table = pa.table(values)
    table = table.set_column(3, "label", table["label"].dictionary_encode())
    write, name = WRITERS[way]
    found = read_records(write(tmp_path / name, table))
    assert [record.values for record in found] == table.to_pylist()
    assert [record.values for record in read_records(tmp_path / name, 1)] == table.to_pylist()[:1]


def test_a_stream_without_its_end_mark_is_read_and_one_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = stream(tmp_path / "t.arrow", pa.table({"question": ["What?"], "answer": ["x"]}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert len(read_records(path)) == 1
    path.write_bytes(whole[:-40])
    with pytest.raises(TaskError, match=r"t\.arrow"):
        read_records(path)


@pytest.mark.parametrize("way", WRITERS)
def test_a_text_that_is_held_once_and_stands_in_every_row_is_counted_before_it_is_made(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_BYTES", 1 << 22)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["a" * (1 << 20)]))
    write, name = WRITERS[way]
    path = write(tmp_path / name, pa.table({"question": text, "answer": ["x"] * 200}))
    tracemalloc.start()
    try:
        with pytest.raises(TaskError, match="more than 4,194,304 bytes"):
            read_records(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_stream_that_is_compressed_in_the_way_of_an_older_version_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_BATCH_BYTES", 1 << 20)
    table = pa.table({"question": ["a" * (1 << 21)]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=ZSTD) as writer:
        writer.write_batch(table.to_batches()[0], custom_metadata={"ARROW:experimental_compression": "zstd"})
    data = bytearray(sink.getvalue())
    begin = next(found.begin for found in messages(pa.BufferReader(bytes(data))) if found.kind == "batch")

    def number(form: str, at: int) -> int:
        return struct.unpack_from(form, data, at)[0]

    def field(table: int, index: int) -> int:
        """Where the place of a field in a flatbuffer's table is said."""
        return table - number("<i", table) + 4 + 2 * index

    root = begin + 8 + number("<I", begin + 8)
    struct.pack_into("<h", data, root + number("<H", field(root, 0)), 3)  # version 4
    header = root + number("<H", field(root, 2))
    struct.pack_into("<H", data, field(header + number("<I", header), 3), 0)  # without a word of version 5's
    with pa.ipc.open_stream(pa.py_buffer(bytes(data))) as stream:
        assert stream.read_next_batch().nbytes > 1 << 21  # pyarrow reads it all the same
    path = tmp_path / "t.arrow"
    path.write_bytes(data)
    with pytest.raises(TaskError, match="expands to"):
        read_records(path)


@pytest.mark.parametrize("way", WRITERS)
def test_a_batch_says_how_long_it_will_be_before_it_is_decoded(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_BATCH_BYTES", 1 << 20)
    write, name = WRITERS[way]
    path = write(tmp_path / name, pa.table({"question": ["a" * (1 << 21)], "answer": ["x"]}))
    with pytest.raises(TaskError, match="expands to"):
        read_records(path)
