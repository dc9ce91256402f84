"""What decides a table of counts, besides the text."""

from pydantic import Field

from shared.counts.contexts import HIGHEST_ORDER
from shared.settings import Settings


class CountingSettings(Settings):
    """What decides the table, besides the text."""

    order: int = Field(default=5, ge=1, le=HIGHEST_ORDER)
    """Elements of a context at most."""
    contexts: int = Field(default=2**22, ge=1, le=2**32)
    """How many are kept at most, those of the most pieces first."""
    least: int = Field(default=5, ge=1)
    """Pieces that a context must be in to be kept."""
    newline_reset: bool = False
    """A newline opens a new context: nothing before it is seen after it."""
