"""H-Net over growing documents: bytes pass encoder, router and decoder, the global transformer runs once a patch.

Shapes: R rows, n tokens that each row takes, P patches that end among them, M tokens of tail, D local width,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.incremental.blt import NgramTail
from shared.incremental.patches import GrowingPatches
from shared.incremental.slots import Slots
from shared.incremental.stack import Rotations, StackCache
from shared.layers.blocks import compute_dtype
from shared.layers.routing import dissimilarity, smoothed
from shared.layers.weight_formats import cache_dtype
from shared.model_settings import HNetSettings
from shared.models.hnet import HNet
from shared.vocabulary import without_named


class Boundaries(NamedTuple):
    """The boundaries of one document so far, as `shared.layers.routing.patch_ends` finds those of a whole one."""

    tokens: int
    """Tokens so far."""
    credit: int
    """In units of 1/m."""
    latest: int
    """The token with which the latest patch ended."""

    def push(self, wanted: bool, settings: HNetSettings) -> tuple["Boundaries", bool]:
        """After the next token; whether a patch ends with it."""
        rules, place = settings.patch_credit, self.tokens
        if place == 0:
            return Boundaries(1, rules.full, 0), True
        credit = rules.grown(self.credit)
        paid = wanted and credit >= rules.tokens
        end = paid or place - self.latest == settings.max_length
        return Boundaries(place + 1, credit - rules.tokens * paid, place if end else self.latest), end


@dataclass(frozen=True)
class _Place:
    """Where rows stand, besides their keys and values. Immutable, so that a place can be gone back to."""

    boundaries: tuple[Boundaries, ...]
    patches: np.ndarray
    """int64 [R], patches that the global transformer has read."""
    tail: Tensor
    """int64 [R, M], the last tokens of each row, which n-grams reach."""
    key: Tensor
    """[R, D], the router's key of the last token."""
    read: Tensor
    """fp32 [R, D], the average after the last patch: all there is of smoothing, and what the decoder reads."""


@dataclass(frozen=True)
class _Advance:
    """What an advance has found, until it is known how much of it stays."""

    ids: Tensor
    """int64 [R, n]."""
    boundaries: list[list[Boundaries]]
    """By row and token."""
    keys: Tensor
    """[R, n, D]."""
    ends: np.ndarray
    """bool [R, n], whether a patch ends with each token."""
    reads: Tensor
    """int64 [R, n], which entry of ``table`` the decoder read at each token."""
    table: Tensor
    """fp32 [R + P, D]: what rows read before, then the average after each new patch."""


