"""What a worker does with a split of prompts: a file of answers, a list of what has none, and last a marker.

OUT/answers/0000012-00003.jsonl.zst  OUT/dead-letters/0000012-00003.jsonl  OUT/splits/0000012-00003.json
"""

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import pyarrow as pa

from infra.batch.answers import Answer, AnswerFormat, AnswerSettings, Prompt, answers
from pipeline.plan import Split, Unit
from pipeline.read import Seen, read_split
from pipeline.records import LONGEST_EXCERPT, DeadLetter, LongText, Record, chunks_of
from pipeline.settings import Job
from pipeline.splits.marker import DEAD_LETTERS, Counts, Ledger, ReadMarker, write_marker
from pipeline.splits.process import Progress, listed
from shared.errors import ConfigError, IdentityError
from shared.io.files.atomic import atomic_file
from shared.io.files.digests import digest, file_sha256
from shared.model_folder.identity import check_model, load_settings
from shared.model_settings import BltSettings
from shared.shards.manifest import Count, NumericsClass, Sha256
from shared.shards.spans import Spans
from shared.text.chat import ANSWERING, END, Turn
from shared.vocabulary import BOS, VOCABULARY_SIZE, byte_tokens
from trainer.commands.generate import as_strings
from trainer.provenance.identity import model_identity

if TYPE_CHECKING:  # these import torch
    from shared.layers.weight_formats import WeightFormat
    from trainer.generation.generator import Generator

ANSWERS = "answers"
SUFFIXES: dict[AnswerFormat, str] = {"jsonl": ".jsonl.zst", "parquet": ".parquet"}
PROBE_TOKENS = 300
"""More than are read at a time."""


# ---- The model, which each worker opens once.


