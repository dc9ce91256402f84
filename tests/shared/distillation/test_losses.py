"""What a student learns from a teacher: divergences and errors against plain sums over symbols."""

import math

import pytest
import torch

from shared.bpe.vocabulary import NO_TOKEN
from shared.distillation.losses import BEGINNING, divergence, embedding_error
from shared.layers.batch import TeacherTargets
from shared.vocabulary import IGNORED_LABEL

V = 12


def example(top: int, count: int = 5) -> tuple[torch.Tensor, torch.Tensor, TeacherTargets, torch.Tensor]:
    """Logits [T, V], labels [T], targets of the ``top`` symbols, and all probabilities of the teacher [T, V]."""
    generator = torch.Generator().manual_seed(top)
    logits = torch.randn(count, V, generator=generator, dtype=torch.float64)
    teacher = torch.randn(count, V, generator=generator, dtype=torch.float64).mul(2).log_softmax(1)
    ordered, symbols = teacher.sort(dim=1, descending=True)
    rest = ordered[:, top:].logsumexp(1, keepdim=True)
    targets = TeacherTargets(symbols[:, :top], torch.cat([ordered[:, :top], rest], 1), torch.zeros(1))
    return logits, torch.arange(count), targets, teacher.exp()


@pytest.mark.parametrize("top", [0, 1, 3, V - 1])
def test_divergence_is_that_of_the_kept_symbols_and_the_rest_as_one(top: int) -> None:
    logits, labels, targets, probabilities = example(top)
    wanted = 0.0
    for row, kept in enumerate(targets.symbols.tolist()):
        student = logits[row].softmax(0)
        groups = [[symbol] for symbol in kept] + [[symbol for symbol in range(V) if symbol not in kept]]
        for group in groups:
            p, q = (float(side[group].sum()) for side in (probabilities[row], student))
            wanted += p * math.log(p / q)
    assert divergence(logits, labels, targets).item() == pytest.approx(wanted, abs=1e-12)


def test_nothing_is_learned_where_the_label_is_ignored() -> None:
    logits, labels, targets, _ = example(3)
    logits.requires_grad_()
    labels[2] = IGNORED_LABEL
    divergence(logits, labels, targets).backward()
    assert logits.grad is not None
    assert logits.grad[2].eq(0).all()
    assert logits.grad[[0, 1, 3, 4]].ne(0).any(1).all()


def test_a_student_that_agrees_has_no_divergence_and_no_gradient() -> None:
    _, labels, targets, probabilities = example(4)
    logits = (probabilities.log() + 7).requires_grad_()
    found = divergence(logits, labels, targets)
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-12)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-12)


def test_symbols_without_any_probability_add_nothing() -> None:
    logits = torch.zeros(1, V, requires_grad=True)
    logs = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    found = divergence(logits, torch.zeros(1), TeacherTargets(torch.tensor([[3, 4]]), logs, torch.zeros(1)))
    found.backward()
    assert found.item() == pytest.approx(math.log(V), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_embedding_error_is_the_mean_square_of_patches_that_are_tokens() -> None:
    table = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
    inputs = torch.tensor([[1.0, 3.0], [9.0, 9.0], [2.0, 0.0], [1.0, 4.0]], requires_grad=True)
    tokens = torch.tensor([0, NO_TOKEN, BEGINNING, 2])
    found = embedding_error(inputs, tokens, table, beginning=1)
    found.backward()
    assert found.item() == pytest.approx(4 / 2 + 0 + 1 / 2)
    assert inputs.grad is not None
    assert inputs.grad[1].eq(0).all()
    assert embedding_error(inputs, tokens, table, beginning=NO_TOKEN).item() == pytest.approx(2.5)
