"""Where the keys and values of growing documents lie: the token at position p of a row is in slot p mod S.

Shapes: R rows (documents), S slots a row, A rows that advance, n tokens that each of them takes, U slots in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_ADVANCE = 256
"""Tokens that a row may take at once. A window of W keeps W + LONGEST_ADVANCE - 1 slots, so that the last of these
tokens can be taken back without anything being lost that the first of them sees."""
_EMPTY = 1 << 40  # the position of an unused slot: later than any token, so that causal attention never sees it
_FIRST_CAPACITY = 64  # without a window slots double as documents grow, so that copying them costs O(1) a token


@dataclass(frozen=True)
class Placement:
    """Where one advance puts its tokens, and what they see."""

    rows: Tensor | None
    """int64 [A], the rows that advance; None: all of them."""
    tokens: int
    """n."""
    positions: Tensor
    """int64 [A n], of each token in its document."""
    slots: Tensor
    """int64 [A n], on the flat axis [R S]."""
    used: int
    """U: no slot from this one on is in use."""
    bias: Tensor | None
    """fp32 [A, 1, n, U]: 0 where a token sees a slot, -inf elsewhere. None: every token sees all slots in use."""


class Slots:
    """The slots of R rows for attention with a window of W positions, or over everything so far.

    Positions at or after a row's length are not there, whatever their slots hold: to take tokens back is to shorten.
    """

    def __init__(self, rows: int, window: int | None, device: torch.device) -> None:
        self.window = window
        self.lengths = [0] * rows
        """Tokens so far, by row."""
        capacity = _FIRST_CAPACITY if window is None else window + LONGEST_ADVANCE - 1
        self._positions = torch.full((rows, capacity), _EMPTY, device=device)

    @property
    def capacity(self) -> int:
        """S."""
        return self._positions.shape[1]

    def place(self, tokens: int, rows: Sequence[int] | None = None, since: Tensor | None = None) -> Placement:
        """Slots for the next ``tokens`` of each of ``rows`` (all by default).

        Lengths stay as they are: the tokens are there once `lengths` say so.

        Args:
            since: int64 [A, n], a position before which a token sees nothing.
        """
        assert self.window is None or tokens <= LONGEST_ADVANCE
        device = self._positions.device
        lengths = self.lengths if rows is None else [self.lengths[row] for row in rows]
        self._grow(max(lengths) + tokens)
        # Whole-row placements of one token are what generation does for each byte: no more tensors than they need.
        starts = torch.tensor(lengths, device=device)[:, None]
        positions = starts if tokens == 1 else starts + torch.arange(tokens, device=device)
        slots = positions if self.window is None else positions % self.capacity
        chosen = None if rows is None else torch.tensor(rows, device=device)
        if len(self.lengths) > 1:
            first = torch.arange(len(self.lengths), device=device) if chosen is None else chosen
            slots = slots + first[:, None] * self.capacity
        slots = slots.flatten()
        self._positions.view(-1).index_copy_(0, slots, positions.flatten())
        used = min(self.capacity, max(lengths) + tokens)
        plain = tokens == 1 and since is None and min(lengths) == max(lengths)
        if plain and (self.window is None or used <= self.window):
            return Placement(chosen, tokens, positions.flatten(), slots, used, None)
        held = self._positions if chosen is None else self._positions[chosen]
        distance = positions[:, :, None] - held[:, None, :used]
        hidden = distance < 0
        if self.window is not None:
            hidden |= distance >= self.window
        if since is not None:
            hidden |= held[:, None, :used] < since[:, :, None]
        bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))[:, None]
        return Placement(chosen, tokens, positions.flatten(), slots, used, bias)

    def _grow(self, needed: int) -> None:
        """Twice the slots until ``needed`` fit; a window never needs more."""
        if self.window is None and needed > self.capacity:
            rows, capacity = self._positions.shape
            while capacity < needed:
                capacity *= 2
            grown = self._positions.new_full((rows, capacity), _EMPTY)
            grown[:, : self.capacity] = self._positions
            self._positions = grown

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        self._positions = self._positions[list(rows)]

    @classmethod
    def joined(cls, parts: Sequence["Slots"]) -> "Slots":
        """The rows of all parts, one after another."""
        whole = cls(0, parts[0].window, parts[0]._positions.device)
        largest = max(part.capacity for part in parts)
        for part in parts:
            part._grow(largest)
        whole.lengths = [length for part in parts for length in part.lengths]
        whole._positions = torch.cat([part._positions for part in parts])
        return whole
