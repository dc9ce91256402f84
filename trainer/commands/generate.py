"""Text from a model folder.

Example:
  python -m trainer generate runs/stdlib/blt --prompt 'def ' --bytes 300
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from shared.errors import ConfigError, ExitCode
from shared.io.display.log import LOG
from shared.io.display.terminal import unfiltered
from shared.io.files.json_reader import read_at_most
from shared.text.chat import Turn
from trainer.commands.running import add_model, add_running, add_subset, add_weights, chosen_subset, running_model
from trainer.generation.chat import read_messages
from trainer.generation.piece import Ending, Piece, Statistics
from trainer.generation.settings import GenerateSettings
from trainer.generation.text import RESET, PatchStyle, text_of

# ---- What the generate command prints: texts one after another, an object for each, and a summary.


def in_turn(pieces: Iterator[tuple[int, Piece]], rows: int) -> Iterator[Iterator[Piece]]:
    """The pieces of each row of a batch, row after row, from pieces of rows that grow side by side.

    Those of the first row come as they are written; those of the others wait. Each row is to be read to its end before
    the next is asked for.
    """
    waiting: list[list[Piece]] = [[] for _ in range(rows)]

    def first() -> Iterator[Piece]:
        for row, piece in pieces:
            if row == 0:
                yield piece
            else:
                waiting[row].append(piece)

    yield first()
    yield from map(iter, waiting[1:])


def json_line(pieces: Iterable[Piece], ended: Ending | None) -> str:
    """One text as a JSON object on one line.

    ``prompt`` and ``text`` (what was written after it) are strings; where one is not UTF-8 its bytes are beside it in
    hex, as ``prompt_hex`` or ``text_hex``. ``starts`` and ``entropy`` (nats, null where there is none) go by byte and
    special id, those of the prompt first; ``specials`` says which of them are special ids: [place, name], if any.
    """
    pieces = list(pieces)
    prompt = b"".join(piece.byte for piece in pieces if piece.from_prompt)
    text = b"".join(piece.byte for piece in pieces if not piece.from_prompt)
    specials = [[place, piece.special] for place, piece in enumerate(pieces) if piece.special is not None]
    return json.dumps(
        {
            **as_strings("prompt", prompt),
            **as_strings("text", text),
            "ended": ended,
            "starts": [piece.starts for piece in pieces],
            "entropy": [_nats(piece.entropy) for piece in pieces],
            **({"specials": specials} if specials else {}),
        },
        ensure_ascii=False,
        allow_nan=False,
    )


def as_strings(name: str, data: bytes) -> dict[str, str]:
    """Bytes for JSON: under their name as text, and where they are not UTF-8 in hex as well."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: data.decode("utf-8", "replace"), f"{name}_hex": data.hex()}


def _nats(entropy: float | None) -> float | None:
    # fp32 has seven digits, and an entropy up to 5.6: more digits than these would be noise.
    return None if entropy is None or not math.isfinite(entropy) else round(entropy, 6)


def summary(statistics: Statistics, endings: Sequence[Ending | None], seconds: float) -> str:
    """One line: how much was written, how fast, and how often the global model ran."""
    parts = [f"{statistics.bytes:,} bytes", f"{statistics.bytes / max(seconds, 1e-9):,.1f} bytes/s"]
    if statistics.patches:
        parts += [
            f"{statistics.patches:,} patches",
            f"{statistics.bytes / statistics.patches:.2f} bytes a patch",
            f"{statistics.global_forwards:,} global forwards",
        ]
    if statistics.acceptance is not None:
        parts.append(f"{statistics.acceptance:.1%} of {statistics.drafted:,} drafted bytes accepted")
    reasons = [f"{endings.count(ending)} {ending}" for ending in dict.fromkeys(endings)]
    return f"{', '.join(parts)}; ended: {endings[0] if len(endings) == 1 else ', '.join(reasons)}"


