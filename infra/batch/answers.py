"""A model over many prompts: rows are written side by side, and a new prompt joins when one has ended.

What is written follows from the prompts in their order and the settings alone, in one numerics class: who works, how
many others do, and how often it was begun is nothing to it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from shared.randomness import stream_key
from shared.settings import Settings
from shared.text.chat import Turn
from trainer.generation.piece import Ending, Piece
from trainer.generation.settings import GenerateSettings

if TYPE_CHECKING:  # it imports torch
    from trainer.generation.generator import Generator
    from trainer.generation.row import Row

AnswerFormat = Literal["jsonl", "parquet"]
WAITING: Final = 64
"""Answers for each row of the batch that may wait for an earlier one which is longer: enough that rows are rarely idle,
and few enough that they are nothing beside the state of a row."""


class AnswerSettings(Settings):
    """What decides the answer to a prompt, beside model and prompt."""

    generate: GenerateSettings
    rows: int = Field(default=16, gt=0, le=4096)
    """Prompts that are answered side by side. Part of the identity: a row's sums may be rounded by its neighbours."""
    longest_prompt: int = Field(default=2**16, gt=0, le=2**24)
    """Bytes; a longer prompt is a dead letter. With ``rows`` it bounds the memory of a worker."""
    format: AnswerFormat = "jsonl"
    """Of the files that answers are written to."""

    def identity(self) -> dict[str, Any]:
        """As JSON; stop strings are bytes of any kind."""
        plain = self.model_dump(mode="json", exclude={"generate": {"stop"}})
        plain["generate"]["stop"] = [repr(text)[2:-1] for text in self.generate.stop]
        return plain


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and where it came from."""

    id: str
    place: dict[str, Any]
    """File, and where in it."""
    asked: bytes | Sequence[Turn]
    """A text to go on from, or a chat to answer."""
    size: int
    """Bytes that it took in the input."""


@dataclass(slots=True)
class Answer:
    """What was written after a prompt, without that: many may wait."""

    id: str
    place: dict[str, Any]
    size: int
    """All three of the prompt."""
    ended: Ending | None = None
    """None while it is written."""
    patches: int = 0
    """That began with a written byte."""
    text: bytearray = field(default_factory=bytearray)

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.text += piece.byte
            self.patches += piece.starts


def seed_of(seed: int, record: str) -> int:
    """The seed that a record's bytes are drawn with, from that of the run and the record's id."""
    return int(stream_key("batch_generate", seed, record))


def answers(generator: "Generator", prompts: Iterator[Prompt], settings: AnswerSettings) -> Iterator[Answer]:
    """An answer for each prompt, in the order of the prompts; no more prompts are taken than are needed for that.

    Raises ConfigError for settings that the model cannot follow.
    """
    from trainer.generation.batch import Prompt as Reading

    generate = settings.generate
    generator.require_draft(generate)
    batch = generator.batch()
    written: dict[Row, Answer] = {}
    waiting = deque[Answer]()
    """Those that are not handed out yet; the first is still written, unless it has just ended."""
    left = True
    while left or waiting:
        while left and len(batch.rows) < settings.rows and len(waiting) < WAITING * settings.rows:
            prompt = next(prompts, None)
            if prompt is None:
                left = False
                break
            sampling = generate.sampling.model_copy(update={"seed": seed_of(generate.sampling.seed, prompt.id)})
            own = generate.model_copy(update={"sampling": sampling})
            row = generator.row(prompt.asked, own)
            waiting.append(answer := Answer(prompt.id, prompt.place, prompt.size, row.ended))
            if row.ended is None:
                reading = Reading(row, generator.document(own))
                while not reading.done:
                    reading.advance()
                batch.join(reading)
                written[row] = answer
        for row, pieces in batch.step(generate.draft) if batch.rows else ():
            written[row].add(pieces)
            if row.ended is not None:
                written.pop(row).ended = row.ended
        while waiting and waiting[0].ended is not None:
            yield waiting.popleft()
