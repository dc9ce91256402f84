"""MegaByte and SpaceByte: laws 1, 3 and 6, and their forward passes written out document by document."""

import pytest
import torch
from helpers.model_examples import (
    any_model,
    blt_logits,
    gradients,
    megabyte_settings,
    oracle_stack,
    pack,
    random_text,
    spacebyte_settings,
    summed_loss,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64
from torch import Tensor

from shared.layers.batch import Batch, segments
from shared.layers.ngrams import ngram_rows
from shared.model_folder.files import Model
from shared.models.megabyte import START, MegaByte
from shared.models.spacebyte import SpaceByte
from shared.patching import PatchingSettings
from shared.vocabulary import IGNORED_LABEL

SPACE = PatchingSettings(rule="space", max_length=16)


def static(stride: int) -> PatchingSettings:
    return PatchingSettings(rule="static", stride=stride, max_length=64)


MODELS = {
    "megabyte of 4": (megabyte_settings(), static(4)),
    "megabyte of 3": (megabyte_settings(patch=3), static(3)),
    "spacebyte": (spacebyte_settings(), SPACE),
    "spacebyte on static patches": (spacebyte_settings(), static(5)),
    "megabyte with tables": (megabyte_settings(ngrams={"sizes": (2, 6), "rows": 101}), static(4)),
    "spacebyte with tables": (spacebyte_settings(ngrams={"sizes": (3, 4), "rows": 101, "functions": 2}), SPACE),
}
TEXTS = [random_text(50, 0), b"", random_text(80, 1), b"a", b"abcd", b"abc", b"two words", random_text(31, 2)]


@pytest.mark.parametrize("name", MODELS)
def test_no_logit_depends_on_a_later_byte(name):
    settings, patching = MODELS[name]
    model, text = any_model(settings), random_text(50, 0)
    batch = pack([text], patching)
    with torch.no_grad():
        found = blt_logits(model, batch)
        for t in range(1, len(batch.ids)):
            flipped = bytearray(text)
            flipped[t - 1] = (flipped[t - 1] + 17) % 256
            other = pack([bytes(flipped)], patching)
            changed = blt_logits(model, other)
            assert torch.equal(changed[:t], found[:t]), t
            assert not torch.equal(changed[t], found[t]), t


@pytest.mark.numerics
@pytest.mark.parametrize("padding", [(0, 0), (0, 7), (40, 9)])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_as_alone(name, padding):
    settings, patching = MODELS[name]
    model = any_model(settings)

    def run(model: Model, texts: list[bytes], pad: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
        batch = pack(texts, patching, pad=pad)
        loss = summed_loss(blt_logits(model, batch), batch.labels)
        return {"loss": loss.detach()} | gradients(model, loss)

    packed, alone = run(model, TEXTS, padding), [run(model, [text]) for text in TEXTS]
    exact = in_fp64(model, lambda model: run(model, TEXTS, padding))
    assert_equal_but_rounded(packed, {each: sum(single[each] for single in alone) for each in packed}, exact)
    assert all(gradient.any() for gradient in packed.values())
    assert packed.keys() - {"loss"} == {each for each, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_a_document_changes_nothing_in_its_neighbours(name):
    settings, patching = MODELS[name]
    model = any_model(settings)
    before, after = random_text(50, 0), random_text(77, 1)
    one, other = (pack([before, middle * 33, after], patching) for middle in (b"ab c", b"xy z"))
    with torch.no_grad():
        a, b = blt_logits(model, one), blt_logits(model, other)
    keep = one.documents.ids != 1
    assert torch.equal(a[keep], b[keep])
    assert not torch.equal(a[~keep], b[~keep])


@pytest.mark.parametrize("name", ["megabyte of 4", "spacebyte"])
def test_memory_is_linear_in_bytes(name, largest_tensor):
    settings, patching = MODELS[name]
    model = any_model(settings)

    def step(documents: int) -> int:
        batch = pack([random_text(511, n) for n in range(documents)], patching)
        return largest_tensor(lambda: blt_logits(model, batch).sum().backward())

    small, large = step(4), step(8)
    assert large <= 2.1 * small
    assert large < 4096 * 4096 / 8


def oracle_ngrams(model: Model, ids: Tensor) -> Tensor | float:
    """What tables add to the embedding of each of a document's tokens; 0 where there are none."""
    if model.ngrams is None:
        return 0.0
    return model.ngrams.weight[ngram_rows(ids, segments([len(ids)]), model.settings.ngrams)].sum(1)


def oracle_megabyte(model: MegaByte, tokens: list[int]) -> Tensor:
    """Logits of each token after BOS, patch by patch as published: BOS is the patch before the first."""
    size, piece = model.settings.patch, model.settings.piece
    patches = [tokens[:1], *(tokens[start : start + size] for start in range(1, len(tokens), size))]
    rows = []
    for patch in patches:
        row = torch.zeros(size, piece)
        row[: len(patch)] = model.patch_embedding(torch.tensor(patch))
        rows.append(row.flatten())
    count, ngrams = len(patches), oracle_ngrams(model, torch.tensor(tokens)) + torch.zeros(len(tokens), 1)
    states = oracle_stack(model.global_, torch.stack(rows), torch.arange(count), torch.ones(count, count).tril().bool())
    logits, seen_bytes = [], 0
    for number, patch in enumerate(patches[1:]):
        # Byte by byte: what is predicted follows the token before it, whose n-grams end there.
        inputs = model.embedding(torch.tensor([START, *patch[:-1]])) + ngrams[seen_bytes : seen_bytes + len(patch)]
        inputs = model.settings.local.width**0.5 * inputs
        seen_bytes += len(patch)
        inputs = inputs + model.projection(states[number].view(size, piece)[: len(patch)])
        seen = torch.ones(len(patch), len(patch)).tril().bool()
        out = oracle_stack(model.local, inputs, torch.arange(len(patch)), seen)
        logits.append(model.head(model.norm(out)))
    return torch.cat(logits)


def oracle_spacebyte(model: SpaceByte, batch: Batch) -> Tensor:
    """Logits of one document; its large blocks see the bytes after which a patch begins."""
    settings, count = model.settings, len(batch.ids)
    distance = torch.arange(count)[:, None] - torch.arange(count)
    seen = (distance >= 0) & (distance < settings.window)
    x = oracle_stack(
        model.before, model.embedding(batch.ids) + oracle_ngrams(model, batch.ids), torch.arange(count), seen
    )
    reads, owns = batch.patches.of_decoder.tolist(), batch.patches.of_token.tolist()
    ends = [t for t in range(count) if reads[t] == owns[t]]
    y = torch.cat([x[ends], torch.zeros(len(ends), settings.global_.width - settings.width)], 1)
    earlier = torch.ones(len(ends), len(ends)).tril().bool()
    y = oracle_stack(model.global_, y, torch.arange(len(ends)), earlier)
    rows = list(x)
    for place, state in zip(ends, y):
        rows[place] = rows[place] + state[: settings.width]
    return model.head(model.norm(oracle_stack(model.after, torch.stack(rows), torch.arange(count), seen)))


@pytest.mark.numerics
@pytest.mark.parametrize("name", MODELS)
def test_the_forward_pass_is_that_of_the_paper_written_out(name):
    settings, patching = MODELS[name]
    model, batch = any_model(settings), pack(TEXTS, patching, pad=(13, 5))
    with torch.no_grad():
        found = blt_logits(model, batch).split(batch.documents.lengths)
        for number, text in enumerate(TEXTS):
            single = pack([text], patching)

            def oracle(model: Model, single: Batch = single) -> Tensor:
                if isinstance(model, MegaByte):
                    return oracle_megabyte(model, [*single.ids.tolist(), int(single.labels[-1])])
                return oracle_spacebyte(model, single)

            assert_equal_but_rounded(found[number], oracle(model), in_fp64(model, oracle))
    assert (batch.labels != IGNORED_LABEL).sum() == sum(len(text) + 1 for text in TEXTS)
