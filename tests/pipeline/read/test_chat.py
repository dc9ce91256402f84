"""Chats: records to turns with special ids and losses, kept by everything that rewrites a dataset."""

import io
import json
import re
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.input_trees import one_by_one
from helpers.pipeline_helpers import STATIC, counts, letters, preprocess, write_jsonl
from helpers.rewriting_examples import SCORED, files, make_place, run, sides
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.read.formats.jsonl import parse_lines
from pipeline.read.lines import Line
from pipeline.records import DeadLetter, Place, Record, Records
from pipeline.scoring.cut import cut, pieces
from pipeline.settings import ChatSettings, ReadSettings
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.content import ContentHash
from shared.shards.document import Row
from shared.shards.manifest import Manifest
from shared.shards.open import open_dataset
from shared.shards.spans import joined_spans, spans_of
from shared.vocabulary import BOS, EOS, byte_tokens

CHAT = ReadSettings(chat=ChatSettings())
SYSTEM, USER, ASSISTANT, END = range(260, 264)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe?"},
    {"role": "assistant", "content": "12 m"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "Yes."},
]


def parse(record: object, reading: ReadSettings = CHAT) -> Record | DeadLetter:
    data = json.dumps(record).encode()
    (found,) = one_by_one(parse_lines("a.jsonl", iter([Line(1, 0, data, len(data))]), reading))
    return found


def chats(count: int) -> list[dict]:
    def words(seed: int) -> str:
        return " ".join(f"w{seed * 7919 % 101}x{n}" for n in range(seed % 9))

    return [
        {
            "id": f"c{n}",
            "lang": "ab"[n % 2],
            "note": n,
            "messages": [
                {"role": role, "content": words(n + turn)}
                for turn, role in enumerate(["user", "assistant"] * (1 + n % 3))
            ],
        }
        for n in range(count)
    ]


def test_a_turn_is_its_role_its_content_and_an_end_and_only_answers_are_trained_on() -> None:
    record = parse({"messages": TURNS})
    assert isinstance(record, Record)
    assert record.spans is not None
    row = Row("", "", record.text, spans=record.spans)
    wanted, trained = [BOS], [False]
    for turn in TURNS:
        content = byte_tokens(turn["content"].encode()).tolist()
        answer = turn["role"] == "assistant"
        wanted += [{"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[turn["role"]], *content, END]
        trained += [False, *[answer] * len(content), answer]
    assert row.tokens(True).tolist() == [*wanted, EOS]
    assert record.spans.target_mask().tolist() == trained[1:]
    assert record.spans.last_loss
    assert row.targets(True) == len("12 m") + len("Yes.") + 2 + 1


def test_which_roles_are_targets_can_be_chosen() -> None:
    everyone = ReadSettings(chat=ChatSettings(learn=("system", "user", "assistant")))
    record = parse({"messages": TURNS}, everyone)
    assert record.spans.target_mask().sum() == record.tokens - len(TURNS)  # all but what begins a turn
    tool = ReadSettings(chat=ChatSettings(roles=("user", "tool"), learn=("tool",)))
    record = parse({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, tool)
    assert record.spans.specials.tolist() == [260, 262, 261, 262]
    pair, turns = (
        parse(values)
        for values in (
            {"prompt": "p", "completion": "rr", "messages": None},
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "rr"}]},
        )
    )
    assert (pair.text, pair.spans.as_json()) == (turns.text, turns.spans.as_json())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "a"}, "no column 'messages' or 'conversations', nor 'prompt' with 'response' or 'completion'"),
        ({"messages": "a"}, "column 'messages' is a string, not an array"),
        ({"messages": []}, "column 'messages' is an empty array"),
        ({"messages": [3]}, r"messages\[0\] is a number, not an object"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\] has no 'role'"),
        ({"messages": [*TURNS, {"role": "user"}]}, r"messages\[5\] has no 'content'"),
        ({"messages": [{"role": 1, "content": "a"}]}, r"messages\[0\]: the role is a number"),
        ({"messages": [{"role": "bot", "content": "a"}]}, r"unknown role 'bot'; --roles names system, user, assistant"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is null, not a string"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "lone surrogate at character 0"),
        ({"messages": TURNS[:2]}, "nothing to learn: no turn of the role assistant"),
        ({"prompt": "a", "response": 4}, "column 'response' is a number, not a string"),
    ],
)
def test_what_is_no_chat_says_why(record: dict, reason: str) -> None:
    found = parse(record)
    assert isinstance(found, DeadLetter)

    assert re.search(reason, found.reason), found.reason


