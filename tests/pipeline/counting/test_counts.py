"""Counts are those of the definition, and their tables the same bytes whoever counts, in whatever portions."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.chaos import Chaos, a_worker_process, the_driver
from helpers.counting_oracle import Oracle, key_of
from helpers.pipeline_helpers import environment, preprocess, some_records, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.__main__ import main
from pipeline.counting import build, pairs, runs, steps
from pipeline.counting.blend import logarithm
from pipeline.counting.count_split import token_stream
from pipeline.counting.made_by import load_counts_making
from pipeline.counting.pairs import PairCounter
from pipeline.counting.runs import Entries, Run, RunWriter, added, bounds_of, is_run, merged, run_path, write_run
from pipeline.counting.settings import ANY, Counting
from pipeline.records import LongText, Place, Record, Records
from pipeline.settings import PipelineError
from shared.counts.files import load_counts
from shared.errors import ModelFileError
from shared.model_folder.identity import load_settings, model_sha256, stored_settings
from shared.shards.spans import spans_of
from shared.vocabulary import BOS, EOS, NEWLINE, document_tokens

PIECE = 16
SHA256 = "e799e35282289904c96066a9a6c368637447c2a6882f1048ba7f220056f6fd71"
"""Of the table of `texts()`, on every machine."""
LOGARITHMS_SHA256 = "46b412d604cb234b79cb5ca7bb2f51d0ea258c47032f3a692edcb79c40898fff"


def texts(count: int = 300) -> list[str]:
    """Sentences with common words, some of them long, on lines; no two alike."""
    draws, words = random.Random(7), ["the ", "patch ", "of ", "bytes ", "é", "日本 ", "\n", "a", "\x00", "ends. "]
    return [f"{i} " + "".join(draws.choices(words, k=draws.choice([0, 3, 20, 200]))) for i in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", [{"text": text} for text in texts()])


def count(*arguments: object) -> int:
    return main(["count", *map(str, arguments), "--executor", "inline"])


def of_counter(entries: Entries, order: int) -> dict[tuple[int, int], int]:
    found = {}
    for pair, pieces in zip(entries.pairs.tolist(), entries.counts.tolist()):
        found[pair >> 9, pair & 511] = pieces
    assert len(found) == len(entries)
    return found


documents = st.lists(st.lists(st.sampled_from([3, NEWLINE, 60, 61, 62, 261]), max_size=70), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(documents, st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_pairs_are_those_of_the_definition_in_whatever_portions(bodies, order, newline_reset, seed):
    tokens = [[BOS, *body, EOS] for body in bodies]
    draws = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "PIECE", PIECE)
        patch.setattr(pairs, "TOGETHER", 40)
        counter, found = PairCounter(order, newline_reset), []
        stream = list(itertools.chain.from_iterable(tokens))
        while stream:
            size = draws.randint(1, 90)
            found += counter.add(np.array(stream[:size], np.int16))
            del stream[:size]
        found += counter.finish()
    oracle = Oracle(tokens, order, newline_reset, PIECE)
    expected = {(key_of(context, order), symbol): len(where) for (context, symbol), where in oracle.pairs.items()}
    expected |= {(key_of(context, order), int(ANY)): len(where) for context, where in oracle.contexts.items()}
    assert of_counter(added(found), order) == expected
    assert counter.pieces == len(oracle.contexts[()])


def test_documents_come_as_tokens_with_their_special_ids() -> None:
    plain = [b"ab", b"c", b"\n"]
    records = Records.of([Record(Place("a"), "x", "d", text) for text in plain])
    assert np.array_equal(np.concatenate([*token_stream(records)]), np.concatenate([*map(document_tokens, plain)]))
    chat = Record(Place("a"), "x", "d", b"abc", spans=spans_of([(1, 260, True), (3, 261, False)]))
    parts = [*token_stream(Records.of([*records, chat]))]
    assert np.concatenate(parts)[-7:].tolist() == [BOS, 101, 260, 102, 103, 261, EOS]
    text = LongText(6, b"", lambda: iter((b"ab", b"cd", b"ef")))
    long = Record(Place("a"), "x", "d", text, spans=spans_of([(3, 260, True), (6, None, True)]))
    tokens = np.concatenate([*token_stream(Records.of([long]))])
    assert tokens.tolist() == [BOS, 101, 102, 103, 260, 104, 105, 106, EOS]


def test_the_logarithm_is_that_of_the_library_but_for_its_last_bits() -> None:
    draws = np.random.default_rng(0)
    values = np.concatenate([draws.random(20_000), 1 - draws.random(20_000) * 1e-6, 2.0 ** np.arange(-60, 60), [257.0]])
    expected = np.array([math.log(value) for value in values])
    assert np.abs(logarithm(values) - expected).max() < 1e-14
    relative = np.abs(logarithm(values) - expected)[expected != 0] / np.abs(expected[expected != 0])
    assert relative.max() < 1e-15
    assert logarithm(np.array([1.0]))[0] == 0.0


def optional_instructions() -> str:
    """What NumPy finds on this processor beyond what it was built for: as NPY_DISABLE_CPU_FEATURES takes it."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))


