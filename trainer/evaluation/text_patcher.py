"""Texts cut into patches as a model's training data was: by its own rule, thresholds and entropy model."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import check_tokenizer
from shared.counts.files import load_counts
from shared.counts.scorer import CountScorer
from shared.inputs import DocumentScorer
from shared.model_folder.files import load_entropy_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings
from shared.patching.lengths import patch_lengths_together
from shared.vocabulary import token_bytes
from trainer.provenance.identity import ModelIdentity

TOGETHER = 2**20
"""Tokens that are cut at once; bounds memory, changes nothing."""


class Patcher:
    """Finds patches in memory as the pipeline finds those that it stores (law 2)."""

    def __init__(
        self, folder: Path, identity: ModelIdentity, device: torch.device, patching: PatchingSettings | None = None
    ) -> None:
        """``folder``: of the model, which carries its entropy model or its tokenizer where its rule needs one.

        ``patching``: the model's rule with its thresholds under other names of subsets (`patching_for`).

        Entropies are those of the dataset within one numerics class (device, threads, dtype, stream length).
        Raises ModelFileError, IdentityError.
        """
        self.patching = patching or identity.patching
        self._scorer = open_scorer(folder, identity, device) if self.patching.needs_entropy else None
        self._encoder = None
        if self.patching.tokenizer is not None:
            check_tokenizer(folder / TOKENIZER_FOLDER, self.patching.tokenizer)
            self._encoder = SubwordEncoder(folder / TOKENIZER_FOLDER)

    def lengths(
        self,
        documents: Sequence[np.ndarray],
        subsets: Sequence[str] | None = None,
        begins: Sequence[int] | None = None,
    ) -> Iterator[np.ndarray | None]:
        """uint16 [P] for each document int16 [n + 2] of tokens, in order; None where the rule makes no patches.

        ``subsets``: whose threshold each document is cut by; the default one without a name, and for a subset that has
        none of its own. ``begins``: of each text a byte before which a token of rule bpe must end, so that what follows
        is predicted as such.
        """
        if not self.patching.patched:
            yield from (None for _ in documents)
            return
        if self._encoder is not None:
            for number, tokens in enumerate(documents):
                yield self._in_tokens(self._encoder, token_bytes(tokens), begins[number] if begins else 0)
            return
        thetas = self._thetas(len(documents), subsets)
        entropies = iter(self._scorer.score(documents)) if self._scorer else None
        for low, high in stretches_of(documents, TOGETHER):
            values = None if entropies is None else list(islice(entropies, high - low))
            yield from patch_lengths_together(
                documents[low:high], self.patching, values, None if thetas is None else thetas[low:high]
            )

    def _in_tokens(self, encoder: SubwordEncoder, text: bytes, begin: int) -> np.ndarray:
        """uint16 [P]: BOS, the tokens before a byte and those from it on, EOS."""
        one = np.ones(1, np.uint16)
        return np.concatenate([one, encoder.lengths(text[:begin]), encoder.lengths(text[begin:]), one])

    def _thetas(self, count: int, subsets: Sequence[str] | None) -> list[float] | None:
        """Nats, of each document; None where they share one."""
        if not self.patching.thetas:
            return None
        assert self.patching.theta is not None, "thresholds by subset stand beside a default one"
        return [self.patching.thetas.get(name, self.patching.theta) for name in subsets or [""] * count]


def open_scorer(folder: Path, identity: ModelIdentity, device: torch.device) -> DocumentScorer:
    """The entropy model that a model folder carries, ready to score as the pipeline did.

    Raises ModelFileError, and IdentityError when it is not the one that found the patches.
    """
    entropy_model = identity.entropy_model
    assert entropy_model is not None, "a rule on entropy has an entropy model"
    numerics, own = entropy_model.numerics, folder / ENTROPY_MODEL_FOLDER
    if numerics is None:
        return CountScorer(load_counts(own, entropy_model.sha256))
    return Scorer(load_entropy_model(own, entropy_model.sha256), numerics.stream_length, numerics.dtype, device)


def stretches_of(documents: Sequence[np.ndarray], tokens: int) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of consecutive documents that together have about so many tokens."""
    ends = np.cumsum([len(document) for document in documents])
    low = 0
    while low < len(documents):
        before = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + tokens, side="right")))
        yield low, high
        low = high