SOURCES = ("a.jsonl", "a.parquet", "a.tar")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 chats and one with an unknown role as each kind of file, and the run that read it in `out-NAME`."""
    folder = tmp_path_factory.mktemp("formats")
    records = [*chats(30), {"id": "bad", "messages": [{"role": "bot", "content": "x"}]}]
    write_jsonl(folder / "a.jsonl", records)
    columns = {key: [record.get(key) for record in records] for key in ("id", "lang", "note", "messages")}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=7)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for record in records:
            data = json.dumps(record).encode()
            member = tarfile.TarInfo(f"{record['id']}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for source in SOURCES:
        assert (
            preprocess(folder / source, "--out", folder / f"out-{source}", "--chat", "--split-key", "id", *STATIC) == 3
        )
    return folder


def manifests(out: Path) -> list[Manifest]:
    return [open_dataset(out / name).manifest for name in ("train", "validation")]


@pytest.mark.parametrize("source", SOURCES)
def test_a_record_that_is_no_chat_costs_only_itself(read: Path, source: str) -> None:
    (letter,) = letters(read / f"out-{source}")
    assert re.search(r"messages\[0\].*'bot'.*--roles", letter["reason"])
    found = counts(read / f"out-{source}")
    assert found["records"] == 31 == found["documents"] + found["dead"] + found["empty"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_dataset_of_chats_names_the_special_ids(read: Path, source: str) -> None:
    assert {m.identity.specials for m in manifests(read / f"out-{source}")} == {("system", "user", "assistant", "end")}


@pytest.mark.parametrize("source", SOURCES)
def test_a_dataset_of_chats_is_verified(read: Path, source: str) -> None:
    assert run("verify", read / f"out-{source}") == 0


def test_records_of_all_formats_become_the_same_chats(read: Path) -> None:
    hashes = {tuple(manifest.content_hash for manifest in manifests(read / f"out-{source}")) for source in SOURCES}
    assert len(hashes) == 1


def test_plain_text_holds_no_chats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no chat")
    assert preprocess(tmp_path / "a.txt", "--out", tmp_path / "text", "--chat", *STATIC) == 4
    assert "no chats" in letters(tmp_path / "text")[0]["reason"]


def test_chats_with_the_same_words_but_other_turns_are_no_duplicates(tmp_path: Path) -> None:
    def chat(*contents: str) -> dict:
        return {"messages": [{"role": r, "content": c} for r, c in zip(["user", "assistant"], contents)]}

    write_jsonl(tmp_path / "a.jsonl", [chat("ab", "c"), chat("a", "bc"), chat("ab", "c")])
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "out", "--chat", "--dedup", *STATIC) == 0
    found = counts(tmp_path / "out")
    assert (found["documents"], found["duplicates"]) == (2, 1)


CUT = ("--rule", "entropy", "--theta", 2, "--min-length", 2, "--sidecar", "float32")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an entropy model in `place`, 40 chats and their scored dataset in `run`."""
    folder = tmp_path_factory.mktemp("rewriting")
    make_place(folder / "place")
    write_jsonl(folder / "a.jsonl", chats(40))
    assert preprocess(folder / "a.jsonl", "--out", folder / "run", "--chat", *scoring(folder)) == 0
    return folder


def scoring(tree: Path) -> tuple[object, ...]:
    model = ("--entropy-model", tree / "place" / "model")
    return (*model, "--validation-fraction", "0.3", "--meta", *SCORED, *CUT)


def test_a_scored_dataset_of_chats_is_verified_and_shown(tree: Path) -> None:
    assert run("verify", tree / "run") == 0
    assert run("inspect", tree / "run" / "train") == 0


@pytest.mark.parametrize("through", ["webdataset", "parquet"])
def test_turns_and_losses_stay_through_an_export(tree: Path, tmp_path: Path, through: str) -> None:
    there, back = tmp_path / through, tmp_path / "back"
    assert run("convert", tree / "run", "--to", through, "--out", there, "--workers", 1) == 0
    assert run("verify", there) == 0
    assert run("convert", there, "--to", "arrow", "--out", back, "--workers", 1) == 0
    assert sides(back) == sides(tree / "run")


def test_shards_of_chats_as_input_give_the_same_chats(tree: Path, tmp_path: Path) -> None:
    assert preprocess(tree / "run", "--out", tmp_path / "again", *scoring(tree)) == 0
    ours, theirs = (open_dataset(folder / "train").manifest for folder in (tree / "run", tmp_path / "again"))
    assert theirs.identity.specials == ours.identity.specials
    assert theirs.totals == ours.totals


def test_another_threshold_and_back_gives_the_same_shards(tree: Path, tmp_path: Path) -> None:
    assert run("recut", tree / "run", "--out", tmp_path / "cut", "--target", 3, "--workers", 1) == 0
    assert run("verify", tmp_path / "cut") == 0
    assert run("recut", tmp_path / "cut", "--out", tmp_path / "uncut", "--theta", 2, "--workers", 1) == 0
    assert files(tmp_path / "uncut" / "train") == files(tree / "run" / "train")