LOGARITHMS = """
import hashlib, numpy
from pipeline.counting.blend import logarithm
print(hashlib.sha256(logarithm(numpy.arange(1, 200_001) / 65_537.0).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("disabled", ["", optional_instructions()])
def test_the_logarithm_has_the_same_bits_everywhere(disabled):
    variables = environment() | {"NPY_DISABLE_CPU_FEATURES": disabled}
    line = [sys.executable, "-c", LOGARITHMS]
    found = subprocess.run(
        line, check=True, env=variables, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert found.stdout.strip() == LOGARITHMS_SHA256


@pytest.mark.parametrize(
    ("order", "contexts", "least", "newline_reset", "documents"), [(5, 10**6, 1, False, 7), (3, 40, 2, True, 60)]
)
def test_a_table_is_that_of_the_definition(tmp_path, order, contexts, least, newline_reset, documents):
    own = texts(documents)
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in own])
    options = ["--order", order, "--contexts", contexts, "--least", least, "--workers", 1, "--validation-fraction", 0]
    options += ["--newline-reset"] * newline_reset
    assert count(corpus, "--out", tmp_path / "m", *options) == 0
    tokens = [document_tokens(text.encode()).tolist() for text in own]
    oracle = Oracle(tokens, order, newline_reset, 2**14)
    kept = oracle.kept(contexts, least, order)
    expected = oracle.entropies(kept, 257)
    tensors = load_file(tmp_path / "m/model.safetensors")
    there = tensors["keys"] != 0
    found = dict(zip(tensors["keys"][there].tolist(), tensors["entropies"][there].tolist()))
    assert found.keys() == {key_of(context, order) for context in kept[1:]}
    for context in kept[1:]:
        assert found[key_of(context, order)] == pytest.approx(expected[context], abs=1e-6)
    assert float(tensors["root"][0]) == pytest.approx(expected[()], abs=1e-6)
    assert stored_settings(tmp_path / "m").newline_reset == newline_reset
    by_order = [sum(len(context) == length for context in kept) for length in range(order + 1)]
    making = load_counts_making(tmp_path / "m")
    assert making.contexts_by_order == by_order
    assert making.distinct == len(oracle.contexts) - 1


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("table") / "m"
    assert count(corpus, "--out", folder, "--workers", 1, "--least", 2) == 0
    return folder


def test_the_bytes_are_those_of_every_other_machine(table):
    assert model_sha256(table) == SHA256


@pytest.mark.parametrize(("workers", "split_bytes"), [(2, 2**20), (3, 2**13)])
def test_workers_and_splits_change_nothing(tmp_path, corpus, table, workers, split_bytes):
    options = ("--workers", workers, "--split-bytes", split_bytes, "--least", 2)
    assert count(corpus, "--out", tmp_path / "m", *options) == 0
    assert model_sha256(tmp_path / "m") == SHA256
    assert load_counts_making(tmp_path / "m") == load_counts_making(table)


def test_what_was_counted_is_told_by_its_content(tmp_path, corpus, table):
    other = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in reversed(texts())])
    assert count(other, "--out", tmp_path / "m", "--workers", 1, "--least", 2) == 0
    assert load_counts_making(tmp_path / "m").content == load_counts_making(table).content
    other.write_text(other.read_text().replace("patch", "watch", 1))
    assert count(other, "--out", tmp_path / "n", "--workers", 1, "--least", 2) == 0
    assert load_counts_making(tmp_path / "n").content != load_counts_making(table).content


@pytest.mark.slow
def test_neither_does_ray(tmp_path, corpus):
    options = ["--executor", "ray", "--workers", "2", "--split-bytes", "8192", "--least", "2"]
    assert main(["count", str(corpus), "--out", str(tmp_path / "m"), *options]) == 0
    assert model_sha256(tmp_path / "m") == SHA256


@pytest.mark.parametrize(("entries", "few_enough"), [(600, False), (2000, False), (30_000, True)])
def test_neither_does_memory(tmp_path, corpus, entries, few_enough, monkeypatch):
    monkeypatch.setattr(Counting, "entries", lambda *_: entries)
    monkeypatch.setattr(pairs, "TOGETHER", 2**15)
    monkeypatch.setattr(runs, "BLOCK", 16)
    looked, given = steps.ranges_of, []
    monkeypatch.setattr(steps, "ranges_of", lambda counting, paths: given.append(paths) or looked(counting, paths))
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2, "--split-bytes", 2**12) == 0
    assert model_sha256(tmp_path / "m") == SHA256
    assert len(given[0]) <= max(entries // 64, 2)
    assert all((path.parent.name == "counts") == few_enough for path in given[0])


COUNT_WITHOUT_TORCH = """
import sys
from pipeline.__main__ import main
assert main(["count", *sys.argv[1:]]) == 0
assert "torch" not in sys.modules
"""


def test_neither_do_the_instructions_of_a_processor_nor_is_torch_needed(tmp_path, corpus):
    optional = optional_instructions()
    if not optional:
        pytest.skip("NumPy has no optional instructions for this processor")
    line = [sys.executable, "-c", COUNT_WITHOUT_TORCH, str(corpus), "--out", str(tmp_path / "m"), "--least", "2"]
    plain = environment() | {"NPY_DISABLE_CPU_FEATURES": optional}
    subprocess.run([*line, "--executor", "inline", "--workers", "1"], check=True, env=plain, capture_output=True)
    assert model_sha256(tmp_path / "m") == SHA256


def test_the_train_split_is_counted_as_preprocess_finds_it(tmp_path, corpus):
    assert preprocess(corpus, "--out", tmp_path / "d", "--executor", "inline", "--workers", 1) == 0
    assert count(tmp_path / "d", "--out", tmp_path / "m", "--workers", 1, "--least", 2) == 0
    assert model_sha256(tmp_path / "m") == SHA256
    making = load_counts_making(tmp_path / "m")
    assert making.documents < len(texts())
    assert list(making.trained_on) == [str(tmp_path / "d/train")]


def test_a_sample_is_a_part_of_the_identity(tmp_path, corpus, capsys):
    options = ("--workers", 1, "--least", 2, "--out", tmp_path / "m")
    assert count(corpus, *options, "--bytes", 20_000) == 0
    making = load_counts_making(tmp_path / "m")
    assert making.bytes <= 20_000
    assert making.identity.reading["sample_bytes"] == 20_000
    capsys.readouterr()
    assert count(corpus, *options, "--bytes", 30_000) == 2
    assert "reading.sample_bytes: recorded 20000, now 30000" in capsys.readouterr().err


def test_special_ids_are_one_symbol_more(tmp_path):
    turns = [{"role": "user", "content": f"question {i}"} for i in range(2)]
    chats = [{"messages": [*turns, {"role": "assistant", "content": f"answer {i}"}]} for i in range(40)]
    corpus = write_jsonl(tmp_path / "a.jsonl", chats)
    assert count(corpus, "--chat", "--out", tmp_path / "m", "--workers", 1, "--validation-fraction", 0) == 0
    settings = stored_settings(tmp_path / "m")
    assert settings.symbols == 258
    keys = load_file(tmp_path / "m/model.safetensors")["keys"]
    newest = keys[keys != 0] >> 9 * (settings.order - 1)
    assert 3 in newest
    assert newest.max() < 260


def test_one_document_is_counted_by_its_pieces(tmp_path):
    draws = random.Random(1)
    text = " ".join(draws.choice(["one", "two", "three"]) for _ in range(40_000))
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text}])
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, "--validation-fraction", 0) == 0
    making = load_counts_making(tmp_path / "m")
    assert making.pieces == (len(text) + 1 + 2**14 - 1) // 2**14
    assert making.contexts_by_order == [1, 8, 12, 15, 20, 26]


def test_without_a_document_there_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("")
    assert count(tmp_path / "a.jsonl", "--out", tmp_path / "m", "--workers", 1) == 2
    assert "no document in its train split" in capsys.readouterr().err
    assert not (tmp_path / "m/model.safetensors").exists()


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"txt": "a"}, (), "(records: 1 dead, with place and reason in {}/counting/dead-letters)"),
        ({"text": ""}, (), "(records: 1 empty)"),
        ({"text": "a" * 9}, ("--bytes", 3), "(records: 1 not in the sample)"),
        ({"text": "a"}, ("--validation-fraction", 0.999), "(records: 1 held out)"),
    ],
)
def test_what_became_of_records_of_which_none_is_counted_is_said(tmp_path, capsys, record, options, words):
    corpus = write_jsonl(tmp_path / "a.jsonl", [record])
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, *options) == 2
    assert words.format(tmp_path / "m") in capsys.readouterr().err


def test_a_finished_count_is_left_as_it_is(tmp_path, corpus, capsys):
    options = (corpus, "--out", tmp_path / "m", "--workers", 1)
    assert count(*options, "--least", 2) == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors", "counted.json"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir()}
    capsys.readouterr()
    assert count(*options, "--least", 2, "--memory", 2048) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir()} == times
    assert count(*options, "--least", 3) == 2
    assert "least: recorded 2, now 3" in capsys.readouterr().err


def test_text_that_was_written_to_is_not_taken_for_what_was_counted(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    options = (corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2)
    assert count(*options) == 0
    corpus.write_text(corpus.read_text().replace("patch", "watch"))
    assert count(*options) == 2
    assert "written to since" in capsys.readouterr().err


def test_a_damaged_table_is_noticed(tmp_path, corpus, capsys):
    options = (corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2)
    assert count(*options) == 0
    path = tmp_path / "m/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert count(*options) == 2
    assert "damaged" in capsys.readouterr().err
    rule = ("--rule", "entropy", "--theta", 1, "--executor", "inline")
    assert preprocess(corpus, "--entropy-model", tmp_path / "m", *rule, "--out", tmp_path / "out") == 2
    assert "m is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "step"), [(steps, "ranges_of"), (steps, "kept_contexts"), (build, "place_contexts")]
)
def test_a_count_goes_on_where_it_was_stopped(tmp_path, corpus, module, step, monkeypatch):
    options = (corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2, "--split-bytes", 2**14)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, lambda *_: (_ for _ in ()).throw(PipelineError("stopped")))
        assert count(*options) == 2
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "m/counting").glob("*/*.run")}
    assert len(runs) > 2
    kept = []
    rmtree = build.shutil.rmtree

    def removed(path, **given):
        kept.extend(found for found in runs if found.exists() and found.stat().st_mtime_ns == runs[found])
        rmtree(path, **given)

    monkeypatch.setattr(build.shutil, "rmtree", removed)
    assert count(*options) == 0
    assert set(kept) == set(runs)
    assert model_sha256(tmp_path / "m") == SHA256


def test_an_unfinished_count_of_another_kind_is_not_mixed_in(tmp_path, corpus, monkeypatch, capsys):
    options = (corpus, "--out", tmp_path / "m", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "kept_contexts", lambda *_: (_ for _ in ()).throw(PipelineError("stopped")))
        assert count(*options, "--order", 3) == 2
    assert count(*options, "--order", 4) == 2
    assert "order: recorded 3, now 4" in capsys.readouterr().err


def test_dead_letters_are_listed_beside_the_table(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    corpus.write_text(corpus.read_text() + "no json\n")
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2) == 3
    lists = [*(tmp_path / "m/dead-letters").iterdir()]
    assert [json.loads(line)["line"] for line in lists[0].read_text().splitlines()] == [41]
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2) == 3


def test_options_are_checked(tmp_path, corpus, capsys):
    for wrong in (["--order", "7"], ["--contexts", "0"], ["--least", "0"], ["--memory", "100"]):
        assert count(corpus, "--out", tmp_path / "m", *wrong) == 2
        assert wrong[0] in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    assert count(corpus, "--out", tmp_path / "other") == 2
    with pytest.raises(SystemExit):
        count(corpus, "--out", "s3://bucket/x")
    assert "give a path of this machine" in capsys.readouterr().err


def test_runs_add_up_and_are_cut_between_contexts(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BLOCK", 64)
    draws = np.random.default_rng(3)
    parts, paths = [], []
    for number in range(5):
        found = np.unique(draws.integers(0, 3000, 2000).astype(np.uint64))
        parts.append(Entries(found, draws.integers(1, 9, len(found)).astype(np.uint32)))
        writer = RunWriter(tmp_path / f"s{number}", 700)
        for begin in range(0, len(found), 50):
            writer.add(Entries(found[begin : begin + 50], parts[-1].counts[begin : begin + 50]))
        writer.close()
        assert sum(writer.written) == len(found)
        paths += [run_path(tmp_path / f"s{number}", one) for one in range(len(writer.written))]
    found = [Run(path) for path in paths]
    most = 64 * len(paths) + 300
    bounds = bounds_of(found, most)
    assert len(bounds) > 5
    assert not (bounds[1:-1] & np.uint64(511)).any()
    sizes = [sum(len(run.between(*map(int, bounds[at : at + 2]))) for run in found) for at in range(len(bounds) - 1)]
    # What follows one context is never cut: up to 512 entries more of each run.
    assert max(sizes) <= most + 512 * len(paths)
    write_run(tmp_path / "whole.run", merged(found, most))
    whole, together = added(parts), Run(tmp_path / "whole.run").between(0, 2**63)
    assert np.array_equal(together.pairs, whole.pairs)
    assert np.array_equal(together.counts, whole.counts)


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=60), st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_run_gives_what_was_written(tmp_path_factory, pairs_of_run, first, end):
    path = tmp_path_factory.mktemp("run") / "a.run"
    found = np.array(sorted(pairs_of_run), np.uint64)
    counts = np.arange(2**32 - len(found), 2**32).astype(np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "BLOCK", 7)
        write_run(path, [Entries(found[:20], counts[:20]), Entries(found[20:], counts[20:])])
        run = Run(path)
        assert len(run) == len(found)
        part = run.between(first, end)
    wanted = (found >= first) & (found < end)
    assert np.array_equal(part.pairs, found[wanted])
    assert np.array_equal(part.counts, counts[wanted])
    assert is_run(path, len(found))
    assert not is_run(path, len(found) + 1)


def test_a_damaged_run_is_refused(tmp_path):
    path = tmp_path / "counts" / "a.run"
    found = np.arange(0, 90_000, 9).astype(np.uint64)
    write_run(path, [Entries(found, np.ones(len(found), np.uint32))])
    content = path.read_bytes()
    for damaged in (b"", content[:4], content[:-9], content[:-8] + b"\xff" * 8, bytes(64) + content[64:]):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"a\.run is missing or damaged"):
            Run(path).between(0, 2**63)


def test_a_count_too_large_for_its_file_is_refused():
    one = Entries(np.array([7], np.uint64), np.array([2**32 - 1], np.uint32))
    with pytest.raises(PipelineError, match="--bytes"):
        added([one, one])


def test_a_table_finds_patches(tmp_path, corpus):
    assert count(corpus, "--out", tmp_path / "m", "--workers", 1, "--least", 2) == 0
    model = load_counts(tmp_path / "m")
    found = model.entropies(document_tokens(b"the patch of bytes ")[None])[0]
    assert found[4] > found[3], "after a whole word more may come than within one"
    with pytest.raises(ModelFileError, match="counts"):
        load_settings(tmp_path / "m")


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_kills_leave_no_trace(tmp_path):
    """Killed at any moment, driver or worker, a count ends with the bytes of one that nobody disturbed."""
    corpus = write_jsonl(tmp_path / "a.jsonl", some_records(12_000, words=120))
    options = (corpus, "--split-bytes", 2**18, "--executor", "inline", "--least", 2)
    assert main(["count", *map(str, options), "--workers", "1", "--out", str(tmp_path / "quiet")]) == 0
    spent: Counter[str] = Counter()
    victims = {"driver": the_driver, "worker": a_worker_process}
    for number in range(10):  # a quick machine may be done before all kills have happened
        out = tmp_path / f"out{number}"
        due = {kind: victim for kind, victim in victims.items() if kind not in spent} or victims
        chaos = Chaos(max(5 - spent.total(), 1), due, seed=number, pause=(0.5, 4.0))
        chaos.finish(["count", *options, "--out", out, "--workers", 3], tmp_path / "log")
        spent += chaos.done
        assert model_sha256(out) == model_sha256(tmp_path / "quiet")
        assert not (out / "counting").exists()
        if spent.total() >= 5 and set(spent) == set(victims):
            break
    assert set(spent) == set(victims)
