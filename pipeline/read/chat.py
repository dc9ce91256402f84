"""Columns to chats: a list of messages, or a prompt and its response, each turn marked by special ids. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.read.values import BadRecord, encoded, kind
from pipeline.settings import ChatSettings
from shared.io.files.digests import canonical_json
from shared.shards.spans import Spans
from shared.text.chat import ANSWERING, Turn, chat_body

MESSAGES, CONVERSATIONS, PROMPT, RESPONSES = "messages", "conversations", "prompt", ("response", "completion")
COLUMNS = (MESSAGES, CONVERSATIONS, PROMPT, *RESPONSES)
"""That a chat may be in."""
_ASKING = "user"
_KEYS = (("role", "content"), ("from", "value"))
"""Of a message: as in most data, and as in ShareGPT."""
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
    **dict.fromkeys(("function", "function_response", "observation", "ipython"), "tool"),
}
_READ_AS = {"tool": _ASKING}
"""Where --roles does not name a role, what stands for it: what a tool answers is asked of the assistant."""


def chat_of(values: Mapping[str, Any], chat: ChatSettings) -> tuple[bytes, Spans]:
    """The text and the spans of a record. Raises BadRecord with the reason."""
    # A table has all columns in every row; where messages are null beside a prompt, they are not there.
    lists = [name for name in (MESSAGES, CONVERSATIONS) if name in values]
    column = next((name for name in lists if values[name] is not None), None)
    if column is None and PROMPT not in values:
        column = next(iter(lists), None)
    turns = _pair(values, chat.roles) if column is None else _messages(column, values[column], chat.roles)
    if not any(turn.role in chat.learn for turn in turns):
        raise BadRecord(f"nothing to learn: no turn of the role {' or '.join(chat.learn)}")
    return chat_body(turns, chat.specials, chat.learn)


def chat_problem(names: Sequence[str]) -> str | None:
    """Why a table with these columns has no chats, if it has none."""
    has_list = any(names.count(name) == 1 for name in (MESSAGES, CONVERSATIONS))
    if has_list or (names.count(PROMPT) == 1 and any(names.count(name) == 1 for name in RESPONSES)):
        return None
    return f"no column {MESSAGES!r} or {CONVERSATIONS!r}, nor {PROMPT!r} with {' or '.join(map(repr, RESPONSES))}"


def _messages(column: str, messages: Any, roles: Sequence[str]) -> list[Turn]:
    if not isinstance(messages, list):
        raise BadRecord(f"column {column!r} is {kind(messages)}, not an array")
    if not messages:
        raise BadRecord(f"column {column!r} is an empty array")
    return [_turn(f"{column}[{number}]", message, roles) for number, message in enumerate(messages)]


def _turn(name: str, message: Any, roles: Sequence[str]) -> Turn:
    if not isinstance(message, dict):
        raise BadRecord(f"{name} is {kind(message)}, not an object")
    role_key, content_key = next((keys for keys in _KEYS if message.get(keys[0]) is not None), _KEYS[0])
    for key in (role_key, content_key):
        if key not in message and not (key == content_key and message.get("tool_calls")):
            raise BadRecord(f"{name} has no {key!r}")
    role = message[role_key]
    if not isinstance(role, str):
        raise BadRecord(f"{name}: the role is {kind(role)}, not a string")
    return Turn(_known(name, role, roles), _content(f"{name}.{content_key}", message, content_key))


def _known(name: str, given: str, roles: Sequence[str]) -> str:
    """The role among those of --roles that a message's own word for it means."""
    role = given if given in roles else _OTHER_NAMES.get(given, given)
    role = role if role in roles else _READ_AS.get(role, role)
    if role not in roles:
        raise BadRecord(f"{name} has the unknown role {given[:40]!r}; --roles names {', '.join(roles)}")
    return role


def _content(name: str, message: Mapping[str, Any], key: str) -> bytes:
    """What a message says: a string, or the texts of a list of parts; the calls of tools after it, as JSON."""
    content, calls = message.get(key), message.get("tool_calls")
    if isinstance(content, list):
        text = b"".join(_part(f"{name}[{number}]", part) for number, part in enumerate(content))
    else:
        text = b"" if content is None and calls else encoded(name, content)
    if not calls:
        return text
    try:
        written = canonical_json(calls).encode()
    except (TypeError, ValueError, RecursionError):
        raise BadRecord(f"{name}: its tool_calls have no form in JSON") from None
    return text + (b"\n" if text else b"") + written


def _part(name: str, part: Any) -> bytes:
    if isinstance(part, str):
        return encoded(name, part)
    if not isinstance(part, dict):
        raise BadRecord(f"{name} is {kind(part)}, not an object")
    if part.get("text") is None or part.get("type", "text") not in ("text", "input_text", "output_text"):
        raise BadRecord(f"{name} is a part of the type {str(part.get('type'))[:40]!r}, not text")
    return encoded(f"{name}.text", part["text"])


def _pair(values: Mapping[str, Any], roles: Sequence[str]) -> list[Turn]:
    problem = chat_problem(list(values))
    if problem is not None:
        raise BadRecord(problem)
    response = next(name for name in RESPONSES if name in values)
    for role in (_ASKING, ANSWERING):
        if role not in roles:
            raise BadRecord(f"a prompt and its response are turns of {_ASKING} and {ANSWERING}; --roles lacks {role}")
    prompt, answer = (encoded(f"column {name!r}", values[name]) for name in (PROMPT, response))
    return [Turn(_ASKING, prompt), Turn(ANSWERING, answer)]
