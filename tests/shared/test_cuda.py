"""The same models on a CUDA device: fp32 in bands, bf16 by the variable-length kernel. Skipped where there is none."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from model_examples import (
    blt,
    blt_logits,
    blt_settings,
    entropy_model,
    entropy_settings,
    gradients,
    pack,
    random_text,
    summed_loss,
)

from shared.batch import segments
from shared.entropy_model import entropy
from shared.incremental import GrowingDocuments
from shared.patching import PatchingSettings
from shared.scoring import Scorer
from shared.vocabulary import document_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
DEVICE = torch.device("cuda")
TEXTS = [random_text(length, seed=length) for length in (1, 700, 64, 129, 300)]
WIDE = {"width": 128, "heads": 4, "feed_forward": 256}  # the kernel wants heads of at least 16
BF16_TOLERANCE = 0.05
"""Of the largest fp32 logit: bf16 keeps 8 bits, and a few layers of it add up."""


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """No TF32: fp32 means fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_fp32_logits_and_gradients_are_those_of_the_processor() -> None:
    batch, settings = pack(TEXTS, pad=(64, 3)), blt_settings(kv_heads=2)
    here, there = blt(settings), blt(settings).to(DEVICE)
    logits, moved = blt_logits(here, batch), batch.to(DEVICE)
    found = blt_logits(there, moved)
    torch.testing.assert_close(found.cpu(), logits, atol=1e-4, rtol=0)
    wanted = gradients(here, summed_loss(logits, batch.labels))
    for name, gradient in gradients(there, summed_loss(found, moved.labels)).items():
        difference = torch.linalg.vector_norm(gradient.cpu() - wanted[name])
        assert difference <= 1e-4 * torch.linalg.vector_norm(wanted[name]) + 1e-6, name


def test_fp32_entropies_are_those_of_the_processor_also_with_resets_and_carried_keys() -> None:
    for reset in (False, True):
        model = entropy_model(entropy_settings(newline_reset=reset))
        documents = [document_tokens(text) for text in TEXTS]
        here = Scorer(model, 256).score(documents)
        there = Scorer(model, 256, device=DEVICE).score(documents)
        for wanted, found in zip(here, there, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_bf16_by_the_kernel_is_near_fp32() -> None:
    settings = blt_settings(
        encoder=WIDE | {"layers": 1}, decoder=WIDE | {"layers": 2}, **{"global": WIDE | {"width": 256, "layers": 2}}
    )
    batch = pack(TEXTS, pad=(64, 3)).to(DEVICE)
    model = blt(settings).to(DEVICE).eval()
    with torch.inference_mode():
        wanted = blt_logits(model, batch)
        found = blt_logits(model.bfloat16(), batch)
    assert (found - wanted).abs().max() <= BF16_TOLERANCE * wanted.abs().max()


def test_bf16_entropies_of_a_document_do_not_depend_on_where_streams_are_cut_or_on_its_neighbours() -> None:
    model = entropy_model(entropy_settings(**WIDE))
    documents = [document_tokens(text) for text in TEXTS]
    whole = list(Scorer(model, 2048, "bfloat16", DEVICE).score(documents))
    cut = list(Scorer(model, 256, "bfloat16", DEVICE).score(documents))
    exact = list(Scorer(model, 2048, device=DEVICE).score(documents))
    for number, document in enumerate(documents):
        (alone,) = Scorer(model, 2048, "bfloat16", DEVICE, in_flight=1 + number % 3).score([document])
        assert np.array_equal(alone, whole[number])
        np.testing.assert_allclose(cut[number], exact[number], atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_documents_that_grow_there_have_the_logits_of_whole_ones(dtype: torch.dtype) -> None:
    model, patcher = blt().to(DEVICE).eval(), entropy_model().to(DEVICE).eval()
    text = random_text(300, seed=1)
    ids = torch.from_numpy(document_tokens(text)[:-1].astype(np.int64)).to(DEVICE)
    with torch.inference_mode():
        nats = entropy(patcher(ids, segments([len(ids)]).to(DEVICE))).cpu().numpy()
        rule = PatchingSettings(rule="entropy", theta=float(np.quantile(nats, 0.8)), max_length=16)
        whole = blt_logits(model, pack([text], rule, [nats]).to(DEVICE))
    documents = GrowingDocuments(model.to(dtype), rule, patcher)
    tolerance = (1e-5 if dtype == torch.float32 else BF16_TOLERANCE) * whole.abs().max()
    for piece, wanted in zip(ids.split(7), whole.split(7)):
        found = documents.advance(piece[None])
        documents.commit([len(piece)])
        assert (found.logits[0] - wanted).abs().max() <= tolerance