class HNetRows:
    """R documents before an H-Net.

    Tokens are taken in two steps: `advance` reads them, `accept` keeps some of each row. `snapshot` and `rollback`
    forget what was kept since.
    """

    def __init__(self, model: HNet, rows: int = 1) -> None:
        settings, weight = model.settings, model.embedding.weight
        device, dtype = weight.device, compute_dtype(weight)
        kept = cache_dtype(model, dtype)
        self.model = model
        self._ngrams = NgramTail(settings.tables, device)
        self._bytes = Slots(rows, settings.window, device)
        self._patches = GrowingPatches(model.global_.blocks, settings.global_, rows, kept, device)
        self._encoder = StackCache(settings.encoder, self._bytes, kept, device)
        self._decoder = StackCache(settings.decoder, self._bytes, kept, device)
        self._rotations = Rotations(settings.encoder, device), Rotations(settings.decoder, device)
        self._place = _Place(
            boundaries=(Boundaries(0, 0, 0),) * rows,
            patches=np.zeros(rows, np.int64),
            tail=torch.zeros(rows, self._ngrams.length, dtype=torch.int64, device=device),
            key=torch.zeros(rows, settings.width, dtype=dtype, device=device),
            read=torch.zeros(rows, settings.width, device=device),
        )
        self._last: _Advance | None = None

    @property
    def global_forwards(self) -> int:
        """Patches that the global transformer has read in all rows."""
        return self._patches.forwards

    def advance(self, ids: Tensor, draft: bool = False) -> tuple[Tensor, np.ndarray]:
        """The next tokens of each row, int64 [R, n] -> logits fp32 [R, n, V], and bool [R, n], whether a patch ends
        with each token. Nothing is kept before `accept`.

        With ``draft`` no patch ends, so that the global transformer has nothing to do.
        """
        model, place = self.model, self._bytes.place(ids.shape[1])
        ids = without_named(ids)
        longest = int(self._bytes.lengths.max()) + ids.shape[1]
        rotations = [table.at(place, longest) for table in self._rotations]
        x = model.embedding(ids.flatten())
        if model.ngrams is not None:
            rows = self._ngrams.rows(self._place.tail, ids)
            x = x + F.embedding_bag(rows, model.ngrams.weight, mode="sum").to(x.dtype)
        x = model.encoder_norm(self._encoder.through(model.encoder.blocks, x, rotations[0], place))
        keys = model.router.key(x).unflatten(0, ids.shape)
        before = torch.cat([self._place.key[:, None], keys[:, :-1]], 1).flatten(0, 1)
        p = torch.where(place.positions == 0, 1.0, dissimilarity(model.router.query(x), before))
        boundaries, ends = self._decide((p >= 0.5).view(ids.shape).tolist())
        if draft:
            ends[:] = False
        table, reads = self._read_patches(x, p, ends)
        index = torch.from_numpy(reads).to(ids.device)
        x = model.residual(x) + table.index_select(0, index.flatten()).to(x.dtype)
        x = self._decoder.through(model.decoder.blocks, x, rotations[1], place)
        self._last = _Advance(ids, boundaries, keys, ends, index, table)
        logits: Tensor = model.logits(x).unflatten(0, ids.shape)
        return logits, ends

    def _decide(self, wanted: list[list[bool]]) -> tuple[list[list[Boundaries]], np.ndarray]:
        """The boundaries after each token, so that any number can be kept, and bool [R, n] where patches end."""
        states, ends = [], np.zeros((len(wanted), len(wanted[0])), bool)
        for row, state in enumerate(self._place.boundaries):
            after = []
            for place, wants in enumerate(wanted[row]):
                state, ends[row, place] = state.push(wants, self.model.settings)
                after.append(state)
            states.append(after)
        return states, ends

    def _read_patches(self, x: Tensor, p: Tensor, ends: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Run the global transformer over the patches that end here, by the states [R n, D] of their last tokens.

        Returns what the decoder can read, as in `_Advance.table`, and int64 [R, n], what it reads at each token.
        """
        model, rows, counts = self.model, len(ends), ends.sum(1)
        before = self._place.read
        reads = np.arange(rows)[:, None].repeat(ends.shape[1], 1)
        if not counts.any():
            return before, reads
        first = np.cumsum(counts) - counts
        number = first[:, None] + np.cumsum(ends, 1) - 1
        reads = np.where(np.cumsum(ends, 1) > 0, rows + number, reads)
        last = torch.from_numpy(np.flatnonzero(ends)).to(x.device)
        y = self._patches.run(model.input_projection(x.index_select(0, last)), counts)
        vectors = model.patch_projection(model.global_norm(y)).float()
        # One average over all rows, each begun by what it stands at: a share of 1 keeps nothing of the row before.
        owner = np.append(np.arange(rows), np.repeat(np.arange(rows), counts))
        order = torch.from_numpy(np.argsort(owner, kind="stable")).to(x.device)
        shares = torch.cat([p.new_ones(rows), p.index_select(0, last)])
        averaged = smoothed(shares[order], torch.cat([before, vectors])[order])
        return torch.empty_like(averaged).index_copy_(0, order, averaged), reads

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens (at least one) of each row's last advance."""
        last, before = self._last, self._place
        assert last is not None, "accept follows an advance"
        assert min(kept) >= 1, "an advance that keeps nothing of a row was in vain"
        self._last = None
        row, newest = torch.arange(len(kept), device=last.keys.device), torch.tensor(kept, device=last.keys.device) - 1
        tail = torch.cat([before.tail, last.ids], 1)
        reached = newest[:, None] + 1 + torch.arange(before.tail.shape[1], device=tail.device)
        ended = (last.ends & (np.arange(last.ends.shape[1]) < np.asarray(kept)[:, None])).sum(1)
        self._restore(
            _Place(
                boundaries=tuple(states[count - 1] for states, count in zip(last.boundaries, kept)),
                patches=before.patches + ended,
                tail=tail.gather(1, reached),
                key=last.keys[row, newest],
                read=last.table.index_select(0, last.reads[row, newest]),
            )
        )

    def _restore(self, place: _Place) -> None:
        self._place = place
        self._bytes.lengths = np.array([row.tokens for row in place.boundaries], np.int64)
        self._patches.lengths = place.patches

    def snapshot(self) -> _Place:
        """Where the rows stand; good for `rollback` while no row has taken more than LONGEST_ADVANCE tokens since."""
        return self._place

    def rollback(self, snapshot: _Place) -> None:
        """Forget all tokens since a snapshot."""
        self._restore(snapshot)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        for part in (self._bytes, self._patches, self._encoder, self._decoder):
            part.select(rows)
        place, chosen = self._place, list(rows)
        self._place = replace(
            place,
            boundaries=tuple(place.boundaries[row] for row in rows),
            patches=place.patches[chosen],
            tail=place.tail[chosen],
            key=place.key[chosen],
            read=place.read[chosen],
        )

    def append(self, other: "HNetRows") -> None:
        """The rows of another, after these."""
        self._bytes.append(other._bytes)
        self._patches.append(other._patches)
        self._encoder.append(other._encoder)
        self._decoder.append(other._decoder)
        one, two = self._place, other._place
        self._place = _Place(
            boundaries=one.boundaries + two.boundaries,
            patches=np.append(one.patches, two.patches),
            tail=torch.cat([one.tail, two.tail]),
            key=torch.cat([one.key, two.key]),
            read=torch.cat([one.read, two.read]),
        )
