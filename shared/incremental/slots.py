"""Where the keys and values of growing documents lie: the token at position p of a row is in slot p mod S.

Shapes: R rows (documents), S slots a row, A rows that advance, n tokens that each of them takes, U slots in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from shared.incremental.rows import RowTensor

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
    _narrower: dict[int, "Placement"] = field(default_factory=dict, init=False, compare=False)
    """Of layers with windows, which several may have alike."""

    def within(self, window: int | None) -> "Placement":
        """The same for a layer that sees ``window`` positions only, where slots are those of the whole document."""
        if window is None or window >= self.used:
            return self
        if window not in self._narrower:
            slots = torch.arange(self.used, device=self.positions.device)
            hidden = self.positions.view(-1, self.tokens)[:, :, None] - slots >= window
            bias = torch.zeros(hidden.shape, device=hidden.device) if self.bias is None else self.bias[:, 0]
            bias = bias.masked_fill(hidden, float("-inf"))[:, None]
            self._narrower[window] = replace(self, bias=bias)
        return self._narrower[window]


class Slots:
    """The slots of R rows for attention with a window of W positions, or over everything so far.

    Positions at or after a row's length are not there, whatever their slots hold: to take tokens back is to shorten.
    """

    def __init__(self, rows: int, window: int | None, device: torch.device) -> None:
        self.window = window
        self.lengths = np.zeros(rows, np.int64)
        """int64 [R], tokens so far; replaced, never written to, so that an old value can be gone back to."""
        capacity = _FIRST_CAPACITY if window is None else window + LONGEST_ADVANCE - 1
        self._positions = RowTensor(torch.full((rows, capacity), _EMPTY, device=device))

    @property
    def capacity(self) -> int:
        """S."""
        return self._positions.rows.shape[1]

    def place(self, tokens: int, rows: np.ndarray | None = None, since: Tensor | None = None) -> Placement:
        """Slots for the next ``tokens`` of each of ``rows`` (int64 [A]; all by default).

        Lengths stay as they are: the tokens are there once `lengths` say so.

        Args:
            since: int64 [A, n], a position before which a token sees nothing.
        """
        assert self.window is None or tokens <= LONGEST_ADVANCE
        lengths = self.lengths if rows is None else self.lengths[rows]
        longest = int(lengths.max()) + tokens
        self._grow(longest)
        held = self._positions.rows
        device = held.device
        # Whole-row placements of one token are what generation does for each byte: no more tensors than they need.
        starts = torch.from_numpy(lengths).to(device)[:, None]
        positions = starts if tokens == 1 else starts + torch.arange(tokens, device=device)
        slots = positions if self.window is None else positions % self.capacity
        chosen = None if rows is None else torch.from_numpy(rows).to(device)
        if len(self.lengths) > 1:
            first = torch.arange(len(self.lengths), device=device) if chosen is None else chosen
            slots = slots + first[:, None] * self.capacity
        slots = slots.flatten()
        held.view(-1).index_copy_(0, slots, positions.flatten())
        used = min(self.capacity, longest)
        plain = tokens == 1 and since is None and int(lengths.min()) + tokens == longest
        if plain and (self.window is None or used <= self.window):
            return Placement(chosen, tokens, positions.flatten(), slots, used, None)
        held = held[:, :used] if chosen is None else held[:, :used].index_select(0, chosen)
        distance = positions[:, :, None] - held[:, None]
        hidden = distance < 0
        if self.window is not None:
            hidden |= distance >= self.window
        if since is not None:
            hidden |= held[:, None] < since[:, :, None]
        bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))[:, None]
        return Placement(chosen, tokens, positions.flatten(), slots, used, bias)

    def _grow(self, needed: int) -> None:
        """Twice the slots until ``needed`` fit; a window never needs more."""
        if self.window is None and needed > self.capacity:
            capacity = self.capacity
            while capacity < needed:
                capacity *= 2
            self._positions.lengthen(capacity, _EMPTY)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self.lengths = self.lengths[list(rows)]
        self._positions.select(rows)

    def append(self, other: "Slots") -> None:
        """The rows of another, after these."""
        self._grow(other.capacity)
        other._grow(self.capacity)
        self.lengths = np.append(self.lengths, other.lengths)
        self._positions.append(other._positions.rows)
