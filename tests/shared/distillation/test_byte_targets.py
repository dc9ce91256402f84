"""Probabilities of bytes from those of tokens: the definition, on vocabularies small enough to try everything."""

import itertools
import random

import numpy as np
import pytest
import torch

from shared.distillation import byte_targets
from shared.distillation.byte_targets import BYTES, END, TokenTree


def vocabulary(seed: int) -> list[bytes | None]:
    """Up to 50 tokens over few bytes, so that many begin alike; some are equal, some are special."""
    source = random.Random(seed)
    alphabet = source.sample(range(256), source.choice([1, 2, 3]))
    count = source.randint(1, 50 - 3)
    tokens: list[bytes | None] = [bytes(source.choices(alphabet, k=source.randint(1, 5))) for _ in range(count)]
    tokens += [None] * source.randint(0, 3)
    source.shuffle(tokens)
    return tokens


def by_definition(logp: np.ndarray, tokens: list[bytes | None], known: bytes) -> np.ndarray:
    """ln q of every symbol after ``known``, sum by sum."""
    specials = [number for number, token in enumerate(tokens) if token is None]
    found = np.full(END + 1 + len(specials), -np.inf)
    for own, token in zip(logp, tokens):
        if token is not None and token.startswith(known):
            symbol = token[len(known)] if len(token) > len(known) else END
            found[symbol] = np.logaddexp(found[symbol], own)
    if not known:
        found[END + 1 :] = logp[specials]
    return found - np.logaddexp.reduce(found)


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("spread", [1.0, 300.0])
@pytest.mark.parametrize("many", [1, 5, byte_targets.MANY], ids=["together", "some together", "one by one"])
def test_every_row_is_the_definition_and_a_tokens_rows_multiply_to_its_probability(
    seed: int, spread: float, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_targets, "MANY", many)
    tokens = vocabulary(seed)
    tree = TokenTree(tokens)
    generator = torch.Generator().manual_seed(seed)
    ids = np.arange(len(tokens))
    logits = torch.randn(len(tokens), len(tokens), generator=generator, dtype=torch.float64) * spread
    found = tree.targets(logits, ids)
    logp = logits.log_softmax(-1).numpy()
    for number, token in enumerate(tokens):
        rows = found.logs[found.token == number].numpy()
        known = b"" if token is None else token
        assert found.depth[found.token == number].tolist() == list(range(len(known) + 1))
        np.testing.assert_allclose(np.exp(rows).sum(1), 1, rtol=1e-12)
        for depth, row in enumerate(rows):
            np.testing.assert_allclose(row, by_definition(logp[number], tokens, known[:depth]), rtol=1e-9, atol=1e-9)
        if token is None:
            path, equal = [END + 1 + tree.specials.index(number)], [number]
        else:
            path, equal = [*known, END], [other for other, x in enumerate(tokens) if x == token]
        along = rows[range(len(rows)), path].sum()
        np.testing.assert_allclose(along, np.logaddexp.reduce(logp[number][equal]), rtol=1e-9, atol=1e-9)


def test_a_target_is_what_follows_where_the_token_goes_on() -> None:
    tokens = [b"a", b"ab", b"ac", b"b", None]
    p = torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1], dtype=torch.float64)
    found = TokenTree(tokens).targets(p.log().expand(3, -1), np.array([2, 4, 3]))
    a, b, c = b"abc"
    wanted = torch.zeros(4, BYTES + 1, dtype=torch.float64)
    wanted[0, [a, b, BYTES]] = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    wanted[1, [b, c]] = torch.tensor([1, 2], dtype=torch.float64) / 3
    wanted[2:] = wanted[0]
    torch.testing.assert_close(found.next_bytes().exp(), wanted)
    assert found.logs[1, END].exp() == pytest.approx(0.4 / 0.7)
    # However sure the teacher is that the token has ended.
    sure = TokenTree(tokens).targets(torch.tensor([[900.0, 0, -40, 0, 0]]), np.array([2]))
    torch.testing.assert_close(sure.next_bytes()[1, [b, c]], torch.tensor([0.0, -40.0]))


def test_rows_do_not_depend_on_what_is_gathered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = vocabulary(5)
    ids = np.random.default_rng(0).integers(0, len(tokens), 40)
    logits = torch.randn(40, len(tokens))
    whole = TokenTree(tokens).targets(logits, ids)
    for many in (1 << 20, 1, 10):
        monkeypatch.setattr(byte_targets, "MANY", many)
        for gathered in (1 << 22, 1):
            monkeypatch.setattr(byte_targets, "GATHERED", gathered)
            found = TokenTree(tokens).targets(logits, ids).logs
            torch.testing.assert_close(found, whole.logs, rtol=0, atol=1e-5)
    monkeypatch.undo()
    assert whole.logs.dtype == torch.float32
    half = TokenTree(tokens).targets(logits.bfloat16(), ids).logs
    assert torch.equal(half, TokenTree(tokens).targets(logits.bfloat16().float(), ids).logs)


def test_a_vocabulary_of_all_pairs_of_bytes_is_one_of_bytes() -> None:
    """With every pair a token, the first byte has the sum of its pairs, and the second what is left."""
    tokens: list[bytes | None] = [bytes(pair) for pair in itertools.product(range(BYTES), repeat=2)]
    logits = torch.randn(1, BYTES * BYTES, dtype=torch.float64)
    p = logits.softmax(-1).view(BYTES, BYTES)
    first, second, ended = TokenTree(tokens).targets(logits, np.array([7 * BYTES + 9])).logs.exp()
    torch.testing.assert_close(first[:BYTES], p.sum(1))
    torch.testing.assert_close(second[:BYTES], p[7] / p[7].sum())
    assert ended[END] == 1, "no token goes on"


def test_ids_without_bytes_are_special() -> None:
    with pytest.raises(ValueError, match="token 1 has no bytes"):
        TokenTree([b"a", b""])
    with pytest.raises(ValueError, match="no token has bytes"):
        TokenTree([None])