MOST_PROMPT_BYTES = 64 << 20
"""Limit of --prompt-file: a pipe or /dev/zero may never end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of generate."""
    add_model(parser)
    prompts = parser.add_argument_group("what to go on from; several prompts are one batch, each row as if alone")
    prompts.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a text (default: an empty one)")
    prompts.add_argument(
        "--prompt-file", type=Path, action="append", default=[], metavar="PATH", help="the bytes of a file, any bytes"
    )
    chat = parser.add_argument_group("a chat instead, for a model that was fine-tuned on chats; its answer is printed")
    chat.add_argument("--chat", action="store_true", help="answer what --system and --user say, or each --messages")
    chat.add_argument("--system", metavar="TEXT", help="system message before the chat")
    chat.add_argument("--user", metavar="TEXT", help="user message to answer")
    chat.add_argument(
        "--messages",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json",
        help="a chat so far, of any turns: a list of {role, content}; several files are one batch",
    )
    add_writing(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--show-patches",
        action="store_true",
        help="colour the patches; where there is no terminal, or NO_COLOR is set, set them apart by |",
    )
    shown.add_argument(
        "--json", action="store_true", help="an object for each prompt: texts, starts and entropy of each byte"
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """How to go on from a prompt (`settings_from`), and what the model runs on."""
    writing = parser.add_argument_group("what to write")
    writing.add_argument("--bytes", type=int, default=200, metavar="N", help="bytes at most")
    writing.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest byte")
    writing.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest bytes only")
    writing.add_argument("--top-p", type=float, metavar="P", help="only the likeliest bytes that together reach P")
    writing.add_argument("--min-p", type=float, metavar="P", help="only bytes at least P times as probable as the best")
    writing.add_argument("--seed", type=int, default=0, help="same seed, same text")
    writing.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end before this text (repeatable); \n, \t, \r, \\ and \xHH stand for what they do in Python",
    )
    writing.add_argument(
        "--utf8", action="store_true", help="write well-formed UTF-8 only, ending with a whole character"
    )
    patching = parser.add_argument_group("where patches begin, and how they are computed")
    add_subset(patching)
    patching.add_argument("--theta", type=float, help="a patching threshold in nats instead of the recorded one")
    patching.add_argument(
        "--draft",
        type=int,
        default=0,
        metavar="K",
        help="let the local decoder draft K bytes at a time, checked by the full model",
    )
    add_running(patching)
    add_weights(patching)


def run(arguments: argparse.Namespace) -> int:
    """Write to standard output as the bytes come, and a summary to standard error; returns the exit code."""
    settings = settings_from(arguments)
    prompts = prompts_from(arguments)

    from trainer.generation.generator import Generator

    with running_model(arguments) as running:
        chosen_subset(running.model, arguments.subset, arguments.theta)
        generator = Generator(running.model, running.device, running.threads, arguments.weights)
    out = unfiltered(sys.stdout)  # a file or pipe gets the text as it is; a terminal must not obey escapes in it
    # typing.TextIO has no reconfigure; the streams that can be here have it.
    out.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[attr-defined]
    began = time.perf_counter()
    rows = in_turn(generator.write_batch(prompts, settings), len(prompts))
    if arguments.json:
        # To the end first: how a text ended is known only then.
        texts = [list(pieces) for pieces in rows]
        for pieces, ended in zip(texts, generator.ended):
            (sys.stdout if out.isatty() else out).write(f"{json_line(pieces, ended)}\n")
    elif not print_texts(rows, len(prompts), arguments.show_patches, answers=arguments.chat):
        return ExitCode.INTERRUPTED
    LOG.info("%s", summary(generator.statistics, generator.ended, time.perf_counter() - began))
    return 0


