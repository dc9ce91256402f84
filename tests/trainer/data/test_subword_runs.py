"""Models of byte-pair tokens: their packs, and that their bits per byte are those of the text."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pack_examples import document_numbers, in_parts, pack_digest, whole_documents
from helpers.rounding import NATS
from helpers.tiny_runs import NONE, STACK, STATIC, losses, metric_lines, run, tiny_data, tiny_settings
from helpers.token_data import (
    FLAT,
    VOCABULARY,
    cut,
    expected_slice,
    in_tokens,
    patching_of,
    random_texts,
    token_dataset,
)
from tokenizers import Tokenizer

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import TOKENIZER_FILE, load_making
from shared.errors import DatasetError
from shared.layers.batch import segments
from shared.model_folder.files import load_model
from shared.model_settings import FlatSettings
from shared.models.flops import training_flops
from shared.models.workload import useful_workload
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from shared.shards.spans import spans_of
from shared.vocabulary import BOS, EOS
from trainer.__main__ import main as command
from trainer.data.loader import PackLoader
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.data.packing.packs import Pack, Step
from trainer.data.packing.planner import Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.data.validation import ValidationPacks
from trainer.evaluation.documents import evaluate
from trainer.evaluation.texts import TextScorer
from trainer.metrics.run_metrics import FlopsCounter
from trainer.planning.plan import make_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpatched data, the same in tokens, and a run on them."""
    folder = tmp_path_factory.mktemp("subwords")
    in_tokens(tiny_data(folder / "plain", NONE), folder / "tokens")
    assert run(folder / "tokens", folder / "run", "--run.steps", 10, "--data.tokens", 512, model=FLAT) == 0
    return folder


@pytest.fixture(scope="module")
def encoder(place: Path) -> SubwordEncoder:
    return SubwordEncoder(place / "tokens-tokenizer")


