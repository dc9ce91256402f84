"""A model folder as the language model evaluation harness wants models: lm-eval, an optional package.

The harness asks for likelihoods and for texts, in words that know nothing of tokens; what it calls tokens are four
bytes each here, about what they are in English.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import ValidationError

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.settings import first_problem
from shared.vocabulary import IGNORED_LABEL
from trainer.errors import TaskError
from trainer.evaluation.scores import slice_nats
from trainer.evaluation.tasks.choosing import counted_from, encoded
from trainer.evaluation.tasks.running import ticker
from trainer.evaluation.tasks.writing import Write
from trainer.evaluation.texts import TextScorer
from trainer.generation.generator import Generator
from trainer.generation.sampling import WRITABLE, SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.optim.train_step import predict
from trainer.provenance.identity import model_identity

BYTES_A_TOKEN = 4
TOKENS = 256
"""Written at most where a task says nothing, as by the harness's own models."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of that limit; the first that is given counts."""
SECONDS_BETWEEN_LINES = 10.0
TOGETHER = 128
"""Texts scored at once: bounds memory, changes nothing."""


class Request(Protocol):
    """What of the harness's requests is used."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,) or (context, how to write)."""


class Harness:
    """The three questions that the harness asks. Opens what it needs when it is asked first."""

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        tokens: int = 16384,
        together: int = 16,
        subset: str | None = None,
        threads: int | None = None,
    ) -> None:
        """``tokens`` of a pack, into which a text fits whole; ``together``: prompts that are completed at once.

        Raises IdentityError, ConfigError for a subset that the model does not know.
        """
        super().__init__()
        self._folder, self._on, self._dtype, self._tokens = folder, device, dtype, tokens
        self._together, self._subset, self._threads = together, subset, threads
        self._progress = Progress(silent=False, every_seconds=SECONDS_BETWEEN_LINES)

    @cached_property
    def _scorer(self) -> TextScorer:
        identity = model_identity(self._folder)
        torch.set_num_threads(self._threads or identity.numerics.threads)
        return TextScorer(self._folder, self._on, self._dtype, self._tokens)

    @cached_property
    def _write(self) -> Write:
        return Generator(self._folder, self._on, self._threads).texts

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each continuation after its context: its log-probability in nats, and whether greedy writing writes it.

        Raises TaskError for a text that does not fit into a pack: its context would be cut.
        """
        pairs = [(encoded(context), encoded(continuation)) for context, continuation in (one.args for one in requests)]
        longest = max((len(context) + len(continuation) for context, continuation in pairs), default=0)
        if longest > self._tokens - 2:
            raise TaskError(f"a request has {longest:,} bytes, more than fit into a pack: give more tokens")
        scored = self._scored(
            [context + continuation for context, continuation in pairs], [counted_from(context) for context, _ in pairs]
        )
        return [(-nats, missed == 0) for nats, missed in scored]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Of each whole text, without EOS: its log-probability in nats. Longer ones than a pack are cut."""
        texts = [encoded(request.args[0]) for request in requests]
        return [-nats for nats, _ in self._scored(texts, [0] * len(texts))]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """What follows each context. Raises TaskError for a way to write that is not known."""
        asked = [(context, settings_from(how, self._subset)) for context, how in (one.args for one in requests)]
        texts: list[str] = []
        tick = ticker(self._progress, len(asked), "texts")
        for settings, alike in groupby(asked, lambda pair: pair[1]):
            prompts = [encoded(context) for context, _ in alike]
            for first in range(0, len(prompts), self._together):
                written = self._write(prompts[first : first + self._together], settings)
                for text in written:
                    texts.append(text.decode("utf-8", "replace"))
                    tick("written")
        return texts

    def _scored(self, texts: Sequence[bytes], begins: Sequence[int]) -> Iterator[tuple[float, int]]:
        tick = ticker(self._progress, len(texts), "texts")
        for first in range(0, len(texts), TOGETHER):
            some = slice(first, first + TOGETHER)
            sums = nats_and_misses(self._scorer, texts[some], begins[some], self._subset)
            for nats, misses in sums.tolist():
                tick("scored")
                yield nats, int(misses)


@torch.no_grad()
def nats_and_misses(
    scorer: TextScorer, texts: Sequence[bytes], begins: Sequence[int], subset: str | None = None
) -> np.ndarray:
    """float64 [D, 2], of D texts from their own byte on: nats, and how many bytes greedy writing would not write."""
    sums = np.zeros((len(texts), 2))
    forbidden = torch.from_numpy(np.flatnonzero(~WRITABLE)).to(scorer.device)
    for pack in scorer.packs(texts, begins, end=False, subsets=None if subset is None else [subset] * len(texts)):
        batch = pack.batch.to(scorer.device)
        logits, slices = predict(scorer.model, batch), len(batch.documents.lengths)
        nats = slice_nats(logits, batch.labels, batch.documents.ids, slices)
        likeliest = logits.index_fill(1, forbidden, -torch.inf).argmax(1)
        missed = ((likeliest != batch.labels) & (batch.labels != IGNORED_LABEL)).double()
        misses = torch.zeros_like(nats).index_add_(0, batch.documents.ids, missed)
        np.add.at(sums, pack.document, torch.stack([nats, misses], 1).cpu().numpy()[: len(pack.document)])
    return sums


def settings_from(how: Mapping[str, Any], subset: str | None = None) -> GenerateSettings:
    """How to write, in the harness's words. Raises TaskError for one that is not known."""
    left = dict(how)
    until = left.pop("until", [])
    limits = [limit for limit in (left.pop(name, None) for name in LIMITS) if limit is not None]
    sampled, temperature = left.pop("do_sample", None), left.pop("temperature", None)
    if temperature is None:
        temperature = 1.0 if sampled else 0.0
    sampling = {"temperature": 0.0 if sampled is False else temperature}
    sampling |= {name: left.pop(name) for name in ("top_p", "top_k", "seed") if name in left}
    if left:
        raise TaskError(f"a task wants texts written with {', '.join(sorted(left))}, which means nothing here")
    try:
        return GenerateSettings(
            length=BYTES_A_TOKEN * int(limits[0] if limits else TOKENS),
            sampling=SamplingSettings.model_validate(sampling),
            stop=tuple(encoded(text) for text in ([until] if isinstance(until, str) else until) if text),
            subset=subset,
        )
    except ValidationError as error:
        raise TaskError(f"a task wants texts written with {dict(how)}: {first_problem(error)}") from None


def harness_model(folder: Path, **options: Any) -> Any:
    """A ``Harness`` that lm-eval takes for one of its own models. Raises ConfigError where lm-eval is missing."""
    return type("PatchworkLM", (Harness, harness_module("api.model").LM), {})(folder, **options)


def harness_module(name: str) -> Any:
    """A module of lm-eval. Raises ConfigError where it is missing."""
    try:
        import_module("lm_eval")
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ConfigError("the harness is a package of its own: pip install -e '.[lm-eval]'") from None
    return import_module(f"lm_eval.{name}")
