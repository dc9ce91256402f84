"""What the generate command prints: texts one after another, an object for each, and a summary."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainer.generation.piece import Ending, Piece, Statistics


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
            **_string("prompt", prompt),
            **_string("text", text),
            "ended": ended,
            "starts": [piece.starts for piece in pieces],
            "entropy": [_nats(piece.entropy) for piece in pieces],
            **({"specials": specials} if specials else {}),
        },
        ensure_ascii=False,
        allow_nan=False,
    )


def _string(name: str, data: bytes) -> dict[str, Any]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: data.decode("utf-8", "replace"), f"{name}_hex": data.hex()}


def _nats(entropy: float | None) -> float | None:
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