@pytest.fixture(scope="module")
def mixed(place: Path, encoder: SubwordEncoder, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Documents of all sizes, some empty, binary or in three parts, some learned in part."""
    rows = []
    for number, row in enumerate(random_texts(3, 30)):
        if number % 4 == 0:
            bounds = np.append(0, np.cumsum(encoder.lengths(row.text)))
            row = replace(
                row, spans=spans_of([(int(bounds[len(bounds) // 2]), None, False), (len(row.text), None, True)])
            )
        row = cut(row, encoder)
        rows.append(in_parts(row) if len(row.text) > 60 else [row])
    pieces = [[part for parts in rows[n::4] for part in parts] for n in range(4)]
    return token_dataset(tmp_path_factory.mktemp("mixed"), place / "tokens-tokenizer", pieces)


def test_tables_over_tokens_learn_and_are_scored(place: Path, tmp_path: Path, capsys) -> None:
    model = FLAT | {"ngrams": {"sizes": [2, 3], "rows": 64}}
    assert run(place / "tokens", tmp_path / "run", "--run.steps", 12, "--data.tokens", 512, model=model) == 0
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.5
    arguments = ["evaluate", tmp_path / "run" / "model", place / "tokens", "--tokens", 512]
    assert command([*map(str, arguments)]) == 0
    text = open_dataset(place / "tokens" / "validation").manifest.totals.bytes
    assert f"{text:,}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("tokens", "patches", "streams"), [(60, 9, 1), (90, 40, 3), (150, 4, 2), (70, 3, 1)])
def test_every_token_is_a_target_once_in_a_pass_and_slices_are_what_the_definitions_say(
    mixed: Dataset, encoder: SubwordEncoder, tokens: int, patches: int, streams: int
) -> None:
    rows, numbers = whole_documents(mixed), document_numbers(mixed)
    reader, limits = SliceReader(mixed), PackLimits(tokens, patches, subwords=True)
    once = Mixing(repeats=dict.fromkeys(mixed.subset_names, 1))
    planner = Planner(mixed, reader, limits, once, first_cursor(mixed, 5, streams))
    trained: dict[int, list[int]] = {number: [] for number in range(len(rows))}
    while len((plan := planner.next_pack()).documents):
        pack = build_pack(plan, Step(0, 0, 0), reader)
        assert (plan.targets, plan.bytes) == (pack.targets, int(pack.slice_bytes.sum()))
        batch = pack.batch.to(torch.device("cpu"))
        assert batch.patches is None
        assert len(batch.ids) == len(batch.labels) == patches == sum(batch.documents.lengths)
        ends = np.cumsum(pack.lengths)
        for number, (low, high) in enumerate(zip(ends - pack.lengths, ends)):
            document = numbers[plan.documents[number].reference]
            start, stop = int(plan.starts[number]), int(plan.stops[number])
            wanted = expected_slice(rows[document], start, stop, encoder)
            labels = batch.labels[low:high].tolist()
            assert (batch.ids[low:high].tolist(), labels) == (wanted["ids"], wanted["labels"])
            assert (pack.slice_bytes[number], pack.slice_targets[number]) == (wanted["bytes"], wanted["targets"])
            assert (batch.documents.ids[low:high] == number).all()
            trained[document] += [label for label in labels if label >= 0]
        assert (batch.labels[ends[-1] :] < 0).all()
    for document, row in enumerate(rows):
        whole = expected_slice(row, 0, len(row.text) + 1, encoder)["labels"]
        assert trained[document] == [label for label in whole if label >= 0]


@pytest.mark.numerics
def test_bits_per_byte_are_the_nats_of_plain_token_ids_over_the_bytes_of_the_text(place: Path, capsys) -> None:
    """Nothing of ours but the model: texts through the library, log-probabilities summed, divided by bytes."""
    library = Tokenizer.from_file(str(place / "run" / "model" / "tokenizer" / TOKENIZER_FILE))
    model = load_model(place / "run" / "model")
    nats = text_bytes = 0.0
    for row in open_dataset(place / "plain" / "validation").rows():
        ids = torch.tensor([BOS, *library.encode(row.text.decode(), add_special_tokens=False).ids, EOS])
        with torch.no_grad():
            logits = model(ids[:-1], segments([len(ids) - 1]))
        nats -= float(logits.double().log_softmax(-1).gather(1, ids[1:, None]).sum())
        text_bytes += len(row.text)
    wanted = nats / math.log(2) / text_bytes
    found = place / "figures.json"
    arguments = ["evaluate", place / "run" / "model", place / "tokens", "--tokens", 512, "--json", found]
    assert command([*map(str, arguments)]) == 0
    total = json.loads(found.read_text())["datasets"][0]["total"]
    assert total["bits_per_byte"] == pytest.approx(wanted, rel=NATS)
    assert total["bytes"] == text_bytes
    lines = metric_lines(place / "run")
    validation = [line["validation"]["bits_per_byte"] for line in lines if "validation" in line]
    assert validation[-1] == pytest.approx(wanted, rel=NATS)


@pytest.mark.numerics
def test_texts_in_memory_are_scored_as_a_dataset_of_them_and_a_completion_as_its_own_tokens(place: Path) -> None:
    scorer = TextScorer(place / "run" / "model")
    validation = open_dataset(place / "tokens" / "validation")
    texts = [row.text for row in validation.rows()]
    limits = pack_limits(validation.manifest, 512)
    np.testing.assert_allclose(
        scorer.score(texts).nats, evaluate(scorer.model, ValidationPacks(validation, limits), CPU).nats, rtol=NATS
    )
    prompt, completion = b"the next by", b"te ends"
    encode = SubwordEncoder(place / "tokens-tokenizer").ids
    ids = torch.tensor([BOS, *encode(prompt), *encode(completion)])
    with torch.no_grad():
        logs = scorer.model(ids[:-1], segments([len(ids) - 1])).double().log_softmax(-1).gather(1, ids[1:, None])
    found = scorer.score([prompt + completion], from_byte=[len(prompt)], end=False)
    assert found.nats[0] == pytest.approx(-float(logs[len(encode(prompt)) :].sum()), rel=NATS)
    assert found.bytes.tolist() == [len(completion)]


@pytest.mark.numerics
def test_packed_documents_are_scored_as_alone(place: Path, mixed: Dataset) -> None:
    model = load_model(place / "run" / "model")
    packed = evaluate(model, ValidationPacks(mixed, PackLimits(400, 200, subwords=True)), CPU)
    alone = evaluate(model, ValidationPacks(mixed, PackLimits(200, 130, subwords=True)), CPU)
    assert len(packed) == len(whole_documents(mixed))
    np.testing.assert_allclose(packed.nats, alone.nats, rtol=NATS, atol=NATS)
    assert packed.bytes.tolist() == alone.bytes.tolist()


def test_a_loader_goes_on_from_its_cursor_with_other_workers_as_if_never_stopped(place: Path) -> None:
    train = open_dataset(place / "tokens" / "train")
    limits = pack_limits(train.manifest, 128)
    assert limits.subwords
    whole = PackLoader(train, limits, 2, streams=3)
    found = iter(whole)
    packs: list[Pack] = [next(found) for _ in range(6)]
    cursor = whole.cursor
    packs += [next(found) for _ in range(6)]
    rest = PackLoader(train, limits, 2, streams=3, cursor=cursor)
    assert [pack_digest(pack) for pack, _ in zip(rest, range(6))] == [pack_digest(pack) for pack in packs[6:]]
    for step in range(6):  # what the loss is divided by is what the packs hold
        assert packs[2 * step].step.targets == sum(pack.targets for pack in packs[2 * step : 2 * step + 2])


def test_flops_are_counted_on_tokens_and_divided_by_bytes(place: Path) -> None:
    train = open_dataset(place / "tokens" / "train")
    pack = next(iter(PackLoader(train, pack_limits(train.manifest, 256), 1)))
    model = FlatSettings.model_validate(FLAT)
    counter = FlopsCounter(model, None, "none", tiled=True)
    counter.add([pack])
    assert pack.subword_ids is not None
    assert pack.lengths.sum() == len(pack.subword_ids) < len(pack.ids)
    assert counter.pop()["useful"] == training_flops(model, useful_workload(model, pack.lengths)).total


def test_only_a_model_of_that_many_tokens_learns_on_them(place: Path, tmp_path: Path, capsys) -> None:
    tokens = place / "tokens"
    for model, problem in (
        ({}, "cannot learn on shards of rule 'bpe': where their patches begin depends on later bytes"),
        ({"model": STACK | {"kind": "flat"}}, "trains on unpatched shards"),
        ({"model": STACK | {"kind": "entropy"}}, "trains on unpatched shards"),
        ({"model": FLAT | {"vocabulary": 280}}, f"has vocabulary 280, the tokenizer of the shards {VOCABULARY}"),
    ):
        assert run(tokens, tmp_path / "out", **model) == 2
        assert problem in capsys.readouterr().err
    static = tiny_data(tmp_path / "static", STATIC)
    assert run(static, tmp_path / "out", model=FLAT) == 2
    assert f"with vocabulary {VOCABULARY} needs shards of rule 'bpe', these have 'static'" in capsys.readouterr().err
    assert run(place / "plain", tmp_path / "out", model=FLAT) == 2
    assert "these have 'none'" in capsys.readouterr().err


def test_the_model_carries_its_tokenizer_and_is_not_scored_on_tokens_of_another(place: Path, tmp_path, capsys) -> None:
    model = place / "run" / "model"
    assert load_making(model / "tokenizer") == load_making(place / "tokens" / "train" / "tokenizer")
    other = in_tokens(place / "plain", tmp_path / "other", VOCABULARY - 5)
    assert command(["evaluate", str(model), str(other), "--tokens", "256"]) == 2
    assert "is not cut" in capsys.readouterr().err
    assert command(["evaluate", str(model), str(place / "plain"), "--tokens", "256"]) == 2
    assert "is not cut into patches" in capsys.readouterr().err


def test_a_patch_that_is_no_token_is_named_with_its_shard_and_document(place, encoder, tmp_path: Path) -> None:
    good, bad = (cut(row, encoder) for row in random_texts(8, 9)[7:9])
    assert bad.patch_lengths is not None
    lengths = np.array([1, *[2] * (len(bad.text) // 2), *[1] * (len(bad.text) % 2), 1], np.uint16)
    dataset = token_dataset(tmp_path, place / "tokens-tokenizer", [[good, replace(bad, patch_lengths=lengths)]])
    with pytest.raises(DatasetError, match=f"shard-00000.arrow: document '{bad.id}' .*2 bytes"):
        list(ValidationPacks(dataset, pack_limits(dataset.manifest, 256)))


def test_a_document_longer_than_a_pack_is_the_same_text_in_pieces(place, encoder, tmp_path: Path) -> None:
    row = cut(
        replace(random_texts(8, 9)[7], text=b"the patch begins where the next byte is hard to guess " * 9), encoder
    )
    dataset = token_dataset(tmp_path, place / "tokens-tokenizer", [[row]])
    assert dataset.manifest.identity.patching == patching_of(place / "tokens-tokenizer")
    packs = list(ValidationPacks(dataset, PackLimits(80, 40, subwords=True)))
    assert len(packs) > 5
    tokens = [token for pack in packs for token in pack.batch.labels.tolist() if token >= 0]
    assert tokens == [*encoder.ids(row.text).tolist(), EOS]
    assert sum(int(pack.slice_bytes.sum()) for pack in packs) == len(row.text)
    assert sum(int(pack.slice_text.sum()) for pack in packs) == len(row.text)


def test_a_plan_reckons_with_the_tokens_of_the_data(place: Path, tmp_path: Path) -> None:
    settings = tiny_settings(place / "tokens", tmp_path / "out", model=FLAT)
    train = open_dataset(place / "tokens" / "train")
    assert make_plan(settings).patches == pack_limits(train.manifest, settings.data.tokens).patches


@pytest.mark.numerics
def test_choices_are_told_apart_by_the_tokens_of_the_choice(place: Path, tmp_path: Path) -> None:
    task, examples = tmp_path / "next.jsonl", tmp_path / "examples.jsonl"
    task.write_text('{"context": "the man ", "choices": ["went home", "%$"], "answer": 0}\n')
    model = place / "run" / "model"
    assert command(["tasks", *map(str, (model, task, "--device", "cpu", "--examples", examples))]) == 0
    nats = json.loads(examples.read_text())["nats"]
    scorer = TextScorer(model)
    whole = scorer.score([b"the man went home", b"the man %$"], end=False).nats
    before = scorer.score([b"the man"], end=False).nats
    assert nats == pytest.approx((whole - before).tolist(), rel=NATS)