def prompts_from(arguments: argparse.Namespace) -> list[bytes | Sequence[Turn]]:
    """The texts or chats that the options mean. Raises ConfigError for options that do not go together."""
    # Python has surrogates for bytes of an argument that are not UTF-8; fsencode turns them back into what was typed.
    texts: list[bytes | Sequence[Turn]] = [os.fsencode(text) for text in arguments.prompt]
    texts += [prompt_in(path) for path in arguments.prompt_file]
    by_role = {"system": arguments.system, "user": arguments.user}
    turns = [Turn(role, os.fsencode(text)) for role, text in by_role.items() if text is not None]
    if not arguments.chat:
        if turns or arguments.messages:
            raise ConfigError("--system, --user and --messages are for --chat")
        return texts or [b""]
    if texts:
        raise ConfigError("--chat answers --user or --messages; --prompt and --prompt-file go on from a text")
    # Exactly one of --user and --messages, and --system only with --user.
    if bool(arguments.user is not None) == bool(arguments.messages) or (turns and arguments.messages):
        raise ConfigError("--chat needs what is asked: --user TEXT (and --system TEXT), or --messages FILE.json")
    return [turns] if turns else [read_messages(path) for path in arguments.messages]


def prompt_in(path: Path) -> bytes:
    """The content of a file or a pipe. Raises ConfigError that names it."""
    try:
        with path.open("rb") as file:
            text = read_at_most(file, MOST_PROMPT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--prompt-file {path}: {error.strerror}") from None
    if len(text) > MOST_PROMPT_BYTES:
        raise ConfigError(f"--prompt-file {path}: larger than {MOST_PROMPT_BYTES:,} bytes")
    return text


def settings_from(arguments: argparse.Namespace) -> GenerateSettings:
    """The settings that the options mean. Raises ConfigError that names the option."""
    given = vars(arguments)
    values = {name: given[name] for name in ("subset", "theta", "utf8", "draft")}
    values["length"] = arguments.bytes
    values["sampling"] = {name: given[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
    values["stop"] = tuple(unescaped(os.fsencode(text)) for text in arguments.stop)
    try:
        return GenerateSettings.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        # Numbers in the path are places in a tuple (--stop); the last name is that of the option.
        key = [str(part) for part in problem["loc"] if isinstance(part, str)][-1]
        option = {"length": "bytes"}.get(key, key).replace("_", "-")
        raise ConfigError(f"--{option}: {problem['msg']} (got {problem['input']!r})") from None


def unescaped(text: bytes) -> bytes:
    r"""The bytes that a text with the escapes \n, \t, \r, \\ and \xHH means. Raises ConfigError for any other."""

    def meant(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code.startswith(b"x") and len(code) == 3:
            return bytes.fromhex(code[1:].decode())
        if code not in _ESCAPES:
            raise ConfigError(f"--stop: {os.fsdecode(match[0])} means nothing; write \\\\ for a backslash")
        return _ESCAPES[code]

    # "." catches every other escape and "$" a backslash at the end: both are refused rather than left as they are.
    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.|$)", meant, text, flags=re.DOTALL)


_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}


def print_texts(rows: Iterator[Iterator[Piece]], count: int, show_patches: bool, answers: bool = False) -> bool:
    """Texts as they come, below a heading where there are several; False when the user has interrupted it.

    ``answers``: prompts are left out, unless patches are shown.
    """
    out = unfiltered(sys.stdout)
    terminal = out.isatty()
    coloured = show_patches and terminal and not os.environ.get("NO_COLOR")
    style: PatchStyle = "none" if not show_patches else "colours" if coloured else "marks"
    try:
        for number, pieces in enumerate(rows, 1):
            if count > 1:
                out.write(f"== prompt {number} of {count}\n")
            shown = (piece for piece in pieces if show_patches or not (answers and piece.from_prompt))
            for text in text_of(shown, style, terminal):
                out.write(text)
                out.flush()
            out.write("\n")
    except KeyboardInterrupt:
        out.write((RESET if coloured else "") + "\n")  # it may have come within a coloured patch
        return False
    return True