@dataclass(frozen=True)
class AnsweringModel:
    """A model folder for workers, who find it at the same path. Calling it opens it for one of them."""

    folder: Path
    sha256: str
    identity: str
    """Digest of what the folder says of how the model came to be: patching, entropy model, numerics."""
    weights: "WeightFormat"

    @classmethod
    def at(cls, folder: Path, sha256: str, weights: "WeightFormat") -> "AnsweringModel":
        """Raises IdentityError for a folder that is not whole."""
        return cls(folder, sha256, digest(model_identity(folder).model_dump(mode="json")), weights)

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special ids that it knows."""
        settings = load_settings(self.folder)
        return settings.specials if isinstance(settings, BltSettings) else ()

    def __call__(self, job: Job) -> NumericsClass:
        """Open it on the device and with the threads that the job has for a worker.

        Raises IdentityError where another model lies in the folder, ConfigError for a device that is not there.
        """
        check_model(self.folder, self.sha256)
        if AnsweringModel.at(self.folder, self.sha256, self.weights) != self:
            raise IdentityError(f"{self.folder} on {socket.gethostname()} is not the model of this run")
        return _numerics(self.opened(job))

    def opened(self, job: Job) -> "Generator":
        """The model, opened once in each process."""
        import torch

        assert job.output.scoring is not None, "it says what a worker has"
        threads = job.output.scoring.threads
        generator = _generator(self.folder, self.weights, job.output.scoring.device, threads)
        torch.set_num_threads(threads)  # where this is the user's process, others may have changed it meanwhile
        return generator


@lru_cache(maxsize=1)
def _generator(
    folder: Path, weights: "WeightFormat", device: Literal["auto", "cpu", "cuda"], threads: int
) -> "Generator":
    import torch

    from trainer.generation.generator import Generator

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError(f"--device cuda: on {socket.gethostname()} PyTorch finds no GPU; use --device cpu")
    return Generator(folder, "cuda" if there and device != "cpu" else "cpu", threads, weights)


def _numerics(generator: "Generator") -> NumericsClass:
    """The numerics class that a probe finds a model in (law 5): the logits of a fixed text."""
    import numpy as np
    import torch

    from shared.incremental import LONGEST_ADVANCE
    from trainer.generation.settings import GenerateSettings

    text = hashlib.shake_256(b"patchwork probe").digest(PROBE_TOKENS)
    tokens = np.concatenate([np.array([BOS], np.int16), byte_tokens(text)])
    state = hashlib.sha256()
    for found in generator.document(GenerateSettings(length=0)).read_in_parts(tokens):
        state.update(found.logits.float().cpu().numpy().astype("<f4").tobytes())
    cuda = generator.device.type == "cuda"
    hardware = torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability()
    return NumericsClass(
        device=f"{generator.device.type} {hardware}",
        dtype=generator.dtype,
        torch=torch.__version__,
        attention="incremental",
        stream_length=LONGEST_ADVANCE,
        threads=torch.get_num_threads(),
        probe=state.hexdigest(),
    )


# ---- A split.


class AnswersMarker(ReadMarker, extra="forbid"):
    """The marker of a split whose prompts are answered."""

    sha256: Sha256 | None
    """Of its file of answers; None where there is none, since no prompt has one."""
    size: Count
    """Bytes of that file."""
    patches: Count
    written: Count
    """Bytes of text in the answers."""
    ended: dict[str, Count]
    """How many answers ended why."""

    def path(self, out: Path, form: AnswerFormat) -> Path:
        return answers_path(out, self.split, form)


def answers_path(out: Path, split: str, form: AnswerFormat) -> Path:
    return out / ANSWERS / f"{split}{SUFFIXES[form]}"


@dataclass(frozen=True)
class AnswerSplit:
    """Answers the prompts of one split and leaves a marker; a worker's process gets it with each task."""

    model: AnsweringModel
    settings: AnswerSettings

    def __call__(self, job: Job, split: Unit, run: str, progress: Progress) -> None:
        """Raises PipelineError or DatasetError when the input is not what was planned."""
        assert isinstance(split, Split)
        path = answers_path(job.out, split.name, self.settings.format)
        written = patches = 0
        ended = Counter[str]()
        with ExitStack() as stack:
            ledger = Ledger(job.out / DEAD_LETTERS / f"{split.name}.jsonl", stack)
            prompts = Prompts(job, split, ledger, self.settings.longest_prompt, self.model.specials, progress)
            file = stack.enter_context(answer_file(path, self.settings.format))
            for answer in answers(self.model.opened(job), iter(prompts), self.settings):
                file.add(answer)
                written, patches = written + len(answer.text), patches + answer.patches
                ended[str(answer.ended)] += 1
                progress(answer.size)
        marker = AnswersMarker(
            split=split.name,
            run=run,
            content=prompts.seen.sha256,
            lines=prompts.seen.lines,
            counts=prompts.counts(),
            sha256=file_sha256(path) if ended else None,
            size=path.stat().st_size if ended else 0,
            written=written,
            patches=patches,
            ended=dict(sorted(ended.items())),
        )
        write_marker(job.out, marker)


class Prompts:
    """The prompts of a split, in order; what is none is counted and listed."""

    def __init__(
        self, job: Job, split: Split, ledger: Ledger, longest: int, specials: tuple[str, ...], progress: Progress
    ) -> None:
        """``longest``: bytes of a prompt; ``specials``: names of the special ids of the model."""
        self._split, self._reading, self._ledger, self._progress = split, job.reading, ledger, progress
        self._longest, self._specials = longest, specials
        self.seen = Seen()
        """What was read so far."""
        self._counts = dict.fromkeys(Counts.model_fields, 0)

    def __iter__(self) -> Iterator[Prompt]:
        for found in read_split(self._split, self._reading, self.seen):
            if isinstance(found, DeadLetter):
                self._lose(found)
                continue
            for record in found:
                problem = self._problem(record)
                if problem is not None:
                    self._lose(letter_of(record, problem))
                    continue
                self._counts["records"] += 1
                self._counts["documents"] += 1
                self._counts["document_bytes"] += len(record.text)
                self._counts["without_id"] += "id" in record.lacks
                self._counts["replaced"] += record.replaced
                yield Prompt(record.id, _place(record), self._asked(record), record.size)

    def counts(self) -> Counts:
        """Prompts that are answered are its documents."""
        return Counts(**self._counts)

    def _problem(self, record: Record) -> str | None:
        """Why a record cannot be answered."""
        if len(record.text) > self._longest:
            return f"the prompt has {len(record.text):,} bytes; --longest-prompt is {self._longest:,}"
        if (record.spans is None) != (self._reading.chat is None):
            return "a text of a dataset, not a chat; leave out --chat" if record.spans is None else "a chat; add --chat"
        if record.spans is not None and self._turns(record)[-1].role == ANSWERING:
            return f"the last turn is of the role {ANSWERING}: there is nothing to answer"
        return None

    def _asked(self, record: Record) -> bytes | list[Turn]:
        return b"".join(chunks_of(record.text)) if record.spans is None else self._turns(record)

    def _turns(self, record: Record) -> list[Turn]:
        assert record.spans is not None
        return turns_of(b"".join(chunks_of(record.text)), record.spans, self._specials)

    def _lose(self, letter: DeadLetter) -> None:
        self._ledger.add(listed(self._split, letter.as_json()))
        self._counts["records"] += letter.records
        self._counts["dead"] += letter.records
        self._progress(letter.size)


