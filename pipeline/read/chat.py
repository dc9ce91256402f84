"""Columns to chats: a list of messages, or a prompt and its response, each turn marked by special ids. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.read.values import BadRecord, encoded, kind
from pipeline.settings import ChatSettings
from shared.chat import ANSWERING, Turn, chat_body
from shared.shards.spans import Spans

MESSAGES, PROMPT, RESPONSES = "messages", "prompt", ("response", "completion")
COLUMNS = (MESSAGES, PROMPT, *RESPONSES)
"""That a chat may be in."""
_ASKING = "user"


def chat_of(values: Mapping[str, Any], chat: ChatSettings) -> tuple[bytes, Spans]:
    """The text and the spans of a record. Raises BadRecord with the reason."""
    # A table has all columns in every row; where messages are null beside a prompt, they are not there.
    has_messages = values.get(MESSAGES) is not None or (MESSAGES in values and PROMPT not in values)
    turns = _messages(values[MESSAGES], chat.roles) if has_messages else _pair(values, chat.roles)
    if not any(turn.role in chat.learn for turn in turns):
        raise BadRecord(f"nothing to learn: no turn of the role {' or '.join(chat.learn)}")
    return chat_body(turns, chat.specials, chat.learn)


def chat_problem(names: Sequence[str]) -> str | None:
    """Why a table with these columns has no chats, if it has none."""
    if names.count(MESSAGES) == 1 or (names.count(PROMPT) == 1 and any(names.count(name) == 1 for name in RESPONSES)):
        return None
    return f"no column {MESSAGES!r}, nor {PROMPT!r} with {' or '.join(map(repr, RESPONSES))}"


def _messages(messages: Any, roles: Sequence[str]) -> list[Turn]:
    if not isinstance(messages, list):
        raise BadRecord(f"column {MESSAGES!r} is {kind(messages)}, not an array")
    if not messages:
        raise BadRecord(f"column {MESSAGES!r} is an empty array")
    return [_turn(f"{MESSAGES}[{number}]", message, roles) for number, message in enumerate(messages)]


def _turn(name: str, message: Any, roles: Sequence[str]) -> Turn:
    if not isinstance(message, dict):
        raise BadRecord(f"{name} is {kind(message)}, not an object")
    for key in ("role", "content"):
        if key not in message:
            raise BadRecord(f"{name} has no {key!r}")
    role = message["role"]
    if not isinstance(role, str):
        raise BadRecord(f"{name}: the role is {kind(role)}, not a string")
    if role not in roles:
        raise BadRecord(f"{name} has the unknown role {role[:40]!r}; --roles names {', '.join(roles)}")
    return Turn(role, encoded(f"{name}.content", message["content"]))


def _pair(values: Mapping[str, Any], roles: Sequence[str]) -> list[Turn]:
    problem = chat_problem(list(values))
    if problem is not None:
        raise BadRecord(problem)
    response = next(name for name in RESPONSES if name in values)
    for role in (_ASKING, ANSWERING):
        if role not in roles:
            raise BadRecord(f"a prompt and its response are turns of {_ASKING} and {ANSWERING}; --roles lacks {role}")
    asked, answered = (encoded(f"column {name!r}", values[name]) for name in (PROMPT, response))
    return [Turn(_ASKING, asked), Turn(ANSWERING, answered)]
