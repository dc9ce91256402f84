"""One thread owns a model and writes all requests in one batch, which they join and leave between bytes.

Whoever asks does so from another thread: `Engine.submit` puts jobs into a bounded queue, `Engine.cancel` takes them
back, and what is written comes as events in the asyncio loop of the one who asked.
"""

import asyncio
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Thread

import numpy as np
import torch

from shared.errors import PatchworkError
from shared.io.display.log import LOG
from shared.layers.blocks import compute_dtype
from shared.model_settings import specials_of
from shared.text.chat import Turn
from trainer.errors import LogitsError
from trainer.generation.batch import Batch, Prompt
from trainer.generation.generator import Generator
from trainer.generation.piece import Ending, Piece
from trainer.generation.row import Row
from trainer.generation.settings import GenerateSettings
from trainer.provenance.thresholds import one_threshold
from trainer.serving.memory import PART, Budget, Demand, StateSize
from trainer.serving.metrics import Metrics
from trainer.serving.prefix_cache import PrefixCache
from trainer.serving.requests import RequestError, choice_seed

MOST_WAITING_TOKENS = 1 << 25
"""Of all prompts in a queue: they lie in memory before any of it is reserved for them."""
LONGEST_RETRY = 120
"""Seconds that a refused client is sent away for at most."""
SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class Event:
    """News of one job: pieces of its prompt or of one of its texts, the end of a text, or why there is none."""

    job: "Job"
    choice: int | None = None
    """Which text; None for the prompt and for an error."""
    pieces: Sequence[Piece] = ()
    ended: Ending | None = None
    error: RequestError | None = None


@dataclass(eq=False)
class Job:
    """A prompt with the texts that are to follow it."""

    rows: list[Row]
    """One for each text, all with the same prompt."""
    deliver: Callable[[list[Event]], None]
    """Takes news, in the loop of the one who asked."""
    deadline: float = math.inf
    """Of `time.monotonic`, after which it is given up."""
    shows_prompt: bool = False
    prompt_patches: int = 0
    """That began in the prompt."""
    patches: int = 0
    """That began in the texts shown so far."""
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    """When the first byte was written."""
    over: bool = False
    """Whether no more news will come; the engine's own note."""
    left: int = 0
    """Texts that have not ended."""
    wrote_at: list[float] = field(default_factory=list)
    """When each text got its last byte."""

    @property
    def settings(self) -> GenerateSettings:
        """Those of all texts but for the seed."""
        return self.rows[0].settings

    @property
    def demand(self) -> Demand:
        """What it asks for."""
        settings, tokens = self.settings, len(self.rows[0].tokens)
        return Demand(len(self.rows), tokens, settings.length, self.shows_prompt, settings.logprobs)

    @property
    def work(self) -> int:
        """Tokens that it may still take, at most."""
        return len(self.rows[0].tokens) + sum(row.left for row in self.rows)