def turns_of(text: bytes, spans: Spans, specials: tuple[str, ...]) -> list[Turn]:
    """The turns of a chat from its text and spans, as `shared.text.chat` makes these of turns."""
    ends, ids = spans.ends.tolist(), spans.specials.tolist()
    names = [specials[number - VOCABULARY_SIZE] for number in ids]
    assert names[1::2] == [END] * (len(ids) // 2), "each turn begins and ends with a special id"
    return [Turn(role, text[begin:end]) for role, begin, end in zip(names[::2], ends[::2], ends[1::2])]


def letter_of(record: Record, reason: str) -> DeadLetter:
    """The dead letter of a record that was read, and is not used."""
    text = record.text
    sha256 = text.sha256 if isinstance(text, LongText) else hashlib.sha256(text).digest()
    return DeadLetter(record.place, reason, len(text), sha256.hex(), next(chunks_of(text), b"")[:LONGEST_EXCERPT])


def _place(record: Record) -> dict[str, Any]:
    """The file and where in it. Not by line: those before a split are not known while it is done."""
    return {key: value for key, value in asdict(record.place).items() if key != "line" and value is not None}


# ---- The file of answers.

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (
            "prompt",
            pa.struct([("path", pa.string()), ("offset", pa.int64()), ("row", pa.int64()), ("member", pa.string())]),
        ),
        ("text", pa.string()),
        ("text_hex", pa.string()),
        ("ended", pa.string()),
        ("bytes", pa.int64()),
        ("patches", pa.int64()),
    ]
)
ROWS_TOGETHER, BYTES_TOGETHER = 2**12, 2**20
"""Answers, and bytes of them, that are held before they are written."""


def as_plain(answer: Answer) -> dict[str, Any]:
    """An answer as plain values."""
    return {
        "id": answer.id,
        "prompt": answer.place,
        **as_strings("text", bytes(answer.text)),
        "ended": answer.ended,
        "bytes": len(answer.text),
        "patches": answer.patches,
    }


@contextmanager
def answer_file(path: Path, form: AnswerFormat) -> Iterator["AnswerFile"]:
    """A file of answers, jsonl.zst or Parquet: not there without an answer, and never half of it."""
    with ExitStack() as stack:
        file = AnswerFile(path, form, stack)
        yield file
        file.flush()


class AnswerFile:
    """Takes answers, and writes some at a time."""

    def __init__(self, path: Path, form: AnswerFormat, stack: ExitStack) -> None:
        self._path, self._form, self._stack = path, form, stack
        self._rows: list[dict[str, Any]] = []
        self._held = 0
        self._write: Callable[[list[dict[str, Any]]], object] | None = None

    def add(self, answer: Answer) -> None:
        self._rows.append(as_plain(answer))
        self._held += len(answer.text)
        if len(self._rows) >= ROWS_TOGETHER or self._held >= BYTES_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            self._write = self._write or self._opened(self._stack.enter_context(atomic_file(self._path)))
            self._write(self._rows)
        self._rows, self._held = [], 0

    def _opened(self, file: IO[bytes]) -> Callable[[list[dict[str, Any]]], object]:
        """What writes some rows."""
        if self._form == "parquet":
            from pyarrow.parquet import ParquetWriter

            table = ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True)
            self._stack.enter_context(table)
            return lambda rows: table.write_table(pa.Table.from_pylist(rows, SCHEMA))
        import zstandard

        packed = zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False)
        self._stack.enter_context(packed)
        return lambda rows: packed.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
