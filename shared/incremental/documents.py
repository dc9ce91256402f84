"""Documents that grow, read by a model, by the entropy model that finds its patches, and by the patching rule.

Shapes: R rows (documents), n tokens that each row takes, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.counts.scorer import CountRows
from shared.counts.table import CountModel
from shared.incremental.blt import BltRows
from shared.incremental.hnet import HNetRows
from shared.incremental.slots import LONGEST_ADVANCE, Slots
from shared.incremental.stack import Rotations, StackCache
from shared.layers.blocks import compute_dtype
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel, entropy
from shared.models.hnet import HNet
from shared.patching import PatchingSettings, PatchStream
from shared.vocabulary import NEWLINE

# ---- The entropy model over growing documents.
#
# Shapes: R rows, n tokens that each row takes, V vocabulary.


class EntropyRows:
    """R documents before an entropy model. Tokens are taken in two steps: `advance` reads them, `accept` keeps some."""

    def __init__(self, model: EntropyModel, rows: int = 1) -> None:
        weight = model.embedding.weight
        self.model = model
        self._slots = Slots(rows, model.settings.window, weight.device)
        self._cache = StackCache(model.settings, self._slots, compute_dtype(weight), weight.device)
        self._rotations = Rotations(model.settings, weight.device)
        self._since = torch.zeros(rows, 1, dtype=torch.int64, device=weight.device)
        """[R, 1], where the open context began; stays 0 without newline_reset."""
        self._contexts = self._since
        """[R, n], the same after each token of the last advance."""

    def advance(self, ids: Tensor) -> Tensor:
        """The next tokens of each row, int64 [R, n] -> logits fp32 [R, n, V]. Nothing is kept before `accept`."""
        since = None
        if self.model.settings.newline_reset:
            lengths = torch.from_numpy(self._slots.lengths).to(ids.device)[:, None]
            here = lengths + torch.arange(ids.shape[1], device=ids.device)
            since = torch.maximum(torch.where(ids == NEWLINE, here, 0).cummax(1).values, self._since)
            self._contexts = since
        place = self._slots.place(ids.shape[1], since=since)
        rotations = self._rotations.at(place, int(self._slots.lengths.max()) + ids.shape[1])
        x = self._cache.through(self.model.blocks, self.model.embed(ids.flatten()), rotations, place)
        logits: Tensor = self.model.logits(x).unflatten(0, ids.shape)
        return logits

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens of each row's last advance."""
        self._slots.lengths = self._slots.lengths + np.asarray(kept, np.int64)
        if self.model.settings.newline_reset:
            last = torch.tensor(kept, device=self._since.device)[:, None] - 1
            self._since = self._contexts.gather(1, last)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self._slots.select(rows)
        self._cache.select(rows)
        self._since = self._since[list(rows)]

    def append(self, other: "EntropyRows") -> None:
        """The rows of another, after these."""
        self._slots.append(other._slots)
        self._cache.append(other._cache)
        self._since = torch.cat([self._since, other._since])


Chooser = Callable[[Tensor], Tensor]
"""From logits fp32 [R, V] to the next tokens, int64 [R, 1]."""


@dataclass(frozen=True)
class Advance:
    """What is known after some tokens of each row."""

    logits: Tensor
    """fp32 [R, n, V], of the token after each."""
    entropies: np.ndarray | None
    """float32 [R, n] nats, of the token after each; None for rules that need none."""
    starts: np.ndarray
    """bool [R, n], whether the token after each begins a patch."""


Rows = BltRows | HNetRows | EntropyRows
"""Of each kind of model that reads documents as they grow."""


def rows_of(model: Blt | HNet | EntropyModel, rows: int) -> Rows:
    """R empty documents before a model."""
    if isinstance(model, Blt):
        return BltRows(model, rows)
    return HNetRows(model, rows) if isinstance(model, HNet) else EntropyRows(model, rows)


