"""Texts in memory score what a dataset of them scores, and nothing that comes later decides what a byte scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.model_folders import (
    entropy_folder,
    entropy_model_folder,
    entropy_model_scorer,
    entropy_rule,
    identity_of,
    model_folder,
)
from helpers.pack_examples import make_dataset, whole_documents
from helpers.rounding import NATS
from helpers.tiny_runs import STACK, tiny_data
from helpers.token_data import VOCABULARY, in_tokens
from pydantic import TypeAdapter

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import copy_tokenizer
from shared.errors import IdentityError
from shared.model_folder.files import build_model, load_model, save_model
from shared.model_folder.identity import TOKENIZER_FOLDER, load_settings
from shared.model_settings import ModelSettings
from shared.models.flops import forward_flops
from shared.models.initialise import initialise
from shared.models.workload import useful_workload
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.document import Row
from shared.shards.open import open_dataset
from shared.vocabulary import document_tokens
from trainer.data.validation import ValidationPacks
from trainer.evaluation.compatibility import limits_for, packs_for, score_folder
from trainer.evaluation.cost import forward_flops_by_subset
from trainer.evaluation.documents import DocumentScores, evaluate
from trainer.evaluation.texts import TextScorer
from trainer.provenance.identity import IDENTITY_NAME, save_identity

CPU = torch.device("cpu")
NONE = PatchingSettings(rule="none")
RULES = {
    "entropy": entropy_rule(),
    "monotonic": entropy_rule(rule="monotonic"),
    "space": PatchingSettings(rule="space", max_length=9),
    "static": PatchingSettings(rule="static", stride=4, max_length=8),
}


def random_texts(count: int = 12) -> list[bytes]:
    """Words, newlines and bytes that are no UTF-8; an empty text among them."""
    rng = np.random.default_rng(3)
    alphabet = np.frombuffer(b"abcdefgh    \n\xc3\xa4\xff", np.uint8)
    return [b"", *(rng.choice(alphabet, int(size)).tobytes() for size in rng.integers(1, 150, count))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each rule, and one of an entropy model as "none"."""
    at = tmp_path_factory.mktemp("models")
    entropy_model = entropy_model_folder(at / "entropy_model")
    made = {
        name: model_folder(at / name, rule, entropy_model if rule.needs_entropy else None)
        for name, rule in RULES.items()
    }
    return made | {"none": entropy_folder(at / "none")}


def on_a_dataset(folder: Path, at: Path, texts: list[bytes], patching: PatchingSettings) -> DocumentScores:
    """The same texts as shards with stored patches."""
    documents = [document_tokens(text) for text in texts]
    entropies = list(entropy_model_scorer().score(documents)) if patching.needs_entropy else [None] * len(texts)
    rows = [
        Row(str(n), "x", text, 0, patch_lengths(tokens, patching, found) if patching.patched else None)
        for n, (text, tokens, found) in enumerate(zip(texts, documents, entropies))
    ]
    dataset = make_dataset(at, [rows], patching=patching)
    return evaluate(
        load_model(folder), ValidationPacks(dataset, limits_for(load_settings(folder), dataset.manifest, 256)), CPU
    )


