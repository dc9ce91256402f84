"""Documents that grow byte by byte: logits, entropies and boundaries of the whole document, at the cost of a byte."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.interop_examples import unlike_fresh
from helpers.model_examples import (
    between,
    blt,
    blt_logits,
    blt_settings,
    chat_tokens,
    entropy_model,
    entropy_settings,
    pack,
    random_text,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64
from helpers.stack_examples import OTHER_BLOCKS
from torch import Tensor

from shared.incremental import LONGEST_ADVANCE, DecodingState
from shared.incremental.blt import NgramTail
from shared.layers.batch import segments
from shared.layers.ngrams import ngram_rows
from shared.model_settings import NgramSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel, entropy
from shared.patching import PatchingSettings, patch_lengths
from shared.vocabulary import document_tokens

pytestmark = pytest.mark.numerics

LOCAL = {"width": 32, "heads": 4, "feed_forward": 40}
RULES: dict[str, dict[str, Any]] = {
    "byte": {"rule": "byte"},
    "static": {"rule": "static", "stride": 5},
    "space": {"rule": "space"},
    "entropy": {"rule": "entropy", "theta": 0.8},
    "entropy with a minimum": {"rule": "entropy", "theta": 0.6, "min_length": 3},
    "entropy, characters kept whole": {"rule": "entropy", "theta": 0.6, "max_length": 9, "whole_characters": True},
    "monotonic": {"rule": "monotonic", "theta": 0.7},
    "monotonic, rounded": {"rule": "monotonic", "theta": 0.7, "entropy_dtype": "float16"},
    "rise": {"rule": "entropy_rise", "theta": 0.5, "theta_rise": 0.6},
    "rise as the reference begins it": {
        "rule": "entropy_rise",
        "theta": 0.5,
        "theta_rise": 0.6,
        "reference_starts": True,
    },
}
"""Thresholds are near such quantiles of the entropies, or of their rises, of the text at hand."""
MODELS = {
    "plain": blt_settings(),
    "grouped heads, no projection": blt_settings(kv_heads=2, global_width=64),
    "cross-attention after two encoder layers, before the first decoder layer": blt_settings(
        encoder=LOCAL | {"layers": 2}, encoder_cross_all_layers=True, decoder_cross_all_layers=False, queries=3
    ),
    "no n-grams, two functions elsewhere": blt_settings(ngrams={"sizes": ()}),
    "learned pooling, scaled": blt_settings(pooling="attention", input_scale=0.3),
    "two hash functions": blt_settings(ngrams={"sizes": (3, 8), "rows": 211, "functions": 2}),
}
MODELS |= {
    f"blocks {name}": blt_settings(**{"global": {"width": 48, "layers": 3, "heads": 2, "feed_forward": 56} | changes})
    for name, changes in OTHER_BLOCKS.items()
}


def rule_for(name: str, entropies: np.ndarray) -> PatchingSettings:
    values = RULES[name] | {"max_length": 16}
    rises = np.diff(entropies)
    if "theta" in values:
        judged = rises if values["rule"] == "monotonic" else entropies
        values["theta"] = between(judged, values["theta"])
    if "theta_rise" in values:
        values["theta_rise"] = between(rises, values["theta_rise"])
    return PatchingSettings.model_validate(values)


class Whole:
    """A text as the models see it at once, the oracle of everything here."""

    def __init__(self, model: Blt, scoring_model: EntropyModel, rule: str, text: bytes | np.ndarray) -> None:
        tokens = document_tokens(text) if isinstance(text, bytes) else text
        self.ids = torch.from_numpy(tokens[:-1].astype(np.int64))

        def entropies(scoring_model: EntropyModel) -> Tensor:
            return entropy(scoring_model(self.ids, segments([len(self.ids)])))

        with torch.inference_mode():
            self.entropies = entropies(scoring_model).numpy()
            self.exact_entropies = in_fp64(scoring_model, entropies)
            self.rule = rule_for(rule, self.entropies)
            needed = self.entropies if self.rule.needs_entropy else None
            batch = pack([text], self.rule, [needed])
            self.logits = blt_logits(model, batch)
            self.exact = in_fp64(model, lambda model: blt_logits(model, batch))
        lengths = patch_lengths(tokens, self.rule, needed)
        self.starts = np.zeros(len(tokens), bool)
        self.starts[np.cumsum(lengths)[:-1]] = True

    def check(self, found: Tensor, first: int) -> None:
        """The logits after the token ``first`` and those that follow."""
        here = slice(first, first + len(found))
        assert_equal_but_rounded(found, self.logits[here], self.exact[here])


def grown(documents: DecodingState, whole: Whole, seed: int, upto: int | None = None) -> None:
    """Feed a whole text in pieces of random length, keeping a random part of each, and compare everything."""
    generator = np.random.default_rng(seed)
    upto = upto or len(whole.ids)
    done = 0
    while done < upto:
        count = int(generator.choice([1, 1, 1, 1, 2, 7, LONGEST_ADVANCE]))
        piece = whole.ids[done : min(done + count, upto)]
        kept = int(generator.integers(1, len(piece) + 1))
        found = documents.advance(piece[None])
        documents.accept([kept])
        whole.check(found.logits[0], done)
        assert found.starts[0, :kept].tolist() == whole.starts[done + 1 : done + 1 + kept].tolist()
        if found.entropies is not None:
            here = slice(done, done + len(piece))
            assert_equal_but_rounded(found.entropies[0], whole.entropies[here], whole.exact_entropies[here])
        done += kept


@pytest.mark.parametrize(
    ("rule", "size"), [*((rule, 100) for rule in RULES), pytest.param("entropy", 1_000, marks=pytest.mark.drill)]
)
def test_logits_on_a_thousand_random_prefixes_are_those_of_full_recomputation(rule: str, size: int) -> None:
    """A hundred for each of ten rules; as a drill, a thousand for a rule by entropy."""
    model, scoring_model = blt().eval(), entropy_model().eval()
    text = random_text(size, seed=1)
    whole = Whole(model, scoring_model, rule, text)
    documents = DecodingState(model, whole.rule, scoring_model)
    order = np.random.default_rng(2).permutation(len(whole.ids))
    recomputed = set(order[:20].tolist())  # the others are those of one pass over the whole: the models are causal
    for place in range(len(whole.ids)):
        found = documents.advance(whole.ids[place : place + 1][None])
        documents.accept([1])
        whole.check(found.logits[0], place)
        if place in recomputed:
            prefix = pack([text[:place]], whole.rule, [whole.entropies[: place + 1]])
            assert prefix.patches is not None
            # The oracle of the open end: whether the next token begins a patch decides what the decoder reads.
            prefix.patches.of_decoder[-1] = int(whole.starts[: place + 2].sum()) - 1
            with torch.inference_mode():
                alone = blt_logits(model, prefix)[-1]
            whole.check(alone[None], place)
    # One global forward for each patch that the next one's start completes, no more and no fewer.
    assert documents.global_forwards == int(whole.starts[1 : len(whole.ids)].sum()) + int(found.starts[0, 0])


@pytest.mark.parametrize("model", MODELS)
def test_pieces_of_any_length_and_tokens_taken_back_change_nothing(model: str) -> None:
    big, scoring_model = blt(MODELS[model]).eval(), entropy_model(entropy_settings(heads=4, kv_heads=2)).eval()
    if model.startswith("blocks"):
        unlike_fresh(big, seed=5)  # fresh biases are 0
    whole = Whole(big, scoring_model, "entropy", random_text(300, seed=3))
    grown(DecodingState(big, whole.rule, scoring_model), whole, seed=4)


@pytest.mark.parametrize(
    "rule",
    ["space", "entropy", "entropy with a minimum", "entropy, characters kept whole", "monotonic", "rise"],
)
def test_named_special_ids_are_read_as_offline_and_end_their_patches(rule: str) -> None:
    model, scoring_model = blt(blt_settings(specials=("user", "assistant", "end"))).eval(), entropy_model().eval()
    tokens = chat_tokens(250, seed=7)
    whole = Whole(model, scoring_model, rule, tokens)
    assert whole.logits.shape[1] == 263
    assert whole.starts[np.flatnonzero(tokens >= 260) + 1].all()
    grown(DecodingState(model, whole.rule, scoring_model), whole, seed=8)


@pytest.mark.parametrize("window", [64, 40])
def test_a_newline_resets_the_entropy_model_as_it_does_offline(window: int) -> None:
    scoring_model = entropy_model(entropy_settings(newline_reset=True, window=window)).eval()
    model = blt().eval()
    whole = Whole(model, scoring_model, "monotonic", random_text(250, seed=5))
    grown(DecodingState(model, whole.rule, scoring_model), whole, seed=6)


def test_rows_of_a_batch_are_as_if_alone_whoever_joins_and_leaves() -> None:
    model, scoring_model = blt().eval(), entropy_model().eval()
    texts = [random_text(400, seed=10 + number) for number in range(8)]
    rule = Whole(model, scoring_model, "entropy", texts[0]).rule
    heads = (0, 1, 5, 17, 60, 130, 131, 300)
    wholes, parts = [], []
    for number, (text, head) in enumerate(zip(texts, heads)):
        whole = Whole(model, scoring_model, "entropy", text)
        part = DecodingState(model, rule, scoring_model)
        if head:
            grown(part, _under(whole, rule, model, text), seed=number, upto=head)
        wholes.append(_under(whole, rule, model, text))
        parts.append(part)
    documents, live, places = DecodingState(model, rule, scoring_model, rows=0), [], []
    joining = {0: range(6), 15: [6], 30: [7]}
    generator = np.random.default_rng(7)
    for turn in range(60):
        for row in joining.get(turn, ()):
            documents.append(parts[row])
            live, places = [*live, row], [*places, heads[row]]
        count = int(generator.choice([1, 1, 1, 4]))
        ids = torch.stack([wholes[row].ids[place : place + count] for row, place in zip(live, places)])
        kept = generator.integers(1, count + 1, len(live)).tolist()
        found = documents.advance(ids)
        documents.accept(kept)
        for number, row in enumerate(live):
            wholes[row].check(found.logits[number], places[number])
            begun = wholes[row].starts[places[number] + 1 :][: kept[number]]
            assert found.starts[number, : kept[number]].tolist() == begun.tolist()
            places[number] += kept[number]
        if turn in (20, 40):  # rows that end leave; the others move up, in any order
            chosen = [3, 0, 5, 1] if turn == 20 else [2, 1]
            documents.select(chosen)
            live, places = [live[n] for n in chosen], [places[n] for n in chosen]


def test_what_one_fork_takes_is_nothing_to_the_other() -> None:
    model, scoring_model = blt().eval(), entropy_model().eval()
    whole = Whole(model, scoring_model, "entropy", random_text(300, seed=30))
    documents = DecodingState(model, whole.rule, scoring_model)
    documents.read(whole.ids[:150].numpy())
    fork = documents.fork()
    fork.advance(torch.randint(4, 260, (1, 40)))
    fork.accept([40])
    found = documents.fork().advance(whole.ids[None, 150:250])
    whole.check(found.logits[0], 150)
    found = documents.advance(whole.ids[None, 150:250])
    whole.check(found.logits[0], 150)
    assert found.starts[0].tolist() == whole.starts[151:251].tolist()


def _under(whole: Whole, rule: PatchingSettings, model: Blt, text: bytes) -> Whole:
    """The same text under a rule that was made for another."""
    lengths = patch_lengths(document_tokens(text), rule, whole.entropies)
    whole.rule = rule
    whole.starts[:] = False
    whole.starts[np.cumsum(lengths)[:-1]] = True
    batch = pack([text], rule, [whole.entropies])
    with torch.inference_mode():
        whole.logits = blt_logits(model, batch)
        whole.exact = in_fp64(model, lambda model: blt_logits(model, batch))
    return whole


def test_a_draft_leaves_no_trace_and_never_runs_the_global_model() -> None:
    model, scoring_model = blt().eval(), entropy_model().eval()
    whole = Whole(model, scoring_model, "entropy", random_text(130, seed=8))
    documents = DecodingState(model, whole.rule, scoring_model)
    generator = torch.Generator().manual_seed(1)
    for place in range(110):
        if place % 10 == 3:
            forwards, seen = documents.global_forwards, []

            def choose(logits: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(logits)
                return torch.randint(4, 260, (1, 1), generator=generator)

            documents.draft(whole.ids[place : place + 1][None], choose, 20)
            assert documents.global_forwards == forwards
            if not whole.starts[place + 1]:  # within a patch a draft sees what the model sees
                whole.check(seen[0], place)
        found = documents.advance(whole.ids[place : place + 1][None])
        documents.accept([1])
        whole.check(found.logits[0], place)


def test_an_entropy_model_writes_by_itself() -> None:
    model = entropy_model(entropy_settings(newline_reset=True)).eval()
    ids = torch.from_numpy(document_tokens(random_text(300, seed=9))[:-1].astype(np.int64))
    with torch.inference_mode():
        wanted = model(ids, segments([len(ids)]))
        exact = in_fp64(model, lambda model: model(ids, segments([len(ids)])))
    documents = DecodingState(model, PatchingSettings(rule="none"))
    for piece in ids.split(7):
        found = documents.advance(piece[None])
        documents.accept([len(piece)])
        assert not found.starts.any()
        assert_equal_but_rounded(found.logits[0], wanted[: len(piece)], exact[: len(piece)])
        wanted, exact = wanted[len(piece) :], exact[len(piece) :]


@pytest.mark.parametrize("functions", [1, 3])
def test_hashes_from_a_tail_are_those_of_the_document(functions: int) -> None:
    settings = NgramSettings(sizes=(3, 5, 8), rows=500_002, functions=functions)
    ids = torch.from_numpy(document_tokens(random_text(100, seed=11)).astype(np.int64))
    wanted = ngram_rows(ids, segments([len(ids)]), settings)
    tail = NgramTail(settings, torch.device("cpu"))
    before = torch.zeros(1, tail.length, dtype=torch.int64)
    for piece in ids.split(9):
        assert torch.equal(tail.rows(before, piece[None]), wanted[: len(piece)])
        wanted = wanted[len(piece) :]
        before = torch.cat([before, piece[None]], 1)[:, -tail.length :]
