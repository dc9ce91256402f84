"""A model that counts finds patches wherever an entropy model is asked for, the same ones everywhere (laws 1, 2, 5)."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.counted_models import counted_folder
from helpers.pipeline_helpers import command, preprocess, shard_hashes, some_records, write_jsonl

from pipeline.__main__ import main
from shared.counts.files import load_counts
from shared.counts.scorer import CountRows
from shared.counts.table import CountModel
from shared.model_folder.identity import model_sha256
from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.shards.manifest import load_manifest
from shared.shards.open import open_dataset
from shared.vocabulary import BOS, EOS, document_tokens

RULES = {
    "entropy": ("--theta", 0.8),
    "monotonic": ("--theta", 0.3),
    "entropy_rise": ("--theta", 0.5, "--theta-rise", 0.1),
}
STACK = {"width": 32, "layers": 1, "heads": 2}
MODELS = {"plain": False, "lines": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    records = some_records(18, words=12)
    for number, record in enumerate(records):
        record["text"] += "\n" * (number % 3) + record["text"][: number * 3]
    write_jsonl(folder / "a.jsonl", records)
    for name, newline_reset in MODELS.items():
        counted_folder(folder / name, [record["text"].encode() for record in records[::2]], 4, newline_reset)
    return folder


def patch(place: Path, out: Path, model: str, rule: str, *options: object) -> int:
    common = ("--entropy-model", place / model, "--rule", rule, *RULES[rule], "--split-bytes", 2000)
    return preprocess(place / "a.jsonl", "--out", out, *common, "--executor", "inline", *options)


def starts_of(tokens: np.ndarray, counts: CountModel, patching: PatchingSettings) -> list[int]:
    """Where patches begin, found token by token."""
    stream, rows, starts = PatchStream(patching), CountRows(counts), [0]
    for number, token in enumerate(tokens[:-1].tolist()):
        entropy = float(rows.advance(np.array([[token]], np.int16))[0, 0])
        rows.accept([1])
        if stream.push(token, entropy):
            starts.append(number + 1)
    return starts


def starts_stored(lengths: np.ndarray) -> list[int]:
    return [0, *np.cumsum(lengths.astype(int))[:-1].tolist()]


@pytest.mark.parametrize(("model", "rule"), product(MODELS, RULES))
def test_every_boundary_is_the_one_that_is_found_byte_by_byte(place, tmp_path, model, rule) -> None:
    """Law 2 without a tolerance."""
    assert patch(place, tmp_path / "out", model, rule, "--workers", 1, "--sidecar", "none") == 0
    counts, decided = load_counts(place / model), 0
    for name in ("train", "validation"):
        dataset = open_dataset(tmp_path / "out" / name)
        assert load_counts(dataset.entropy_model).contexts == counts.contexts
        for row in dataset.rows():
            tokens = row.tokens(True)
            assert (tokens[0], tokens[-1]) == (BOS, EOS)
            starts = starts_of(tokens, counts, dataset.patching)
            assert starts == starts_stored(row.patch_lengths)
            decided += len(starts)
    assert decided > 200


@pytest.mark.drill
def test_two_processes_and_ray_write_the_same_shards_as_one(place, tmp_path) -> None:
    assert patch(place, tmp_path / "one", "plain", "entropy", "--workers", 1, "--sidecar", "uint8") == 0
    assert patch(place, tmp_path / "two", "plain", "entropy", "--workers", 2, "--sidecar", "uint8") == 0
    line = ("--entropy-model", place / "plain", "--rule", "entropy", *RULES["entropy"], "--split-bytes", 2000)
    ray = ("--executor", "ray", "--workers", 2, "--sidecar", "uint8", "--threads", 2, "--dtype", "bfloat16")
    found = command("preprocess", place / "a.jsonl", "--out", tmp_path / "ray", *line, *ray, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two") == shard_hashes(tmp_path / "ray")
    identity = load_manifest(tmp_path / "one" / "train").identity
    assert identity.entropy_model.sha256 == model_sha256(place / "plain")
    assert identity.entropy_model.numerics is None  # no machine reaches a bit of it
    assert patch(place, tmp_path / "one", "plain", "entropy", "--workers", 1, "--sidecar", "uint8", "--threads", 3) == 0


def test_a_document_in_parts_is_cut_as_a_whole_one(place, tmp_path) -> None:
    text = "".join(record["text"] for record in some_records(40, words=12)) * 1200
    write_jsonl(tmp_path / "long.jsonl", [{"id": "long", "text": text}])
    options = ("--entropy-model", place / "lines", "--rule", "entropy", *RULES["entropy"], "--validation-fraction", 0)
    assert preprocess(tmp_path / "long.jsonl", "--out", tmp_path / "out", *options, "--executor", "inline") == 0
    dataset = open_dataset(tmp_path / "out" / "train")
    rows = list(dataset.rows())
    assert [row.part for row in rows] == [0, 1]
    tokens = document_tokens(text.encode())
    entropies = load_counts(place / "lines").entropies(tokens[None, :-1])[0]
    wanted = patch_lengths(tokens, dataset.patching, entropies)
    assert np.concatenate([row.patch_lengths for row in rows]).tolist() == wanted.tolist()


@pytest.mark.parametrize("rule", RULES)
def test_special_ids_of_chats_open_contexts(place, tmp_path, rule) -> None:
    """Stored boundaries of chats are those that a stream finds, which sees the ids themselves."""
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[n % 3], "content": record["text"]} for n, record in enumerate(some_records(30, 12))]
    chats = [{"id": str(n), "messages": messages[n : n + 3]} for n in range(0, 30, 3)]
    write_jsonl(tmp_path / "chats.jsonl", chats)
    options = ("--chat", "--entropy-model", place / "plain", "--rule", rule, *RULES[rule], "--validation-fraction", 0)
    assert preprocess(tmp_path / "chats.jsonl", "--out", tmp_path / "out", *options, "--executor", "inline") == 0
    dataset, counts = open_dataset(tmp_path / "out" / "train"), load_counts(place / "plain")
    rows = list(dataset.rows())
    assert len(rows) == 10
    for row in rows:
        tokens = row.tokens(True)
        assert (tokens >= 260).sum() == 6  # a role and an end for each turn
        assert starts_of(tokens, counts, dataset.patching) == starts_stored(row.patch_lengths)


def test_other_commands_take_it(place, tmp_path, capsys) -> None:
    raw, patching = tmp_path / "raw", tmp_path / "p.json"
    assert preprocess(place / "a.jsonl", "--out", raw, "--rule", "none", "--executor", "inline") == 0
    model = ("--entropy-model", str(place / "plain"))
    assert main(["calibrate", str(raw), *model, "--target", "3", "--out", str(patching)]) == 0
    made = patching.stat().st_mtime_ns
    assert main(["calibrate", str(raw), *model, "--target", "3", "--out", str(patching), "--threads", "2"]) == 0
    assert patching.stat().st_mtime_ns == made  # as many threads as one likes: it is current
    more = ("--patching", patching, "--executor", "inline")
    assert preprocess(place / "a.jsonl", "--out", tmp_path / "cut", *model, *more) == 0
    train = str(tmp_path / "cut" / "train")
    assert main(["calibrate", train, *model, "--target", "4", "--out", str(tmp_path / "4.json")]) == 0
    recut = ("recut", train, "--patching", str(tmp_path / "4.json"), "--out", str(tmp_path / "again"))
    assert main([*recut]) == 0
    capsys.readouterr()
    assert main(["verify", train]) == 0
    assert main(["inspect", train]) == 0
    assert f"entropy model {model_sha256(place / 'plain')[:16]}, which counts" in capsys.readouterr().out
    assert main(["inspect", train, "--html", str(tmp_path / "page.html")]) == 0
    assert "which counts" in (tmp_path / "page.html").read_text()
    assert main(["preprocess", str(place / "a.jsonl"), *model, *map(str, more), "--out", "x", "--dry-run"]) == 0
    again, first = (load_manifest(tmp_path / name).identity for name in ("again", "cut/train"))
    assert again.entropy_model == first.entropy_model
    assert again.patching != first.patching


def test_options_that_it_has_no_use_for_are_named(place, tmp_path, capsys) -> None:
    assert patch(place, tmp_path / "out", "plain", "entropy", "--dtype", "bfloat16", "--threads", 2) == 0
    said = capsys.readouterr().err
    assert "no effect of --dtype, --threads" in said
    assert "no effect" not in said.replace("no effect of --dtype, --threads", "")


def test_who_scores_with_it_does_not_load_torch(place, tmp_path) -> None:
    code = (
        "import sys; from pipeline.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch'; sys.exit(code)"
    )
    options = ("--entropy-model", place / "plain", "--rule", "entropy", *RULES["entropy"])
    line = ("preprocess", place / "a.jsonl", "--out", tmp_path / "out", *options, "--executor", "inline")
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, line), "--workers", "1"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("model", "own", "words"),
    [
        ({"kind": "hnet", **dict.fromkeys(("encoder", "global", "decoder"), STACK)}, False, "kind 'hnet', no entropy"),
        ({"kind": "flat", **STACK}, False, "kind 'flat', no entropy model\n"),
        ({"kind": "blt", **dict.fromkeys(("encoder", "global", "decoder"), STACK)}, True, "entropy model is in {}\n"),
    ],
)
def test_a_model_that_finds_no_patches_for_others_is_called_what_it_is(
    place, tmp_path, capsys, model, own, words
) -> None:
    folder = tmp_path / "model"
    (folder / "entropy_model").mkdir(parents=True) if own else folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model))
    options = ("--entropy-model", folder, "--rule", "entropy", *RULES["entropy"])
    assert preprocess(place / "a.jsonl", "--out", tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert words.format(folder / "entropy_model") in said
    assert ("entropy_model" in said) == own
