"""Whether a model that writes bytes writes UTF-8: samples after beginnings of documents, and what is damaged there."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from shared.errors import ConfigError
from shared.patching.settings import PatchingSettings
from shared.shards.in_memory import Documents, whole_documents
from trainer.evaluation.robustness.characters import character_start, damage
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

if TYPE_CHECKING:
    from trainer.generation.generator import Generator

LONGEST_PROMPT = 512
"""Bytes."""
TOGETHER = 16
"""Samples written at once. They share their draws, those of other batches have others."""


@dataclass(frozen=True)
class Validity:
    """Sums over samples."""

    samples: int = 0
    valid: int = 0
    """Samples without damage."""
    bytes: int = 0
    characters: int = 0
    damaged: int = 0
    """Characters."""

    def __str__(self) -> str:
        return (
            f"{self.valid:,} of {self.samples:,} samples are valid UTF-8; {self.damaged:,} of {self.characters:,} "
            f"characters in {self.bytes:,} bytes are damaged"
        )


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document."""

    text: bytes
    subset: str


def prompts_from(dataset: Documents, count: int, seed: int = 0) -> list[Prompt]:
    """So many beginnings of documents, of 1 to LONGEST_PROMPT bytes, each cut where a character begins.

    Documents are drawn in a random order, again and again if they are fewer; those that do not begin with UTF-8 are
    left out. Raises ConfigError when none is left, DatasetError.
    """
    beginnings = [
        Prompt(text, row.subset)
        for row in whole_documents(dataset)
        if row.spans is None and (text := _beginning(row.text)) and damage(text, whole=True)[1] == 0
    ]
    if not beginnings:
        raise ConfigError(f"{dataset.where} has no document to begin a sample with: plain text that is UTF-8")
    draws = np.random.Philox(key=seed).random_raw(len(beginnings) + count)
    order = draws[: len(beginnings)].argsort(kind="stable")
    chosen = [beginnings[order[number % len(order)]] for number in range(count)]
    places = [1 + int(draw) % len(one.text) for draw, one in zip(draws[len(beginnings) :].tolist(), chosen)]
    cuts = [max(character_start(one.text, place), character_end(one.text)) for one, place in zip(chosen, places)]
    return [Prompt(one.text[:cut], one.subset) for one, cut in zip(chosen, cuts)]


def _beginning(text: bytes) -> bytes:
    return text[: character_start(text, min(len(text), LONGEST_PROMPT))]


def character_end(text: bytes) -> int:
    """Bytes of the first character of UTF-8."""
    return next((place for place in range(1, len(text)) if text[place] & 0xC0 != 0x80), len(text))


def validity(
    generator: "Generator",
    prompts: Sequence[Prompt],
    length: int,
    on_progress: Callable[[int], object] = lambda done: None,
    patching: PatchingSettings | None = None,
) -> Validity:
    """Write at most ``length`` bytes after each prompt, drawn from the model's own probabilities, and judge them.

    ``on_progress`` gets the number of samples done. ``patching``: the model's rule with its thresholds under the names
    that the prompts' subsets have (`patching_for`). Raises ConfigError for a model that does not write.
    """
    found = Validity()
    rule = patching or generator.identity.patching
    by_subset = bool(rule.thetas)
    for number, batch in enumerate(_batches(prompts, by_subset)):
        settings = GenerateSettings(
            length=length,
            sampling=SamplingSettings(temperature=1.0, seed=number),
            theta=rule.for_subset(batch[0].subset).theta if by_subset else None,
        )
        texts = generator.texts([prompt.text for prompt in batch], settings)
        for text, ended in zip(texts, generator.ended):
            characters, damaged = damage(text, whole=ended == "end of document")
            counts = (1, int(damaged == 0), len(text), characters, damaged)
            found = Validity(*map(sum, zip(astuple(found), counts)))
        on_progress(found.samples)
    return found


def _batches(prompts: Sequence[Prompt], by_subset: bool) -> list[list[Prompt]]:
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.subset if by_subset else "", []).append(prompt)
    return [group[low : low + TOGETHER] for group in groups.values() for low in range(0, len(group), TOGETHER)]
