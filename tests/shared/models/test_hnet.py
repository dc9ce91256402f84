"""H-Net: laws 1, 3 and 6, gradients of the router, and the forward pass written out document by document."""

import numpy as np
import pytest
import torch
from helpers.model_examples import (
    any_model,
    gradients,
    hnet_settings,
    oracle_stack,
    random_text,
    routed_pack,
    summed_loss,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64
from pydantic import ValidationError
from torch import Tensor

from shared.layers.batch import Batch
from shared.layers.ngrams import ngram_rows
from shared.layers.routing import ratio_loss
from shared.models.hnet import HNet, RoutedLogits

SETTINGS = hnet_settings()
MODELS = {"plain": SETTINGS, "with tables": hnet_settings(ngrams={"sizes": (2, 4), "rows": 101})}
TEXTS = [random_text(50, 0), b"", random_text(80, 1), b"a", b"abcd", b"abc", b"two words", random_text(31, 2)]


def routed(model: HNet, batch: Batch) -> RoutedLogits:
    return model(batch.ids, batch.documents, batch.patches)


@pytest.mark.parametrize("name", MODELS)
def test_no_logit_and_no_boundary_depends_on_a_later_byte(name):
    model, text = any_model(MODELS[name]), random_text(50, 0)
    batch = routed_pack([text], SETTINGS)
    with torch.no_grad():
        found = routed(model, batch)
        for t in range(1, len(batch.ids)):
            flipped = bytearray(text)
            flipped[t - 1] = (flipped[t - 1] + 17) % 256
            changed = routed(model, routed_pack([bytes(flipped)], SETTINGS))
            assert torch.equal(changed.logits[:t], found.logits[:t]), t
            assert torch.equal(changed.routing.ends[:t], found.routing.ends[:t]), t
            assert not torch.equal(changed.logits[t], found.logits[t]), t


@pytest.mark.numerics
@pytest.mark.parametrize("padding", [(0, 0), (0, 7), (40, 9)])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_as_alone(name, padding):
    model = any_model(MODELS[name])

    def run(model: HNet, texts: list[bytes], pad: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
        batch = routed_pack(texts, SETTINGS, pad)
        loss = summed_loss(routed(model, batch).logits, batch.labels)
        return {"loss": loss.detach()} | gradients(model, loss)

    packed, alone = run(model, TEXTS, padding), [run(model, [text]) for text in TEXTS]
    exact = in_fp64(model, lambda model: run(model, TEXTS, padding))
    assert_equal_but_rounded(packed, {each: sum(single[each] for single in alone) for each in packed}, exact)
    assert all(gradient.any() for gradient in packed.values())
    assert packed.keys() - {"loss"} == {each for each, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_a_document_changes_nothing_in_its_neighbours(name):
    model = any_model(MODELS[name])
    before, after = random_text(50, 0), random_text(77, 1)
    one, other = (routed_pack([before, middle * 33, after], SETTINGS) for middle in (b"ab c", b"xy z"))
    with torch.no_grad():
        a, b = routed(model, one), routed(model, other)
    keep = one.documents.ids != 1
    assert torch.equal(a.logits[keep], b.logits[keep])
    assert torch.equal(a.routing.ends[keep], b.routing.ends[keep])
    assert not torch.equal(a.logits[~keep], b.logits[~keep])


@pytest.mark.parametrize("padding", [(0, 0), (40, 9)])
def test_no_document_ends_more_patches_than_its_credit_whatever_the_router_wants(padding):
    """With a state that turns over at every token the router wants every boundary."""
    model, batch = any_model(SETTINGS), routed_pack(TEXTS, SETTINGS, padding)
    with torch.no_grad():
        model.router.key.weight.copy_(-model.router.query.weight)
        routing = routed(model, batch).routing
    wanted = int((routing.wanted & batch.patches.real).sum())
    assert wanted > 0.8 * int(batch.patches.real.sum()) > int(routing.ends.sum())
    counts = torch.zeros(len(batch.documents.lengths), dtype=torch.int64).index_add_(
        0, batch.documents.ids, routing.ends.long()
    )
    lengths = np.array(batch.documents.lengths[: len(TEXTS)])
    assert (counts[: len(TEXTS)].numpy() <= SETTINGS.patch_credit.bound(lengths)).all()
    assert counts[len(TEXTS) :].tolist() == [1] * bool(padding[0])


def test_the_decoder_reads_the_patches_that_lengths_say():
    model, batch = any_model(SETTINGS), routed_pack([random_text(90, 0)], SETTINGS)
    with torch.no_grad():
        routing = routed(model, batch).routing
    of_decoder, last = model.place_patches(routing.ends, batch.documents, batch.patches)
    # The token after a patch's last one begins a patch; BOS is one, and EOS is in the last.
    starts = np.flatnonzero(np.append(True, routing.ends.numpy()))
    lengths = np.diff(starts, append=len(batch.ids) + 1)
    assert lengths[0] == 1
    assert of_decoder.tolist() == (np.repeat(np.arange(len(lengths)), lengths)[1:] - 1).tolist()
    ended = np.cumsum(lengths)[: int(routing.ends.sum())] - 1
    assert last[: len(ended)].tolist() == ended.tolist()


def test_gradients_reach_the_router_from_the_loss_and_from_the_ratio():
    model, batch = any_model(SETTINGS), routed_pack(TEXTS, SETTINGS, (5, 3))
    found = routed(model, batch)
    ratio = ratio_loss(found.routing, batch.patches.real, SETTINGS.target)
    names = ["router.query.weight", "router.key.weight"]
    parameters = [model.get_parameter(name) for name in names]
    of_ratio = torch.autograd.grad(ratio, parameters, retain_graph=True)
    of_loss = torch.autograd.grad(summed_loss(found.logits, batch.labels), parameters)
    for gradient in (*of_ratio, *of_loss):
        assert gradient.isfinite().all()
        assert gradient.norm() > 0


@pytest.mark.drill
def test_the_ratio_converges_to_its_target():
    """From a router that wants half of all boundaries, by the ratio loss beside the loss of the text."""
    torch.manual_seed(0)
    settings = hnet_settings(target=5, credit=8, credit_bytes=2, max_length=64)
    model = any_model(settings)
    batch = routed_pack([random_text(150, seed) for seed in (0, 10)], settings)
    optimizer, sizes = torch.optim.AdamW(model.parameters(), lr=6e-3), []
    for _ in range(80):
        found = routed(model, batch)
        loss = summed_loss(found.logits, batch.labels) / len(batch.ids)
        loss = loss + 0.3 * ratio_loss(found.routing, batch.patches.real, settings.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sizes.append(len(batch.ids) / int(found.routing.ends.sum()))
    assert sizes[0] < 4
    assert np.mean(sizes[-20:]) == pytest.approx(settings.target, rel=0.1)


def test_memory_is_linear_in_bytes(largest_tensor):
    model = any_model(SETTINGS)

    def step(documents: int) -> int:
        batch = routed_pack([random_text(511, n) for n in range(documents)], SETTINGS)
        return largest_tensor(lambda: routed(model, batch).logits.sum().backward())

    small, large = step(4), step(8)
    assert large <= 2.1 * small
    assert large < 4096 * 4096 / 8


def oracle(model: HNet, batch: Batch) -> Tensor:
    """Logits of one document, its patches taken one by one."""
    settings, count = model.settings, len(batch.ids)
    distance = torch.arange(count)[:, None] - torch.arange(count)
    seen = (distance >= 0) & (distance < settings.window)
    x = model.embedding(batch.ids)
    if model.ngrams is not None:
        x = x + model.ngrams.weight[ngram_rows(batch.ids, batch.documents, settings.ngrams)].sum(1)
    x = model.encoder_norm(oracle_stack(model.encoder, x, torch.arange(count), seen))
    query, key = model.router.query(x), model.router.key(x)
    cosines = [torch.dot(query[t], key[t - 1]) / (query[t].norm() * key[t - 1].norm()) for t in range(1, count)]
    p = [torch.ones(()), *((1 - cosine) / 2 for cosine in cosines)]
    held, latest, ends = settings.credit * settings.credit_bytes, 0, [0]
    for t in range(1, count):
        held = min(held + 1, settings.credit * settings.credit_bytes)
        paid = float(p[t]) >= 0.5 and held >= settings.credit_bytes
        held -= settings.credit_bytes * paid
        if paid or t - latest == settings.max_length:
            latest = t
            ends.append(t)
    patches = len(ends)
    y = oracle_stack(
        model.global_,
        model.input_projection(x[ends]),
        torch.arange(patches),
        torch.ones(patches, patches).tril().bool(),
    )
    y = model.patch_projection(model.global_norm(y))
    average, rows, number = torch.zeros(y.shape[1]), [], -1
    for t in range(count):
        if t in ends:
            number += 1
            average = p[t] * y[number] + (1 - p[t]) * average
        rows.append(model.residual(x[t]) + average)
    return model.head(model.norm(oracle_stack(model.decoder, torch.stack(rows), torch.arange(count), seen)))


@pytest.mark.numerics
@pytest.mark.parametrize("name", MODELS)
def test_the_forward_pass_is_that_of_the_paper_written_out(name):
    model, batch = any_model(MODELS[name]), routed_pack(TEXTS, SETTINGS, (13, 5))
    with torch.no_grad():
        found = routed(model, batch).logits.split(batch.documents.lengths)
        for number, text in enumerate(TEXTS):
            single = routed_pack([text], SETTINGS)
            wanted = oracle(model, single)
            assert_equal_but_rounded(
                found[number], wanted, in_fp64(model, lambda model, one=single: oracle(model, one))
            )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"credit_bytes": 4}, "credit_bytes 4 must be less than target 4"),
        ({"max_length": 7}, "max_length 7 must be at least .* 8"),
        ({"credit": 4000, "max_length": 60_000}, "credit 4000 times credit_bytes 2 is above 4096"),
    ],
)
def test_settings_that_no_credit_can_keep_are_refused(changes, named):
    with pytest.raises(ValidationError, match=named):
        hnet_settings(**changes)
