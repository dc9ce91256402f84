"""The loss of a student: each term over the targets of the step, and inputs that know nothing of what is learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.model_examples import blt_settings, gradients, pack, random_text
from helpers.tiny_runs import STATIC, tiny_settings

from shared.bpe.vocabulary import NO_TOKEN
from shared.distillation.losses import divergence, embedding_error
from shared.layers.batch import Batch, TeacherTargets
from shared.models.blt import Blt, LogitsAndInputs
from shared.models.initialise import initialise
from shared.vocabulary import BOS, IGNORED_LABEL, OFFSET
from trainer.distributed.world import started
from trainer.optim.distillation import TERMS, Distillation, TeacherEmbedding
from trainer.optim.train_step import backward
from trainer.settings import DistillationSettings

SETTINGS = blt_settings()
TABLE = torch.randn(300, SETTINGS.global_.width, generator=torch.Generator().manual_seed(1))
WEIGHTS = DistillationSettings(targets="there", teacher="there", bytes=0.5, probabilities=2.0, embedding=3.0)


@pytest.fixture
def model() -> Blt:
    model = Blt(SETTINGS)
    initialise(model, 0)
    return model


def taught(seed: int, pad: tuple[int, int] = (0, 0)) -> Batch:
    """Two documents with random targets of a teacher; some patches are none of its tokens."""
    batch = pack([random_text(70, seed), random_text(31, seed + 1)], STATIC, pad=pad)
    generator = torch.Generator().manual_seed(seed)
    assert batch.patches is not None
    tokens = torch.randint(NO_TOKEN, len(TABLE), (batch.patches.count,), generator=generator)
    if pad[1]:
        tokens[-pad[1] :] = NO_TOKEN
    logs = torch.randn(len(batch.ids), 4, generator=generator).log_softmax(1)
    symbols = torch.stack([torch.randperm(256, generator=generator)[:3] + OFFSET for _ in batch.ids])
    return replace(batch, teacher=TeacherTargets(symbols, logs, tokens))


def with_inputs(model: Blt, batch: Batch) -> LogitsAndInputs:
    assert batch.patches is not None
    found = model(batch.ids, batch.documents, batch.patches, keep_inputs=True)
    assert isinstance(found, LogitsAndInputs)
    return found


@pytest.mark.numerics
def test_each_term_is_summed_over_packs_and_divided_by_the_targets_of_the_step(model: Blt, tmp_path: Path) -> None:
    batches = [taught(0), taught(5, pad=(9, 3))]
    targets = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    terms = torch.zeros(3)
    for batch in batches:
        found, teacher = with_inputs(model, batch), batch.teacher
        assert teacher is not None
        text = F.cross_entropy(found.logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
        error = embedding_error(found.inputs, teacher.tokens, TABLE, BOS) / 2.0
        terms = terms + torch.stack([text, divergence(found.logits, batch.labels, teacher), error])
    whole = (torch.tensor([0.5, 2.0, 3.0]) * terms).sum()
    wanted = gradients(model, whole / targets)
    model.zero_grad()
    counts: list[torch.Tensor] = []
    distillation = Distillation(WEIGHTS, TeacherEmbedding(TABLE, BOS), scale=2.0)
    with started(tiny_settings(tmp_path, tmp_path).run) as world:
        nats = backward(model, batches, targets, world, counts=counts, distillation=distillation)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)
    assert nats.item() == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(sum(counts), terms.double(), rtol=1e-5, atol=1e-5)
    assert len(TERMS) == 3


def test_the_same_logits_with_and_without_what_the_global_transformer_reads(model: Blt) -> None:
    batch = taught(2)
    assert batch.patches is not None
    assert torch.equal(with_inputs(model, batch).logits, model(batch.ids, batch.documents, batch.patches))


def test_bytes_after_a_byte_change_none_of_its_logits_whatever_the_teacher_says(model: Blt) -> None:
    """Targets may look ahead as labels do, inputs may not: with equal patches, nothing before a change is another."""
    batch = taught(4)
    assert batch.patches is not None
    assert batch.teacher is not None
    before = with_inputs(model, batch)
    for changed in (12, 40, 69):
        ids = batch.ids.clone()
        ids[changed:70] = (ids[changed:70] - OFFSET + 1) % 256 + OFFSET
        other = replace(batch, ids=ids, labels=ids.roll(-1), teacher=taught(99).teacher)
        after = with_inputs(model, other)
        assert torch.equal(after.logits[:changed], before.logits[:changed])
        assert not torch.equal(after.logits[changed], before.logits[changed])
        complete = int(batch.patches.of_token[changed])
        assert torch.equal(after.inputs[:complete], before.inputs[:complete])
        assert torch.equal(after.logits[71:], before.logits[71:]), "the other document is another"
