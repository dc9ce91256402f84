"""What a model of tokens says of each next byte: probabilities of bytes, from those of all its tokens.

Inside one token let y be its bytes so far, and S(y) the mass of all tokens whose bytes begin with y. Then
q(b | y) = S(yb) / S(y) is the probability of the byte b, and q(END | y) = p(tokens with exactly the bytes y) / S(y)
that of the token ending there. Where a token begins, y is empty, S(y) is 1, and special ids have their own
probabilities. Along a token the logarithms of q, END included, add up to that of its probability; tokens with equal
bytes are one.

A student that reads bytes has no END. Where the text's own token goes on, it is to give q(b | y) / (1 - q(END | y)),
what the teacher thinks of the next byte once it is known that the token goes on; where the token has ended, the next
byte is the first of the next token, of which the row without any bytes of that token tells. So END takes part in what
a token's rows add up to, and in no target. That a token goes on is known from bytes after it, as labels are.

All is computed with logarithms: no beginning is too improbable, and no row sums to nothing.

Shapes: N tokens of a text, V ids of the teacher, U of them with bytes, L bytes of its longest token, X special ids,
M = the bytes of the N tokens and N more, T = the bytes and special ids of the N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BYTES = 256
END = BYTES
"""The column of the token ending; those of special ids follow it."""
GATHERED = 1 << 22
"""Logits that are looked at together: memory is bounded, however long a text is."""

ALIKE = 1 << 13
"""Logits from which on rows about the same tokens are summed together: a third of the time, with 4,096 ids."""


@dataclass(frozen=True)
class ByteTargets:
    """Of a text in tokens: for each token a row for every number of its bytes, from none to all of them."""

    logs: Tensor
    """fp32 or fp64 [M, 257 + X], ln q: the probabilities of a row sum to 1. The last row of a token with bytes is about
    what may follow all of them inside a longer token, END included; a special id has the one row before it."""
    token: Tensor
    """int64 [M], which of the N tokens a row belongs to."""
    depth: Tensor
    """int64 [M], bytes of that token that are known."""
    goes_on: Tensor
    """bool [M], whether another byte of that token follows, or it is a special id."""

    def next_bytes(self) -> Tensor:
        """[T, 256 + X]: ln of the target of each byte and special id of the text, END left out."""
        rows = self.logs[self.goes_on]
        return torch.cat([rows[:, :END], rows[:, END + 1 :]], 1).log_softmax(1)


class TokenTree:
    """The bytes of all tokens of a vocabulary, in an order in which those that begin alike are neighbours."""

    def __init__(self, tokens: Sequence[bytes | None], device: torch.device | None = None) -> None:
        """``tokens``: the bytes of each id; None for special ids, which stand for no bytes.

        Raises ValueError for a token of no bytes, and where no id has any.
        """
        if empty := [number for number, token in enumerate(tokens) if token == b""]:
            raise ValueError(f"token {empty[0]} has no bytes; an id without bytes is a special one")
        texts = {number: token for number, token in enumerate(tokens) if token is not None}
        if not texts:
            raise ValueError("no token has bytes")
        self.specials = tuple(number for number, token in enumerate(tokens) if token is None)
        """Ids without bytes, in the order of their columns."""
        ordered = sorted(texts, key=texts.__getitem__)
        lengths = np.array([len(texts[number]) for number in ordered])
        # What stands at each place of each token, and END behind it; a whole column of it, so that each token ends.
        symbols = np.full((len(ordered), lengths.max() + 1), END, np.int16)
        symbols[np.arange(symbols.shape[1]) < lengths[:, None]] = np.frombuffer(
            b"".join(sorted(texts.values())), np.uint8
        )
        rank = np.full(len(tokens), -1)
        rank[ordered] = np.arange(len(ordered))
        first, last = _neighbours(symbols, lengths)
        begins = np.cumsum(lengths) - lengths
        self.size = len(tokens)
        """V."""
        self._lengths = np.zeros(len(tokens), np.int64)
        self._lengths[ordered] = lengths
        self._begins = np.zeros(len(tokens), np.int64)
        self._begins[ordered] = begins
        self._first, self._last = first, last
        self._ids = torch.tensor(ordered, device=device)
        self._symbols = torch.from_numpy(symbols).to(device)
        self._special_ids = torch.tensor(self.specials, dtype=torch.int64, device=device)

    def targets(self, logits: Tensor, ids: np.ndarray) -> ByteTargets:
        """The probabilities along a text.

        Args:
            logits: [N, V], what the teacher gives before each of the tokens; any constant may be added to a row. Those
                of fp64 give fp64, all others fp32.
            ids: int64 [N], the tokens that follow.
        """
        assert logits.shape == (len(ids), self.size)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        rows = self._lengths[ids] + 1
        token = np.repeat(np.arange(len(ids)), rows)
        depth = np.arange(len(token)) - np.repeat(np.cumsum(rows) - rows, rows)
        place = np.maximum(self._begins[ids][token] + depth - 1, 0)
        first = np.where(depth > 0, self._first[place], 0)
        last = np.where(depth > 0, self._last[place], len(self._ids))
        found = logits.new_full((len(token), END + 1 + len(self.specials)), -torch.inf)
        left = np.ones(len(token), bool)
        for rows in self._alike(depth, first, last):
            self._fill_alike(
                found, logits, rows, token[rows], int(depth[rows[0]]), int(first[rows[0]]), int(last[rows[0]])
            )
            left[rows] = False
        others = np.flatnonzero(left)
        for part in _parts((last - first)[others]):
            own = others[part]
            self._fill(found, logits, own, token[own], depth[own], first[own], last[own])
        begins = torch.from_numpy(depth == 0).to(logits.device)
        found[begins, END + 1 :] = logits[torch.from_numpy(token[depth == 0]).to(logits.device)][:, self._special_ids]
        found -= found.logsumexp(1, keepdim=True)
        goes_on = depth < np.maximum(self._lengths[ids], 1)[token]
        return ByteTargets(found, *(torch.from_numpy(x).to(logits.device) for x in (token, depth, goes_on)))

    def _alike(self, depth: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[np.ndarray]:
        """Rows that are about the same beginning, where together they are about ALIKE tokens or more.

        Most of the work is in few of them: those of no bytes, which are about all tokens, and of a space.
        """
        beginnings = (first * (len(self._ids) + 1) + last) * self._symbols.shape[1] + depth
        _, kinds, counts = np.unique(beginnings, return_inverse=True, return_counts=True)
        order = np.argsort(kinds, kind="stable")
        for stop, count in zip(np.cumsum(counts).tolist(), counts.tolist()):
            rows = order[stop - count : stop]
            if count * (last[rows[0]] - first[rows[0]]) >= ALIKE:
                yield rows

    def _fill_alike(
        self, found: Tensor, logits: Tensor, row: np.ndarray, token: np.ndarray, depth: int, first: int, last: int
    ) -> None:
        """Sums of `ByteTargets.logs` for rows that are all about the tokens ``first`` to ``last``."""
        symbols, sizes = torch.unique_consecutive(self._symbols[first:last, depth].long(), return_counts=True)
        rows, tokens = (torch.from_numpy(x).to(logits.device) for x in (row, token))
        together = max(GATHERED // (last - first), 1)
        for own, asked in zip(rows.split(together), tokens.split(together)):
            values = logits[asked][:, self._ids[first:last]]
            lengths = sizes.repeat(len(own), 1)
            largest = torch.segment_reduce(values, "max", lengths=lengths, axis=1)
            values = (values - largest.repeat_interleave(sizes, 1)).exp_()
            summed = torch.segment_reduce(values, "sum", lengths=lengths, axis=1)
            found[own[:, None], symbols] = summed.log() + largest

    def _fill(
        self,
        found: Tensor,
        logits: Tensor,
        rows_of: np.ndarray,
        token: np.ndarray,
        depth: np.ndarray,
        first: np.ndarray,
        last: np.ndarray,
    ) -> None:
        """The same for the rows ``rows_of``, each about the tokens ``first`` to ``last`` of its own."""
        device, counts = logits.device, last - first
        row = np.repeat(np.arange(len(token)), counts)
        rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
        rows, ranks, tokens, depths, own = (torch.from_numpy(x).to(device) for x in (row, rank, token, depth, rows_of))
        values = logits[tokens[rows], self._ids[ranks]]
        # Tokens with the same next symbol are neighbours: the one that ends here first, and then byte by byte.
        place, sizes = torch.unique_consecutive(
            own[rows] * found.shape[1] + self._symbols[ranks, depths[rows]], return_counts=True
        )
        largest = torch.segment_reduce(values, "max", lengths=sizes)
        summed = torch.segment_reduce((values - largest.repeat_interleave(sizes)).exp(), "sum", lengths=sizes)
        found.view(-1)[place] = summed.log() + largest


def _neighbours(symbols: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each beginning of each token, one byte long to all of it: the range of tokens that begin so.

    ``symbols`` int16 [U, L + 1] in order. Returns two int64 [bytes of all tokens], token by token.
    """
    first, last = np.empty((2, lengths.sum()), np.int64)
    begins = np.cumsum(lengths) - lengths
    alike = np.ones(len(symbols) - 1, bool)
    for length in range(1, symbols.shape[1]):
        alike &= symbols[1:, length - 1] == symbols[:-1, length - 1]
        starts = np.append(0, np.flatnonzero(~alike) + 1)
        group = np.cumsum(np.append(False, ~alike))
        long = lengths >= length
        first[begins[long] + length - 1] = starts[group[long]]
        last[begins[long] + length - 1] = np.append(starts[1:], len(symbols))[group[long]]
    return first, last


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Rows that together gather about GATHERED logits; at least one row each."""
    ends, begin = np.cumsum(counts), 0
    while begin < len(counts):
        before = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + GATHERED, side="right")))
        yield slice(begin, stop)
        begin = stop
