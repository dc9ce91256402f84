"""Noise as change of bits per byte: the paper's five noises on whole texts, and on either half of them.

A completion is the second half of a document, its prompt the first (arXiv 2412.09871, section 6.1, noises "the prompt,
the completion, or both" of multiple-choice questions). Noised texts are cut into patches anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import ConfigError
from shared.io.display.tables import aligned
from shared.shards.in_memory import Documents, whole_documents
from trainer.evaluation.robustness.characters import character_start
from trainer.evaluation.robustness.noise import Noise, noised
from trainer.evaluation.texts import TextScorer
from trainer.metrics.subset_score import bits_per_byte


@dataclass(frozen=True)
class Robustness:
    """Bits a byte of what is scored, EOS included; of noised text a byte of the noised text."""

    noise: Noise | None
    """None: all is clean."""
    text: float
    """Whole documents, noised."""
    prompt: float
    """Clean completions after noised prompts."""
    completion: float
    """Noised completions after clean prompts."""
    both: float
    """Noised completions after noised prompts."""


PLACES = ("text", "prompt", "completion", "both")


def robustness(
    scorer: TextScorer,
    dataset: Documents,
    noises: Sequence[Noise],
    on_progress: Callable[[float], object] = lambda share: None,
) -> list[Robustness]:
    """Clean documents, then each noise on all of a dataset's. ``on_progress`` gets the share done.

    Raises ConfigError for documents with special ids, DatasetError.
    """
    check_plain(dataset)
    rows = list(whole_documents(dataset))
    subsets = [row.subset for row in rows]
    halves = [halved(row.text) for row in rows]
    prompts, completions = [prompt for prompt, _ in halves], [completion for _, completion in halves]
    passes = 2 + 4 * len(noises)
    done = 0

    def bits(texts: Sequence[bytes], from_byte: Sequence[int] | None = None) -> float:
        nonlocal done
        found = scorer.score(texts, from_byte, subsets=subsets)
        done += 1
        on_progress(done / passes)
        return bits_per_byte(float(np.sum(found.nats)), int(found.bytes.sum()))

    def after(befores: Sequence[bytes], texts: Sequence[bytes]) -> float:
        return bits([a + b for a, b in zip(befores, texts)], [len(before) for before in befores])

    clean = after(prompts, completions)
    found = [Robustness(None, bits([row.text for row in rows]), clean, clean, clean)]
    for noise in noises:
        noisy_prompts = [noised(text, noise) for text in prompts]
        noisy_completions = [noised(text, noise) for text in completions]
        found.append(
            Robustness(
                noise,
                text=bits([noised(row.text, noise) for row in rows]),
                prompt=after(noisy_prompts, completions),
                completion=after(prompts, noisy_completions),
                both=after(noisy_prompts, noisy_completions),
            )
        )
    return found


def check_plain(dataset: Documents) -> None:
    """Raise ConfigError for documents with special ids."""
    if specials := dataset.specials:
        raise ConfigError(f"{dataset.where} has the special ids {', '.join(specials)}; noise is for plain text")


def halved(text: bytes) -> tuple[bytes, bytes]:
    """A text in two halves, cut where a character begins."""
    half = character_start(text, len(text) // 2)
    return text[:half], text[half:]


def table(found: Sequence[Robustness]) -> str:
    """A line for clean text and one for each noise, with the change from the first in brackets."""
    clean = found[0]
    heads = ["bits/byte with noise on", "all text", "the prompt", "the completion", "both halves"]
    lines = [["clean", *(f"{getattr(clean, place):.4f}" for place in PLACES)]]
    for one in found[1:]:
        cells = [f"{getattr(one, place):.4f} ({getattr(one, place) - getattr(clean, place):+.4f})" for place in PLACES]
        lines.append([str(one.noise), *cells])
    return aligned(heads, lines)
