"""Targets that are kept: what is kept is exact, what is not is one sum."""

import numpy as np
import pytest
import torch

from shared.distillation.byte_targets import BYTES, END, ByteTargets, TokenTree
from shared.distillation.stored_targets import StoredTargets, TargetFormat, stored_targets
from shared.vocabulary import EOS, OFFSET, VOCABULARY_SIZE

TOKENS = [b"a", b"ab", b"abc", b"b", b"ba", None, b"c", None, None]
SPECIALS = [EOS, None, 261]
"""The teacher's last special id but one is unknown to the student."""
IDS = np.array([2, 5, 4, 7, 0, 8])


def targets(spread: float = 3.0) -> ByteTargets:
    logits = torch.randn(len(IDS), len(TOKENS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return TokenTree(TOKENS).targets(logits * spread, IDS)


def kept(top: int, dtype: str = "float32") -> StoredTargets:
    form = TargetFormat.model_validate({"top": top, "dtype": dtype})
    return stored_targets(targets(), SPECIALS, form, VOCABULARY_SIZE + 2)


def by_definition(row: np.ndarray) -> dict[int, float]:
    """Probabilities by the student's ids, of one row of the teacher's that is about a byte or special id."""
    found = {OFFSET + byte: p for byte, p in enumerate(np.exp(row[:BYTES])) if p}
    found |= {own: p for own, p in zip(SPECIALS, np.exp(row[END + 1 :])) if own is not None and p}
    return found


@pytest.mark.parametrize("top", [1, 2, 3, 8, 256])
def test_the_most_probable_are_kept_and_the_others_are_one_sum(top: int) -> None:
    logs = targets().logs[targets().goes_on].numpy()
    found = kept(top)
    assert len(found.symbols) == len(logs) == 9
    for number, row in enumerate(logs):
        wanted = sorted(by_definition(row).items(), key=lambda pair: -pair[1])
        own = dict(zip(found.symbols[number].tolist(), np.exp(found.logs[number].astype(float))))
        for symbol, p in wanted[:top]:
            assert own.pop(symbol) == pytest.approx(p, rel=1e-6)
        assert not any(own.values()), "no other symbol has any"
        assert np.exp(found.end[number]) == pytest.approx(np.exp(row[END]), rel=1e-6)
        unknown = np.exp(row[END + 2])
        assert np.exp(found.rest[number]) == pytest.approx(sum(p for _, p in wanted[top:]) + unknown, rel=1e-6)
    together = np.exp(found.logs).sum(1) + np.exp(found.end) + np.exp(found.rest)
    np.testing.assert_allclose(together, 1, rtol=1e-6)
    assert found.largest_rest == pytest.approx(np.exp(found.rest.max()))


def test_targets_that_are_whole_are_those_of_the_teacher() -> None:
    found = kept(256)
    exact = targets().next_bytes().numpy()
    own = np.full((len(found.symbols), VOCABULARY_SIZE + 2), -np.inf)
    np.put_along_axis(own, found.symbols.astype(int), found.next_bytes()[:, :-1], 1)
    np.testing.assert_allclose(own[:, OFFSET : OFFSET + BYTES], exact[:, :BYTES], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own[:, [EOS, 261]], exact[:, [BYTES, BYTES + 2]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.next_bytes()[:, -1], exact[:, BYTES + 1], rtol=1e-5, atol=1e-6)


def test_half_precision_is_right_within_its_rounding() -> None:
    half, whole = kept(3, "float16"), kept(3)
    assert half.logs.dtype == half.end.dtype == half.rest.dtype == np.float16
    assert np.array_equal(half.symbols, whole.symbols)
    for name in ("logs", "end", "rest"):
        np.testing.assert_allclose(getattr(half, name), getattr(whole, name), rtol=5e-4, atol=1e-7)
    np.testing.assert_allclose(np.exp(half.next_bytes()).sum(1), 1, rtol=1e-6)


def test_special_ids_that_are_one_to_the_student_add_up() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    found = stored_targets(
        TokenTree([b"x", None, None]).targets(logits, np.array([0])), [EOS, EOS], TargetFormat(top=2, dtype="float32")
    )
    p = logits.softmax(1)[0]
    assert found.symbols[0].tolist() == [EOS, OFFSET + ord("x")]
    assert np.exp(found.logs[0]).tolist() == pytest.approx([float(p[1] + p[2]), float(p[0])])
    assert found.largest_rest == 0


def test_where_the_teacher_is_sure_that_the_token_has_ended_the_rest_has_all() -> None:
    row = torch.full((1, END + 1), -torch.inf)
    row[0, END] = 0
    one = ByteTargets(row, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.tensor([True]))
    found = stored_targets(one, [], TargetFormat(top=2)).next_bytes()
    assert np.exp(found).tolist() == [[0, 0, 1]]


def test_a_text_without_targets_has_lost_nothing() -> None:
    nothing = stored_targets(TokenTree([b"a"]).targets(torch.zeros(0, 1), np.zeros(0, np.int64)), [], TargetFormat())
    assert nothing.symbols.shape == (0, 8)
    assert nothing.largest_rest == 0