class DecodingState:
    """R documents; each token costs what it adds, and the global model runs once a patch.

    Tokens are taken in two steps: `advance` reads them, `accept` keeps some of each row (all, as a rule).
    """

    def __init__(
        self,
        model: Blt | HNet | EntropyModel,
        patching: PatchingSettings,
        entropy_model: EntropyModel | CountModel | None = None,
        rows: int = 1,
    ) -> None:
        """A BLT needs ``entropy_model`` where its rule is one on entropy; the others need none."""
        self.model = model
        self._rows = rows_of(model, rows)
        self._entropy_model: EntropyRows | CountRows | None = None
        self._streams: list[PatchStream] = []
        if isinstance(model, Blt):
            self._streams = [PatchStream(patching) for _ in range(rows)]
            if patching.needs_entropy:
                assert entropy_model is not None, f"rule {patching.rule!r} needs its entropy model"
                if isinstance(entropy_model, CountModel):
                    self._entropy_model = CountRows(entropy_model, rows)
                else:
                    self._entropy_model = EntropyRows(entropy_model, rows)
        self._last: list[list[PatchStream]] = []

    @property
    def global_forwards(self) -> int:
        """Patches that the global model has read so far, in all rows."""
        return 0 if isinstance(self._rows, EntropyRows) else self._rows.global_forwards

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> Advance:
        """The next tokens of each row, int64 [R, n] on the model's device, n at most LONGEST_ADVANCE.

        A document begins with BOS. Nothing is kept before `accept`.
        """
        if isinstance(self._rows, EntropyRows):
            logits = self._rows.advance(ids)
            found = entropy(logits).cpu().numpy()
            return Advance(logits, found, np.zeros(found.shape, bool))
        if isinstance(self._rows, HNetRows):
            logits, ends = self._rows.advance(ids)
            return Advance(logits, None, ends)
        tokens, entropies = ids.cpu().numpy(), None
        if isinstance(self._entropy_model, CountRows):
            entropies = self._entropy_model.advance(tokens)
        elif self._entropy_model is not None:
            entropies = entropy(self._entropy_model.advance(ids)).cpu().numpy()
        starts = self._decide(tokens, entropies)
        return Advance(self._rows.advance(ids, starts), entropies, starts)

    def _decide(self, ids: np.ndarray, entropies: np.ndarray | None) -> np.ndarray:
        """bool [R, n]: the rule's decisions, and its state after each token, so that any number can be kept."""
        starts = np.zeros(ids.shape, bool)
        self._last = []
        for row, stream in enumerate(self._streams):
            states = []
            for place, token in enumerate(ids[row].tolist()):
                stream = copy(stream)
                starts[row, place] = stream.push(token, None if entropies is None else entropies[row, place])
                states.append(stream)
            self._last.append(states)
        return starts

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens (at least one) of each row's last advance."""
        with torch.inference_mode():
            self._rows.accept(kept)
            if self._entropy_model is not None:
                self._entropy_model.accept(kept)
        self._streams = [states[count - 1] for states, count in zip(self._last, kept)]

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Take all of these tokens of a single row, int16 [N], as the beginning of a document.

        Returns bool [N], whether the token after each begins a patch, and float32 [N] nats of the token after each
        (None for rules that need none).
        """
        starts, entropies = [np.zeros(0, bool)], [np.zeros(0, np.float32)]
        for found in self.read_in_parts(tokens):
            starts.append(found.starts[0])
            if found.entropies is not None:
                entropies.append(found.entropies[0])
        known = len(entropies) == len(starts)
        return np.concatenate(starts), np.concatenate(entropies) if known else None

    def read_in_parts(self, tokens: np.ndarray) -> Iterator[Advance]:
        """The same, a part of at most LONGEST_ADVANCE tokens at a time: what is known after each token of a part."""
        device = next(self.model.parameters()).device
        for begin in range(0, len(tokens), LONGEST_ADVANCE):
            part = tokens[begin : begin + LONGEST_ADVANCE].astype(np.int64)
            found = self.advance(torch.from_numpy(part).to(device)[None])
            self.accept([len(part)])
            yield found

    @torch.inference_mode()
    def draft(self, ids: Tensor, choose: Chooser, count: int) -> None:
        """Let the local models alone go on after ``ids`` int64 [R, 1], with ``count`` tokens that ``choose`` takes.

        The decoder keeps reading the last complete patch, past any boundary (self-speculative decoding). Nothing is
        kept; ``count`` is less than LONGEST_ADVANCE.
        """
        if isinstance(self._rows, HNetRows):
            before = self._rows.snapshot()
            for _ in range(count):
                logits, _ = self._rows.advance(ids, draft=True)
                self._rows.accept([1] * len(ids))
                ids = choose(logits[:, 0])
            self._rows.rollback(before)
            return
        assert isinstance(self._rows, BltRows), "only a model with patches has something to skip"
        snapshot = self._rows.snapshot()
        for _ in range(count):
            logits = self._rows.advance(ids, np.zeros(ids.shape, bool))
            self._rows.accept([1] * len(ids))
            ids = choose(logits[:, 0])
        self._rows.rollback(snapshot)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        with torch.inference_mode():
            self._rows.select(rows)
            if self._entropy_model is not None:
                self._entropy_model.select(rows)
        if self._streams:
            self._streams = [self._streams[row] for row in rows]

    @torch.inference_mode()
    def append(self, other: "DecodingState") -> None:
        """Copy the rows of another of the same models, after these. Their rules may have other thresholds."""
        _append(self._rows, other._rows)
        if self._entropy_model is not None:
            _append(self._entropy_model, other._entropy_model)
        self._streams += map(copy, other._streams)

    def fork(self) -> "DecodingState":
        """The same rows once more: what either takes from here on is nothing to the other."""
        twin = copy(self)
        twin._last, twin._streams = [], []
        twin._rows = rows_of(self.model, 0)
        if self._entropy_model is not None:
            twin._entropy_model = type(self._entropy_model)(self._entropy_model.model, 0)  # type: ignore[arg-type]
        twin.append(self)
        return twin


def _append(rows: Any, more: Any) -> None:
    """Rows of any one kind after others of it."""
    assert type(rows) is type(more), "rows of one model"
    rows.append(more)