def other_folder(kind: str, at: Path, patching: PatchingSettings) -> Path:
    """An untrained model of a kind that is no byte latent transformer."""
    sizes = {
        "flat": STACK,
        "tokens": STACK | {"vocabulary": VOCABULARY},
        "megabyte": {"global": STACK, "local": STACK},
        "spacebyte": {"before": STACK, "global": STACK, "after": STACK, "window": 64},
        "hnet": {"encoder": STACK, "global": STACK, "decoder": STACK, "window": 64},
    }
    settings = TypeAdapter(ModelSettings).validate_python({"kind": "flat" if kind == "tokens" else kind} | sizes[kind])
    model = build_model(settings)
    initialise(model, 0)
    save_model(model, settings, at)
    save_identity(identity_of(patching), at / IDENTITY_NAME)
    return at


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("kind", "rule"),
    [("flat", "none"), ("megabyte", "static"), ("spacebyte", "space"), ("hnet", "none")],
    ids=lambda value: value,
)
def test_texts_are_scored_by_every_kind_of_model(kind: str, rule: str, tmp_path: Path) -> None:
    patching = RULES.get(rule, NONE)
    folder, texts = other_folder(kind, tmp_path / "model", patching), random_texts(8)
    stored = on_a_dataset(folder, tmp_path / "data", texts, patching)
    whole = TextScorer(folder, tokens=256).score(texts)
    np.testing.assert_allclose(whole.nats, stored.nats, rtol=NATS)
    halves = [len(text) // 2 for text in texts]
    begun = TextScorer(folder).score([text[:half] for text, half in zip(texts, halves)], end=False)
    rest = TextScorer(folder).score(texts, halves)
    np.testing.assert_allclose(begun.nats + rest.nats, whole.nats, rtol=NATS, atol=NATS)


@pytest.mark.numerics
def test_texts_are_scored_in_the_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    tokens = in_tokens(tiny_data(tmp_path / "plain", NONE), tmp_path / "tokens")
    dataset = open_dataset(tokens / "validation")
    folder = other_folder("tokens", tmp_path / "model", dataset.manifest.identity.patching)
    copy_tokenizer(dataset.tokenizer, folder / TOKENIZER_FOLDER, dataset.manifest.identity.patching.tokenizer)
    stored = score_folder(folder, dataset, 512, CPU, "float32")
    texts = [row.text for row in whole_documents(dataset)]
    # BOS and the tokens are read, EOS is not.
    encoder, settings = SubwordEncoder(dataset.tokenizer), load_settings(folder)
    inputs = [1 + len(encoder.ids(text)) for text in texts]
    flops = forward_flops_by_subset(settings, packs_for(folder, dataset, 512))
    assert sum(flops.values()) == forward_flops(settings, useful_workload(settings, inputs)).total
    scorer = TextScorer(folder, tokens=512)
    found = scorer.score(texts)
    np.testing.assert_allclose(found.nats, stored.nats, rtol=NATS)
    np.testing.assert_array_equal(found.sums[:, 1:], stored.sums[:, 1:])
    spaces = [text.find(b" ", len(text) // 2) % len(text) for text in texts]  # where a token begins
    rest = scorer.score(texts, spaces)
    assert rest.bytes.tolist() == [len(text) - place for text, place in zip(texts, spaces)]
    assert (rest.nats < found.nats).all()


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["none", *RULES])
def test_texts_score_what_a_dataset_of_them_scores(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    texts = random_texts()
    stored = on_a_dataset(folders[name], tmp_path / "data", texts, RULES.get(name, NONE))
    found = TextScorer(folders[name], tokens=256).score(texts)
    np.testing.assert_allclose(found.nats, stored.nats, rtol=NATS)
    np.testing.assert_array_equal(found.sums[:, 1:], stored.sums[:, 1:])
    # A text longer than a pack is cut, and its bytes still count once each.
    cut = TextScorer(folders[name], tokens=64).score(texts)
    np.testing.assert_array_equal(cut.sums[:, 1:4], stored.sums[:, 1:4])


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["none", *RULES])
def test_a_beginning_and_what_follows_it_add_up_to_the_whole(name: str, folders: dict[str, Path]) -> None:
    texts = random_texts()
    rng = np.random.default_rng(5)
    places = [int(rng.integers(0, len(text) + 1)) for text in texts]
    scorer = TextScorer(folders[name])
    whole = scorer.score(texts)
    begun = scorer.score([text[:place] for text, place in zip(texts, places)], end=False)
    rest = scorer.score(texts, places)
    np.testing.assert_allclose(begun.nats + rest.nats, whole.nats, rtol=NATS, atol=NATS)
    assert (begun.bytes + rest.bytes).tolist() == [len(text) for text in texts]
    without_end = scorer.score(texts, places, end=False)
    assert (rest.sums[:, 1] - without_end.sums[:, 1]).tolist() == [1] * len(texts)  # EOS
    assert (without_end.nats <= rest.nats).all()


def test_texts_are_cut_by_the_threshold_of_their_subset(folders: dict[str, Path], tmp_path: Path) -> None:
    low, high = entropy_rule(0.2).theta, entropy_rule(0.8).theta
    rule = RULES["entropy"].model_copy(update={"theta": low, "thetas": {"b": high}})
    folder = model_folder(tmp_path / "model", rule, folders["entropy"] / "entropy_model")
    texts = random_texts()
    default = TextScorer(folder).score(texts)
    np.testing.assert_array_equal(default.nats, TextScorer(folder).score(texts, subsets=["a"] * 25).nats)
    mixed = TextScorer(folder).score(texts, subsets=["a", "b"] * 12 + ["a"])
    for subset, theta, own in (("a", low, slice(0, None, 2)), ("b", high, slice(1, None, 2))):
        save_identity(
            identity_of(rule.model_copy(update={"theta": theta, "thetas": {}}), folder / "entropy_model"),
            folder / IDENTITY_NAME,
        )
        alone = TextScorer(folder).score(texts)
        assert mixed.patches[own].tolist() == alone.patches[own].tolist()
        assert mixed.by_subset()[subset].documents == len(texts[own])


def test_another_entropy_model_than_the_recorded_one_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", RULES["entropy"], folders["entropy"] / "entropy_model")
    save_identity(identity_of(RULES["entropy"], folder), folder / IDENTITY_NAME)
    with pytest.raises(IdentityError, match="not the model that was recorded"):
        TextScorer(folder)
