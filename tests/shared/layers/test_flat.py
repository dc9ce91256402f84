"""Laws 1 and 3 for the flat transformer, over bytes and over subwords."""

import pytest
import torch
from helpers.model_examples import any_model, entropy_settings, flat_settings, gradients, pack, random_text, summed_loss
from helpers.rounding import assert_equal_but_rounded, in_fp64

from shared.layers.batch import segments
from shared.vocabulary import IGNORED_LABEL, RESERVED, VOCABULARY_SIZE

MODELS = {
    "bytes": flat_settings(),
    "window": flat_settings(window=16),
    "subwords": flat_settings(vocabulary=500, kv_heads=1),
    "bytes with tables": flat_settings(window=16, ngrams={"sizes": (2, 5), "rows": 101}),
    "subwords with tables": flat_settings(vocabulary=500, ngrams={"sizes": (2, 3), "rows": 101, "functions": 2}),
}


def ids_of(name: str, lengths: list[int], seed: int = 0) -> torch.Tensor:
    """int64 [T], any ids that the model knows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, MODELS[name].vocabulary, (sum(lengths),), generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_no_logit_depends_on_a_later_token(name):
    model, documents = any_model(MODELS[name]), segments([70])
    ids = ids_of(name, [70])
    with torch.no_grad():
        found = model(ids, documents)
        assert found.shape == (70, MODELS[name].vocabulary)
        for t in range(70):
            flipped = ids.clone()
            flipped[t] = (flipped[t] + 17) % MODELS[name].vocabulary
            changed = model(flipped, documents)
            assert torch.equal(changed[:t], found[:t]), t
            assert not torch.equal(changed[t], found[t]), t


@pytest.mark.numerics
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_as_alone(name):
    model, lengths = any_model(MODELS[name]), [50, 1, 130, 9]
    ids, labels = ids_of(name, lengths), ids_of(name, lengths, 1)
    labels[3] = IGNORED_LABEL

    def run(model, ids, labels, lengths):
        loss = summed_loss(model(ids, segments(lengths)), labels)
        return {"loss": loss.detach()} | gradients(model, loss)

    packed, exact = run(model, ids, labels, lengths), in_fp64(model, lambda model: run(model, ids, labels, lengths))
    alone = [run(model, *part, [len(part[0])]) for part in zip(ids.split(lengths), labels.split(lengths))]
    assert_equal_but_rounded(packed, {each: sum(single[each] for single in alone) for each in packed}, exact)
    assert packed.keys() - {"loss"} == {each for each, _ in model.named_parameters()}


def test_a_whole_document_is_seen_without_a_window_and_no_more_than_it_with_one():
    ids = ids_of("bytes", [200])
    flipped = ids.clone()
    flipped[0] = (flipped[0] + 1) % VOCABULARY_SIZE
    far, near = any_model(MODELS["bytes"]), any_model(MODELS["window"])
    with torch.no_grad():
        assert not torch.equal(far(ids, segments([200]))[-1], far(flipped, segments([200]))[-1])
        assert torch.equal(near(ids, segments([200]))[-1], near(flipped, segments([200]))[-1])


def test_tables_reach_as_far_back_as_their_longest_n_gram_and_not_into_the_document_before():
    model, lengths = any_model(flat_settings(window=1, ngrams={"sizes": (2, 4), "rows": 997})), [20, 20]
    ids, plain = ids_of("bytes", lengths), any_model(flat_settings(window=1))
    with torch.no_grad():
        found, without = model(ids, segments(lengths)), plain(ids, segments(lengths))
        for t in range(40):
            flipped = ids.clone()
            flipped[t] = (flipped[t] + 17) % VOCABULARY_SIZE
            changed = (model(flipped, segments(lengths)) != found).any(-1).nonzero().flatten().tolist()
            assert changed == list(range(t, min(t + 4, 20 if t < 20 else 40))), t
            assert (plain(flipped, segments(lengths)) != without).any(-1).nonzero().flatten().tolist() == [t]


def test_over_bytes_it_is_the_entropy_model_of_the_same_window():
    batch = pack([random_text(90, 0), random_text(33, 1)])
    flat, entropy = any_model(flat_settings(window=64, rope_theta=10_000.0)), any_model(entropy_settings())
    with torch.no_grad():
        logits = flat(batch.ids, batch.documents)
        assert torch.equal(logits, entropy(batch.ids, batch.documents))
        named = torch.where(batch.ids == 36, RESERVED, batch.ids)
        special = torch.where(batch.ids == 36, VOCABULARY_SIZE + 1, batch.ids)
        assert torch.equal(flat(special, batch.documents), flat(named, batch.documents))
        tables = any_model(MODELS["bytes with tables"])
        assert torch.equal(tables(special, batch.documents), tables(named, batch.documents))