def test_chats_that_are_split_anew_are_verified(tree: Path, tmp_path: Path) -> None:
    other = ("--validation-fraction", 0.5, "--seed", 1)
    assert run("split", tree / "run", "--out", tmp_path / "split", *other, "--workers", 1) == 0
    assert run("verify", tmp_path / "split") == 0


def test_chats_of_other_roles_are_not_mixed(tree: Path, tmp_path: Path) -> None:
    mixed = (tree / "run" / "train", tree / "a.jsonl")
    assert preprocess(*mixed, "--out", tmp_path / "both", "--chat", "--roles", "user,assistant", *STATIC) == 2


@st.composite
def spanned(draw: st.DrawFn) -> Record:
    text = draw(st.binary(min_size=1, max_size=80))
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    specials = st.sampled_from([None, 260, 261])
    values = [(end, draw(specials), draw(st.booleans())) for end in [*ends, len(text)]]
    normal = joined_spans([(spans_of(values), len(text))])
    return Record(Place("f"), "id", "s", text, spans=normal)


@settings(max_examples=75, deadline=None)
@given(
    records=st.lists(spanned(), min_size=1, max_size=3),
    longest=st.integers(6, 40),
    rule=st.sampled_from(["none", "byte", "static", "space"]),
)
def test_parts_of_a_document_are_the_document_whatever_their_size(records, longest: int, rule: str) -> None:
    patching = PatchingSettings(rule=rule, stride=4 if rule == "static" else None, max_length=6)
    records = [replace(record, id=str(number)) for number, record in enumerate(records)]
    found = [rows for _, rows in cut(pieces([Records.of(records)], None, longest), patching, longest)]
    for record in records:
        own = [
            (rows.row(number), bool(rows.last[number]))
            for rows in found
            for number in range(len(rows))
            if rows.ids[number] == record.id
        ]
        whole = Row("id", "s", record.text, spans=record.spans)
        tokens = np.concatenate([row.tokens(last) for row, last in own])
        np.testing.assert_array_equal(tokens, whole.tokens(True))
        assert sum(row.targets(last) for row, last in own) == whole.targets(True)
        joined = joined_spans([(row.spans, len(row.text)) for row, _ in own])
        assert joined.as_json() == record.spans.as_json()
        hashes = []
        for parts in (own, [(whole, True)]):
            content = ContentHash()
            for row, last in parts:
                content.add(row, last)
            hashes.append(content.hexdigest())
        assert hashes[0] == hashes[1]
        plain = ContentHash()
        plain.add(Row("id", "s", record.text), True)
        assert plain.hexdigest() != hashes[0]
        if patching.patched:
            lengths = np.concatenate([row.patch_lengths for row, _ in own])
            np.testing.assert_array_equal(lengths, patch_lengths(whole.tokens(True), patching))
        assert all(a.part + 1 == b.part for (a, _), (b, _) in pairwise(own))


def test_chats_as_others_write_them_are_read() -> None:
    """ShareGPT's names, contents in parts, and roles of tools."""
    wanted = parse({"messages": TURNS})
    assert isinstance(wanted, Record)
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TURNS]
    parts = [
        {"role": turn["role"], "content": [{"type": "text", "text": c} for c in turn["content"]]} for turn in TURNS
    ]
    for record in ({"conversations": shared}, {"conversations": TURNS}, {"messages": parts}):
        found = parse(record)
        assert isinstance(found, Record), found
        assert found.spans is not None
        assert wanted.spans is not None
        assert (found.text, found.spans.as_json()) == (wanted.text, wanted.spans.as_json())


TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL_TURNS = [
    {"role": "user", "content": "How warm?"},
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "1"},
    {"role": "assistant", "content": "12 degrees"},
]


def test_what_a_tool_is_asked_is_text_of_the_turn() -> None:
    found = parse({"messages": TOOL_TURNS})
    assert isinstance(found, Record), found
    assert b'"name":"f"' in found.text


@pytest.mark.parametrize(
    ("roles", "end", "wanted"),
    [
        (("system", "user", "assistant"), END, [USER, ASSISTANT, USER, ASSISTANT]),
        (("system", "user", "assistant", "tool"), 264, [USER, ASSISTANT, 263, ASSISTANT]),
    ],
)
def test_what_a_tool_answers_is_read_under_a_role_of_its_own_or_as_the_users(
    roles: tuple[str, ...], end: int, wanted: list[int]
) -> None:
    found = parse({"messages": TOOL_TURNS}, ReadSettings(chat=ChatSettings(roles=roles)))
    assert isinstance(found, Record), found
    assert found.spans is not None
    assert [int(special) for special in found.spans.specials if special not in (-1, end)] == wanted


def test_an_image_in_a_turn_is_named() -> None:
    letter = parse({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]})
    assert isinstance(letter, DeadLetter)
    assert "image_url" in letter.reason
