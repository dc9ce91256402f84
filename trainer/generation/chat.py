"""Chats as prompts: turns from the command line or a file of messages, and what a model needs to answer them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.io.files.json_reader import read_json
from shared.text.chat import ANSWERING, END, Turn
from shared.vocabulary import special_id

MOST_BYTES = 16 << 20
"""Of a file of messages."""


def end_of_turn(turns: Sequence[Turn], specials: Sequence[str], where: Path) -> int:
    """The special id that ends the answer. Raises ConfigError when the model does not know all that a chat needs."""
    for role in (ANSWERING, END, *(turn.role for turn in turns)):
        if role not in specials:
            has = ", ".join(specials) or "those of every model"
            raise ConfigError(
                f"{where} was not fine-tuned on such chats: it has no special id {role!r}, only {has}; "
                "docs/finetuning.md says how"
            )
    return special_id(END, specials)


def read_messages(path: Path) -> list[Turn]:
    """The turns in a JSON file of [{"role", "content"}, ...]. Raises ConfigError that says what is wrong."""
    try:
        messages: Any = read_json(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"--messages {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--messages {path} is not JSON: {error}") from None
    if not isinstance(messages, list):
        raise ConfigError(f"--messages {path}: give a list of {{role, content}}")
    turns = []
    for number, message in enumerate(messages):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if not (isinstance(role, str) and isinstance(content, str)):
            raise ConfigError(f"--messages {path}: number {number} is not {{role, content}} with strings")
        try:
            turns.append(Turn(role, content.encode()))
        except UnicodeEncodeError:
            raise ConfigError(f"--messages {path}: number {number} has a lone surrogate") from None
    return turns
