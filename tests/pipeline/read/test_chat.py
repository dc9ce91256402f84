"""Chats: records to turns with special ids and losses, kept by everything that rewrites a dataset."""

import io
import json
import re
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pipeline_helpers import STATIC, counts, letters, preprocess, write_jsonl
from helpers.rewriting_examples import SCORED, files, make_place, run, sides
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.read.formats.jsonl import parse_lines
from pipeline.read.lines import Line
from pipeline.records import DeadLetter, Place, Record
from pipeline.scoring.cut import cut, pieces
from pipeline.settings import ChatSettings, ReadSettings
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.content import ContentHash
from shared.shards.document import Row
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
    (found,) = parse_lines("a.jsonl", iter([Line(1, 0, data, len(data))]), reading)
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
        ({"messages": "a"}, "column 'messages' is string, not an array"),
        ({"messages": []}, "column 'messages' is an empty array"),
        ({"messages": [3]}, r"messages\[0\] is number, not an object"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\] has no 'role'"),
        ({"messages": [*TURNS, {"role": "user"}]}, r"messages\[5\] has no 'content'"),
        ({"messages": [{"role": 1, "content": "a"}]}, r"messages\[0\]: the role is number"),
        ({"messages": [{"role": "bot", "content": "a"}]}, r"unknown role 'bot'; --roles names system, user, assistant"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is null, not a string"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "lone surrogate at character 0"),
        ({"messages": TURNS[:2]}, "nothing to learn: no turn of the role assistant"),
        ({"prompt": "a", "response": 4}, "column 'response' is number, not a string"),
    ],
)
def test_what_is_no_chat_says_why(record: dict, reason: str) -> None:
    found = parse(record)
    assert isinstance(found, DeadLetter)

    assert re.search(reason, found.reason), found.reason


