"""The template of chats: a turn is the special id of its role, its content, and the special id that ends turns.

[BOS, <user>, content, <end>, <assistant>, content, <end>, EOS]. To write an answer is to go on after <assistant> until
<end> comes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from shared.shards.spans import Spans, spans_of
from shared.vocabulary import BOS, special_id

END = "end"
"""The name of the special id that ends every turn."""
ROLES = ("system", "user", "assistant")
ANSWERING = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: str
    content: bytes


def chat_body(turns: Sequence[Turn], specials: Sequence[str], target_roles: Collection[str]) -> tuple[bytes, Spans]:
    """The text of a chat, all contents one after the other, and its spans.

    Contents of the roles in ``target_roles`` are targets, and the ends of these turns; the ids that begin turns are
    none.
    """
    values: list[tuple[int, int | None, bool]] = []
    size = 0
    for turn in turns:
        values.append((size, special_id(turn.role, specials), False))
        size += len(turn.content)
        values.append((size, special_id(END, specials), turn.role in target_roles))
    return b"".join(turn.content for turn in turns), spans_of(values)


def prompt_tokens(turns: Sequence[Turn], specials: Sequence[str], role: str = ANSWERING) -> np.ndarray:
    """int16: a chat so far, up to the special id with which the turn of ``role`` begins.

    Raises ValueError for a role that the special ids do not name.
    """
    begins = np.array([special_id(role, specials)], np.int16)
    if not turns:
        return np.concatenate([np.array([BOS], np.int16), begins])
    text, spans = chat_body(turns, specials, ())
    return np.concatenate([np.array([BOS], np.int16), spans.tokens(text), begins])
