"""What generation hands out: one byte at a time, why a text ended, and what was counted."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Ending = Literal["length", "end of document", "end of turn", "stop"]
"""Why a text ended: as long as was asked for, by EOS, by the special id that ends a turn, or before a stop string."""


class TokenScore(NamedTuple):
    """What the model thought of a token before it was there, whatever temperature and filters made of it."""

    logprob: float
    """Nats: ln of its probability among all ids."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest ids in its place, with theirs, best first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One byte of text, or one named special id, with what the patching thought of it."""

    byte: bytes
    """Exactly one; empty for a special id."""
    starts: bool
    """Whether a patch begins with it; never for models without patches."""
    entropy: float | None = None
    """Nats: how uncertain the entropy model was about this byte; None for rules without one."""
    from_prompt: bool = False
    special: str | None = None
    """The name of a special id."""
    score: TokenScore | None = None
    """Where ``GenerateSettings.logprobs`` asks for it."""


@dataclass
class Statistics:
    """Counts of one call, over all its rows. Those of what was written leave the prompts out."""

    bytes: int = 0
    """Written, with those of a stop string."""
    patches: int = 0
    """That began with a written byte."""
    global_forwards: int = 0
    """Patches that the global model read in order to write."""
    drafted: int = 0
    """Tokens that were proposed ahead of the full model."""
    accepted: int = 0
    """Of these, the ones that the full model would have written too."""

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that was accepted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None
