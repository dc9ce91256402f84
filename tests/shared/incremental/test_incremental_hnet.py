"""H-Net byte by byte: the boundaries and logits of the whole document, at the cost of a byte (law 2)."""

import numpy as np
import pytest
import torch
from helpers.model_examples import any_model, hnet_settings, random_text, routed_pack
from helpers.rounding import assert_equal_but_rounded, in_fp64
from torch import Tensor

from shared.incremental import LONGEST_ADVANCE, DecodingState
from shared.models.hnet import HNet
from shared.patching import PatchingSettings

pytestmark = pytest.mark.numerics

LOCAL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 40}
MODELS = {
    "little credit": hnet_settings(),
    "much credit": hnet_settings(credit=30, credit_bytes=1, max_length=31),
    "n-grams": hnet_settings(ngrams={"sizes": (2, 5), "rows": 211, "functions": 2}),
    "grouped heads, no wider patches": hnet_settings(encoder=LOCAL, decoder=LOCAL, **{"global": LOCAL}),
}
UNPATCHED = PatchingSettings(rule="none")
SURE = 1e-4
"""How far p has to be from 1/2 for a boundary to be the same whatever is rounded."""


class Whole:
    """A text as the model sees it at once."""

    def __init__(self, model: HNet, text: bytes) -> None:
        self.batch = routed_pack([text], model.settings)
        self.ids = self.batch.ids

        def logits(model: HNet) -> Tensor:
            found = model(self.ids, self.batch.documents, self.batch.patches)
            self.routing = found.routing
            return found.logits

        with torch.inference_mode():
            self.exact = in_fp64(model, logits)
            self.logits = logits(model)
        self.ends = self.routing.ends.tolist()
        assert (self.routing.p - 0.5).abs().min() > SURE, "choose another text: rounding decides here"

    def check(self, found: Tensor, first: int) -> None:
        here = slice(first, first + len(found))
        assert_equal_but_rounded(found, self.logits[here], self.exact[here])


def model_of(name: str, seed: int = 0) -> HNet:
    return any_model(MODELS[name], seed).eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_prefix_has_the_logits_and_boundaries_of_full_recomputation(name: str) -> None:
    model = model_of(name)
    text = random_text(100, seed=1)
    whole = Whole(model, text)
    documents = DecodingState(model, UNPATCHED)
    starts, entropies = documents.read(whole.ids[:1].numpy())
    assert starts.tolist() == [True]
    assert entropies is None
    for place in range(1, len(whole.ids)):
        found = documents.advance(whole.ids[place : place + 1][None])
        documents.accept([1])
        whole.check(found.logits[0], place)
        assert found.starts[0, 0] == whole.ends[place], place
        if place % 25 == 0:
            alone = routed_pack([text[:place]], model.settings)
            with torch.inference_mode():
                again = model(alone.ids, alone.documents, alone.patches)
            whole.check(again.logits[-1:], place)
            assert again.routing.ends.tolist() == whole.ends[: place + 1]
    assert documents.global_forwards == sum(whole.ends)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_of_any_length_and_tokens_taken_back_change_nothing(name: str) -> None:
    model = model_of(name)
    whole = Whole(model, random_text(700, seed=3))
    documents, generator, done = DecodingState(model, UNPATCHED), np.random.default_rng(4), 0
    while done < len(whole.ids):
        count = int(generator.choice([1, 1, 1, 2, 7, LONGEST_ADVANCE]))
        piece = whole.ids[done : done + count]
        kept = int(generator.integers(1, len(piece) + 1))
        found = documents.advance(piece[None])
        documents.accept([kept])
        whole.check(found.logits[0], done)
        assert found.starts[0].tolist() == whole.ends[done : done + len(piece)]
        done += kept


def test_rows_of_a_batch_are_as_if_alone_and_drafts_leave_no_trace() -> None:
    model = model_of("little credit")
    wholes = [Whole(model, random_text(260, seed=20 + number)) for number in range(5)]
    parts, places = [], [1, 2, 9, 40, 130]
    for whole, head in zip(wholes, places):
        part = DecodingState(model, UNPATCHED)
        part.read(whole.ids[:head].numpy())
        parts.append(part)
    documents, live = DecodingState(model, UNPATCHED, rows=0), list(range(5))
    for part in parts:
        documents.append(part)
    generator = np.random.default_rng(5)
    for turn in range(40):
        count = int(generator.choice([1, 1, 4]))
        documents.draft(torch.full((len(live), 1), 70), lambda logits: logits.argmax(-1, keepdim=True), 3)
        ids = torch.stack([wholes[row].ids[place : place + count] for row, place in zip(live, places)])
        kept = generator.integers(1, count + 1, len(live)).tolist()
        found = documents.advance(ids)
        documents.accept(kept)
        for number, row in enumerate(live):
            wholes[row].check(found.logits[number], places[number])
            begun = wholes[row].ends[places[number] :][:count]
            assert found.starts[number].tolist() == begun
            places[number] += kept[number]
        if turn == 20:
            documents.select([3, 0])
            live, places = [3, 0], [places[3], places[0]]


def test_what_rounding_changes_of_a_decision_is_far_below_what_law_2_allows() -> None:
    """The same decisions token by token and at once, at other sizes of products."""
    model, text = model_of("much credit"), random_text(2000, seed=8)
    batch = routed_pack([text, b"a neighbour"], model.settings)
    alone = routed_pack([text], model.settings)
    with torch.inference_mode():
        packed = model(batch.ids, batch.documents, batch.patches).routing.p[: len(alone.ids)]
        single = model(alone.ids, alone.documents, alone.patches).routing.p
    assert (packed - single).abs().max() < SURE / 10