def test_records_of_all_formats_become_the_same_chats_and_none_is_lost(tmp_path: Path) -> None:
    good, bad = chats(30), {"id": "bad", "messages": [{"role": "bot", "content": "x"}]}
    write_jsonl(tmp_path / "a.jsonl", [*good, bad])
    columns = {key: [record.get(key) for record in [*good, bad]] for key in ("id", "lang", "note", "messages")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for record in [*good, bad]:
            data = json.dumps(record).encode()
            member = tarfile.TarInfo(f"{record['id']}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    hashes = set()
    for source in ("a.jsonl", "a.parquet", "a.tar"):
        out = tmp_path / f"out-{source}"
        assert preprocess(tmp_path / source, "--out", out, "--chat", "--split-key", "id", *STATIC) == 3
        assert [letter["reason"] for letter in letters(out)] == [
            "messages[0] has the unknown role 'bot'; --roles names system, user, assistant"
        ]
        found = counts(out)
        assert found["records"] == 31 == found["documents"] + found["dead"] + found["empty"]
        manifests = [open_dataset(out / name).manifest for name in ("train", "validation")]
        assert all(m.identity.specials == ("system", "user", "assistant", "end") for m in manifests)
        hashes.add(tuple(shard.content_hash for m in manifests for shard in m.shards))
        assert run("verify", out) == 0
    assert len(hashes) == 1
    (tmp_path / "a.txt").write_text("no chat")
    assert preprocess(tmp_path / "a.txt", "--out", tmp_path / "text", "--chat", *STATIC) == 4
    assert "plain text holds no chats" in letters(tmp_path / "text")[0]["reason"]


def test_chats_with_the_same_words_but_other_turns_are_no_duplicates(tmp_path: Path) -> None:
    def chat(*contents: str) -> dict:
        return {"messages": [{"role": r, "content": c} for r, c in zip(["user", "assistant"], contents)]}

    write_jsonl(tmp_path / "a.jsonl", [chat("ab", "c"), chat("a", "bc"), chat("ab", "c")])
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "out", "--chat", "--dedup", *STATIC) == 0
    found = counts(tmp_path / "out")
    assert (found["documents"], found["duplicates"]) == (2, 1)


def test_everything_that_rewrites_a_dataset_keeps_turns_and_losses(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    write_jsonl(tmp_path / "a.jsonl", chats(40))
    options = ("--chat", "--entropy-model", place / "model", "--validation-fraction", "0.3", "--meta", *SCORED)
    options = (*options, "--rule", "entropy", "--theta", 2, "--min-length", 2, "--sidecar", "float32")
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "run", *options) == 0
    assert run("verify", tmp_path / "run") == 0
    assert run("inspect", tmp_path / "run" / "train") == 0
    for through in ("webdataset", "parquet"):
        there, back = tmp_path / through, tmp_path / f"back-{through}"
        assert run("convert", tmp_path / "run", "--to", through, "--out", there, "--workers", 1) == 0
        assert run("verify", there) == 0
        assert run("convert", there, "--to", "arrow", "--out", back, "--workers", 1) == 0
        assert sides(back) == sides(tmp_path / "run")
    # Its own shards as input give the same shards again, and so does another threshold and back.
    assert preprocess(tmp_path / "run", "--out", tmp_path / "again", *options[1:]) == 0
    ours, theirs = (open_dataset(tmp_path / name / "train") for name in ("run", "again"))
    assert theirs.manifest.identity.specials == ours.manifest.identity.specials
    assert theirs.manifest.totals == ours.manifest.totals
    assert run("recut", tmp_path / "run", "--out", tmp_path / "cut", "--target", 3) == 0
    assert run("verify", tmp_path / "cut") == 0
    assert run("recut", tmp_path / "cut", "--out", tmp_path / "uncut", "--theta", 2) == 0
    assert files(tmp_path / "uncut" / "train") == files(tmp_path / "run" / "train")
    other = ("--validation-fraction", 0.5, "--seed", 1)
    assert run("split", tmp_path / "run", "--out", tmp_path / "split", *other, "--workers", 1) == 0
    assert run("verify", tmp_path / "split") == 0
    mixed = (tmp_path / "run" / "train", tmp_path / "a.jsonl")
    assert preprocess(*mixed, "--out", tmp_path / "both", "--chat", "--roles", "user,assistant", *STATIC) == 2


@st.composite
def spanned(draw: st.DrawFn) -> Record:
    text = draw(st.binary(min_size=1, max_size=80))
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    specials = st.sampled_from([None, 260, 261])
    values = [(end, draw(specials), draw(st.booleans())) for end in [*ends, len(text)]]
    normal = joined_spans([(spans_of(values), len(text))])
    return Record(Place("f"), "id", "s", text, spans=normal)


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(spanned(), min_size=1, max_size=3),
    longest=st.integers(6, 40),
    rule=st.sampled_from(["none", "byte", "static", "space"]),
)
def test_parts_of_a_document_are_the_document_whatever_their_size(records, longest: int, rule: str) -> None:
    patching = PatchingSettings(rule=rule, stride=4 if rule == "static" else None, max_length=6)
    rows = list(cut(pieces(records, None), patching, longest))
    for record in records:
        own = [(row, last) for of, row, last in rows if of is record]
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


def test_what_tools_are_asked_and_answer_is_read_under_a_role_of_its_own_or_as_the_users() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
        {"role": "assistant", "content": "12 degrees"},
    ]
    found = parse({"messages": turns})
    assert isinstance(found, Record), found
    assert b'"name":"f"' in found.text
    assert found.spans is not None
    begins = [int(special) for special in found.spans.specials if special not in (-1, END)]
    assert begins == [USER, ASSISTANT, USER, ASSISTANT]
    roles = ("system", "user", "assistant", "tool")
    named = parse({"messages": turns}, ReadSettings(chat=ChatSettings(roles=roles)))
    assert isinstance(named, Record)
    assert named.spans is not None
    begins = [int(special) for special in named.spans.specials if special not in (-1, 264)]
    assert begins == [USER, ASSISTANT, 263, ASSISTANT]
    letter = parse({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]})
    assert isinstance(letter, DeadLetter)
    assert "image_url" in letter.reason
