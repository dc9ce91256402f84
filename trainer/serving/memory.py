"""What requests may take in memory, worked out from a model's settings before anything is read. Free of torch.

Estimates are upper bounds of what `shared.incremental` keeps: better a request that waits than one that ends the
process. Shapes: R rows, S slots a row, G key/value heads, C head width, D width, V vocabulary.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from shared.io.display.quantities import quantity
from shared.model_settings import AnyModelSettings, BltSettings, EntropyModelSettings, HNetSettings, StoredSettings
from shared.stack_settings import StackSettings

PART = 256
"""Tokens of a prompt that are read at once, LONGEST_ADVANCE of `shared.incremental`."""
FIRST_CAPACITY = 64
"""Slots without a window that there is room for at first; they double."""
POSITION = 8
"""Bytes of the position that a slot holds."""
PROMPT_TOKEN = 16
"""Bytes of a prompt's token before it is read: as JSON, as text, as ids."""
PIECE = 1200
"""Bytes of Python's objects for one byte of text on its way to a client, the JSON that it becomes included."""
SCORED_PIECE = 900
"""More, with its probability; and as much for each likeliest id: in the format of chats these are objects."""


@dataclass(frozen=True)
class Demand:
    """What one prompt asks for."""

    rows: int
    """Texts after it."""
    prompt: int
    """Tokens of the prompt, BOS included."""
    length: int
    """Bytes to write at most."""
    shows_prompt: bool = False
    scores: int | None = None
    """Likeliest ids to report of each byte."""

    @property
    def tokens(self) -> int:
        """Of a row at its longest."""
        return self.prompt + self.length

    @property
    def answer_bytes(self) -> int:
        """Of its answer, until the client has it."""
        shown = self.rows * (self.length + (self.prompt if self.shows_prompt else 0))
        return shown * (PIECE + (0 if self.scores is None else SCORED_PIECE * (1 + self.scores)))


@dataclass(frozen=True)
class StateSize:
    """How large the decoding state of a model is."""

    model: AnyModelSettings
    entropy_model: StoredSettings | None
    width: int
    """Bytes of a number of the model's keys and values."""
    entropy_width: int = 4

    def row_bytes(self, tokens: int) -> int:
        """The state of one row with so many tokens.

        Stacks with a window keep window + PART - 1 slots whatever the length; the global one has a slot for each patch,
        of which there is one a token at most, in a capacity that doubles.
        """
        model = self.model
        if isinstance(model, EntropyModelSettings):
            return _stack_bytes(model, model.window + PART - 1, self.width) + _entropy_bytes(self)
        assert isinstance(model, BltSettings | HNetSettings), "the other kinds do not write"
        local, capacity = model.window + PART - 1, _doubled(tokens)
        stacks = sum(_stack_bytes(stack, local, self.width) for stack in (model.encoder, model.decoder))
        stacks += _stack_bytes(model.global_, capacity, self.width)
        # The bytes of a patch in progress wait for its end, before each cross-attention of the encoder.
        crossing = model.encoder_crosses if isinstance(model, BltSettings) else 0
        pending = 2 * _doubled(tokens + PART) * max(1, crossing) * model.encoder.width * self.width
        return stacks + pending + _entropy_bytes(self)

    def batch_bytes(self, rows: int, tokens: int) -> int:
        """The state of R rows of which the longest has so many tokens: all have the capacity of that one.

        Twice, because there is room for as many rows again before the tensors have to grow; and what choosing a byte
        takes for each row.
        """
        return 2 * rows * self.row_bytes(tokens) + rows * self.model.vocabulary * 16 * POSITION

    def part_bytes(self, tokens: int) -> int:
        """What reading one part of a prompt of so many tokens takes while it is read: scores of attention in fp32, and
        the states of its tokens.
        """
        stacks = [(stack.settings, stack.axis) for stack in self.model.stacks]
        window = self.model.window if isinstance(self.model, EntropyModelSettings | BltSettings | HNetSettings) else 0
        windowed = (window or tokens) + PART - 1
        scores = max(
            PART * (windowed if axis == "tokens" else _doubled(tokens)) * (stack.heads + 2) * 4
            for stack, axis in stacks
        )
        return 2 * scores + max(PART * (8 * stack.width + 3 * stack.hidden) * 4 for stack, _ in stacks)

    def total_bytes(self, demands: Collection[Demand]) -> int:
        """Of all these at once, at their fullest."""
        if not demands:
            return 0
        longest = max(demand.tokens for demand in demands)
        batch = self.batch_bytes(sum(demand.rows for demand in demands), longest)
        # Each prompt is read in a state of its own, which then joins the batch by a copy.
        reading = sum(2 * self.row_bytes(demand.prompt) + PROMPT_TOKEN * demand.prompt for demand in demands)
        answers = sum(demand.answer_bytes for demand in demands)
        return batch + reading + answers + self.part_bytes(max(demand.prompt for demand in demands))


def _doubled(slots: int) -> int:
    """The capacity for so many slots."""
    capacity = FIRST_CAPACITY
    while capacity < slots:
        capacity *= 2
    return capacity


def _stack_bytes(stack: StackSettings, slots: int, width: int) -> int:
    """Keys and values [S, 2, G, C] of each layer, and the positions of the slots."""
    return slots * (stack.layers * 2 * stack.key_value_heads * stack.head_width * width + POSITION)


def _entropy_bytes(size: StateSize) -> int:
    entropy_model = size.entropy_model
    if not isinstance(entropy_model, EntropyModelSettings):
        return PART * POSITION  # none, or a table of counts, which keeps a few tokens
    return _stack_bytes(entropy_model, entropy_model.window + PART - 1, size.entropy_width)


class Budget:
    """Which requests may be written at once."""

    def __init__(self, size: StateSize, memory: int, most_rows: int) -> None:
        """``memory`` in bytes for all requests together, ``most_rows`` of a batch."""
        self.size, self.memory, self.most_rows = size, memory, most_rows

    def fits(self, demands: Collection[Demand]) -> bool:
        """Whether all of these fit at once."""
        rows = sum(demand.rows for demand in demands)
        return rows <= self.most_rows and self.size.total_bytes(demands) <= self.memory

    def objection(self, demand: Demand) -> str | None:
        """Why a request would not even fit alone, with the numbers; None where it does."""
        if demand.rows > self.most_rows:
            return f"n = {demand.rows} texts are more than the {self.most_rows} that are written at once"
        needed = self.size.total_bytes([demand])
        if needed <= self.memory:
            return None
        texts = "" if demand.rows == 1 else f"{demand.rows} texts of "
        return (
            f"{texts}{demand.prompt - 1:,} tokens of prompt and {demand.length:,} bytes to write may take "
            f"{quantity(needed)}B of memory; requests have {quantity(self.memory)}B: shorten the prompt or max_tokens"
        )


MEMORY_INFO = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")


def available_bytes(memory_info: Path = MEMORY_INFO, group: Path = GROUPS) -> int:
    """Memory that this process could still take: what the system has left, or its control group where that is less."""
    found = []
    try:
        line = next(line for line in memory_info.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) << 10)
    except (OSError, StopIteration, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(limit - used)
    except (OSError, ValueError):
        pass  # no limit, or not a group of this kind
    return max(0, min(found))