class Engine:
    """Writes with one model until it is closed."""

    def __init__(
        self,
        generator: Generator,
        memory: int,
        metrics: Metrics,
        name: str = "model",
        most_rows: int = 32,
        queue: int = 128,
        prefix_memory: int = 0,
        threads: int | None = None,
    ) -> None:
        """``memory`` in bytes for requests, ``prefix_memory`` for prefixes of prompts beside that."""
        self.generator, self.name, self.metrics = generator, name, metrics
        self.specials = specials_of(generator.model.settings)
        self.size = state_size(generator)
        self.budget = Budget(self.size, memory, most_rows)
        self.queue_limit = queue
        self._threads = threads or generator.identity.numerics.threads
        self._prefixes = PrefixCache(self.size, prefix_memory)
        self._wake = Condition()
        # Under the lock of _wake:
        self._waiting: deque[Job] = deque()
        self._cancelled: list[tuple[Job, RequestError | None]] = []
        self._refusing = self._closed = False
        # The thread's own:
        self._reading: deque[tuple[Job, Prompt]] = deque()
        self._batch: Batch = generator.batch()
        self._texts: dict[Row, tuple[Job, int]] = {}
        self._active: set[Job] = set()
        self._blocked = False
        """Whether the job that waits longest did not fit, and nothing has left since."""
        self._changes = self._measured = 0
        """How often texts have come or gone, now and when gauges were set last."""
        self._news: list[Event] = []
        self._done_tokens, self._busy_seconds = 0.0, 1e-9
        """Recent ones count more."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed = False
        """Whether the thread has ended by a fault."""
        self._thread = Thread(target=self._run, name=f"engine {name}", daemon=True)
        metrics.begin(name)
        metrics.memory_limit.labels(name).set(memory)

    # ---- For any thread.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to write; news go to this loop."""
        self._loop = loop
        self._thread.start()

    def rows(self, prompt: np.ndarray | Sequence[Turn], settings: GenerateSettings, count: int = 1) -> list[Row]:
        """Rows for ``count`` texts after a prompt: tokens int16 that begin with BOS, or a chat to answer.

        Raises ConfigError for a chat with a model that knows no chats, and for a threshold that it does not have;
        RequestError for more texts than are ever written at once.
        """
        one_threshold(self.generator.identity.patching, settings.subset, settings.theta)
        if objection := self.budget.objection(Demand(count, 1, 0)):
            raise RequestError(objection, "n")  # before so many rows are made
        rows = []
        for choice in range(count):
            sampling = settings.sampling
            seed = choice_seed(sampling.seed, choice)
            own = settings.model_copy(update={"sampling": sampling.model_copy(update={"seed": seed})})
            if isinstance(prompt, np.ndarray):
                rows.append(Row(prompt, own, self.specials))
            else:
                rows.append(self.generator.row(prompt, own))
        return rows

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let all of these be written, in their order after those that wait, or none.

        Raises RequestError: 400 for what will never fit, 429 when the queue is full, 503 when the engine is closing.
        """
        for job in jobs:
            if objection := self.budget.objection(job.demand):
                raise RequestError(objection, code="context_length_exceeded")
        if len(jobs) > self.queue_limit:
            raise RequestError(f"{len(jobs)} prompts are more than the {self.queue_limit} that may wait", "prompt")
        with self._wake:
            if self._refusing:
                told = "the model has failed" if self.failed else SHUTTING_DOWN
                raise RequestError(told, code="failed" if self.failed else "shutting_down", status=503)
            tokens = sum(len(job.rows[0].tokens) for job in (*self._waiting, *jobs))
            if len(self._waiting) + len(jobs) > self.queue_limit or (self._waiting and tokens > MOST_WAITING_TOKENS):
                raise RequestError("too many requests are waiting; try again later", code="queue_full", status=429)
            self._waiting.extend(jobs)
            self.metrics.queue.labels(self.name).set(len(self._waiting))
            self._wake.notify()

    def cancel(self, jobs: Iterable[Job], error: RequestError | None = None, reason: str = "disconnected") -> None:
        """Give these up; the one who asked is told of the error, if there is one."""
        with self._wake:
            for job in jobs:
                if not job.over:
                    self.metrics.cancelled.labels(self.name, reason).inc()
                    self._cancelled.append((job, error))
            self._wake.notify()

    def refuse(self) -> None:
        """Take no more jobs, and give up those that wait."""
        with self._wake:
            self._refusing = True
            waiting = list(self._waiting)
        self.cancel(waiting, RequestError(SHUTTING_DOWN, code="shutting_down", status=503), "shutdown")

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is written."""
        with self._wake:
            return not (self._waiting or self._cancelled or self._active)

    def close(self) -> None:
        """Give up what is left, tell those who asked, and end the thread."""
        error = RequestError(SHUTTING_DOWN, code="shutting_down", status=503)
        with self._wake:
            self._refusing = self._closed = True
            self._cancelled += [(job, error) for job in (*self._waiting, *self._active)]
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def retry_after(self) -> int:
        """Seconds after which there may be room in the queue, by what was read and written lately."""
        with self._wake:
            jobs = [*self._waiting, *self._active]
        if not jobs:
            return 1
        rate = max(1.0, self._done_tokens / self._busy_seconds)
        return max(1, min(LONGEST_RETRY, math.ceil(sum(job.work for job in jobs) / rate / len(jobs))))

    # ---- The thread.

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread: torch keeps a number for each
        try:
            while self._turn():
                pass
        except BaseException:
            # A fault of ours that no request is to blame for: better an engine that refuses than one that says nothing.
            traceback.print_exc()
            self.failed = True
            error = RequestError("internal error", code="internal_error", status=500)
            with self._wake:
                self._refusing = self._closed = True
                left = [*self._waiting, *self._active, *(job for job, _ in self._cancelled)]
                self._waiting.clear()
                self._active.clear()
                self._cancelled.clear()
            self._news = [Event(job, error=error) for job in left if not job.over]
            self._tell()

    def _turn(self) -> bool:
        """Take what has come, read a part of a prompt, write a byte of each text; False when it is all over."""
        with self._wake:
            while not (self._closed or self._waiting or self._cancelled or self._active):
                self._wake.wait()
            cancelled, self._cancelled = self._cancelled, []
            admitted = self._admit(cancelled)
            closed = self._closed
        began, work = time.monotonic(), 0
        for job, error in cancelled:
            self._give_up(job, error)
        self._expire()
        for job in admitted:
            self._guarded([job], partial(self._begin, job))
        if not closed:
            if self._reading:
                work += self._read_part()
            if self._batch.rows:
                work += self._write_bytes()
        elapsed = time.monotonic() - began
        if work:
            self._done_tokens = 0.99 * self._done_tokens + work
            self._busy_seconds = 0.99 * self._busy_seconds + elapsed
        self._measure()
        self._tell()
        return not closed

    def _measure(self) -> None:
        """Set the gauges that have changed."""
        if self._measured == self._changes:
            return
        self._measured = self._changes
        self.metrics.memory.labels(self.name).set(self.size.total_bytes([job.demand for job in self._active]))
        self.metrics.prefix_memory.labels(self.name).set(self._prefixes.reserved)
        self.metrics.rows.labels(self.name).set(len(self._batch.rows))

    def _admit(self, cancelled: Sequence[tuple[Job, RequestError | None]]) -> list[Job]:
        """The jobs that wait longest, as many as fit; under the lock."""
        given_up = {job for job, _ in cancelled}
        now = time.monotonic()
        kept: deque[Job] = deque()
        for job in self._waiting:
            if job not in given_up and job.deadline > now:
                kept.append(job)
            elif job not in given_up:
                self._timed_out(job)
        if len(kept) < len(self._waiting):
            self._blocked = False
        self._waiting = kept
        admitted = []
        if not (self._blocked or self._closed):
            demands = [job.demand for job in self._active if job not in given_up]
            while self._waiting and self.budget.fits([*demands, self._waiting[0].demand]):
                job = self._waiting.popleft()
                demands.append(job.demand)
                admitted.append(job)
                self._active.add(job)
            self._blocked = bool(self._waiting)
        self.metrics.queue.labels(self.name).set(len(self._waiting))
        return admitted

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._active if job.deadline <= now]:
            self._timed_out(job)

    def _timed_out(self, job: Job) -> None:
        self.metrics.cancelled.labels(self.name, "timeout").inc()
        self._give_up(job, RequestError("the request took longer than its timeout", code="timeout", status=504))

    def _give_up(self, job: Job, error: RequestError | None) -> None:
        """Nothing more of it; harmless for one that is over."""
        if job.over:
            return
        rows = [row for row in job.rows if row in self._texts]
        if rows:
            self._batch.remove(rows)
        if error is not None:
            self._news.append(Event(job, error=error))
        self._finish(job)

    def _finish(self, job: Job) -> None:
        job.over = True
        for row in job.rows:
            self._texts.pop(row, None)
        self._reading = deque(one for one in self._reading if one[0] is not job)
        with self._wake:
            self._active.discard(job)
        self._blocked = False
        self._changes += 1

    def _begin(self, job: Job) -> None:
        """Open a document for it, with the longest beginning of its prompt that is known."""
        row = job.rows[0]
        job.left, job.wrote_at = len(job.rows), [job.asked_at] * len(job.rows)
        # Pieces of a prompt that is shown come from reading it.
        prefix = None if job.shows_prompt else self._prefixes.longest(row.tokens, self._theta(job))
        if prefix is None:
            prompt = Prompt(row, self.generator.document(job.settings))
        else:
            self.metrics.prefix_bytes.labels(self.name).inc(prefix.tokens)
            job.prompt_patches = prefix.patches
            prompt = Prompt(row, prefix.document.fork(), prefix.tokens)
        if prompt.done:
            self._join(job, prompt)
        else:
            self._reading.append((job, prompt))

    def _theta(self, job: Job) -> float | None:
        """The threshold that its text is cut with."""
        recorded, settings = self.generator.identity.patching, job.settings
        return one_threshold(recorded, settings.subset, settings.theta).theta

    def _read_part(self) -> int:
        """The next part of the prompt that was admitted first; returns its tokens."""
        job, prompt = self._reading[0]
        before, began = prompt.read, time.monotonic()

        def read() -> None:
            pieces = prompt.advance()
            job.prompt_patches += sum(piece.starts for piece in pieces)
            if job.shows_prompt:
                self._news.append(Event(job, pieces=pieces))
            if prompt.read % PART == 0:
                known = job.rows[0].tokens[: prompt.read]
                self._prefixes.keep(known, self._theta(job), prompt.document, job.prompt_patches)
            if prompt.done:
                self._reading.popleft()
                self._join(job, prompt)

        self._guarded([job], read)
        self.metrics.prompt_bytes.labels(self.name).inc(prompt.read - before)
        self.metrics.prompt_seconds.labels(self.name).inc(time.monotonic() - began)
        return prompt.read - before

    def _join(self, job: Job, prompt: Prompt) -> None:
        """Write its texts from the next byte on; the state of the one prompt is copied for each."""
        known = len(prompt.row.tokens) - 1
        self._changes += 1
        for choice, row in enumerate(job.rows):
            if row.ended is not None:  # nothing is to be written
                self._news.append(Event(job, choice, ended=row.ended))
                job.left -= 1
                continue
            last = choice == len(job.rows) - 1
            self._texts[row] = job, choice
            self._batch.join(Prompt(row, prompt.document if last else prompt.document.fork(), known))
        if not job.left:
            self._finish(job)

    def _write_bytes(self) -> int:
        """The next byte of each text; returns how many."""
        jobs = list({job: None for job, _ in self._texts.values()})
        count = len(self._batch.rows)
        self._guarded(jobs, self._step, self._new_batch)
        return count

    def _step(self) -> None:
        try:
            written = list(self._batch.step())
        except LogitsError as error:
            # The others go on: their next turn takes the same bytes again.
            told = RequestError(str(error), code="model_error", status=500)
            for job in {self._texts[self._batch.rows[place]][0]: None for place in error.rows}:
                self._give_up(job, told)
            return
        now, patches, first, between = time.monotonic(), 0, [], []
        for row, pieces in written:
            job, choice = self._texts[row]
            if job.first_at is None:
                job.first_at = now
                first.append(now - job.asked_at)
            elif row.written > 1:
                between.append(now - job.wrote_at[choice])
            job.wrote_at[choice] = now
            began = sum(piece.starts for piece in pieces)
            job.patches += began
            patches += began
            if pieces or row.ended is not None:
                self._news.append(Event(job, choice, pieces, row.ended))
            if row.ended is not None:
                del self._texts[row]
                self._changes += 1
                job.left -= 1
                if not job.left:
                    self._finish(job)
        self.metrics.written_bytes.labels(self.name).inc(len(written))
        self.metrics.written_patches.labels(self.name).inc(patches)
        for seconds in first:
            self.metrics.first_byte.labels(self.name).observe(seconds)
        for seconds in between:
            self.metrics.between_bytes.labels(self.name).observe(seconds)

    def _new_batch(self) -> None:
        self._batch = self.generator.batch()

    def _guarded(
        self, jobs: Sequence[Job], work: Callable[[], None], recover: Callable[[], None] | None = None
    ) -> None:
        """Do some work; what fails fails for these jobs alone, and the thread lives on."""
        try:
            work()
        except Exception as error:
            if isinstance(error, PatchworkError):
                told = RequestError(str(error), code="model_error", status=500)
            else:
                traceback.print_exc()  # a fault of ours: whoever runs the server needs it, and no client gets it
                told = RequestError("internal error", code="internal_error", status=500)
            if recover is not None:
                recover()
                self._texts.clear()
            for job in jobs:
                self._give_up(job, told)

    def _tell(self) -> None:
        """Hand out the news of this turn, all at once."""
        news, self._news = self._news, []
        if not news:
            return
        by_job: dict[Callable[[list[Event]], None], list[Event]] = {}
        for event in news:
            by_job.setdefault(event.job.deliver, []).append(event)
        assert self._loop is not None, "started"
        try:
            self._loop.call_soon_threadsafe(_deliver, by_job)
        except RuntimeError:
            LOG.debug("nobody is left to hear of %d events", len(news))  # the loop has been closed


def _deliver(news: dict[Callable[[list[Event]], None], list[Event]]) -> None:
    for deliver, events in news.items():
        deliver(events)


def state_size(generator: Generator) -> StateSize:
    """How large the decoding state of an opened model is."""
    entropy_model = generator.entropy_model
    # The widest, because keys and values have the dtype of what is computed in, whatever single matrices are kept in.
    floats = [weight for weight in generator.model.parameters() if weight.is_floating_point()]
    width = max(compute_dtype(weight).itemsize for weight in floats)
    return StateSize(generator.model.settings, None if entropy_model is None else entropy_model.settings, width)
