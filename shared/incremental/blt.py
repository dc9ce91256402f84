"""The byte latent transformer over growing documents: bytes pass the local models, the global one runs once a patch.

Shapes: R rows, n tokens that each row takes, P patches that end among them, M their bytes, X cross-attentions (1 for
pooling without any),
K vectors a patch, D local width, G key/value heads, C head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.incremental.patches import GrowingPatches
from shared.incremental.slots import Placement, Slots
from shared.incremental.stack import Rotations, StackCache
from shared.layers.blocks import Block, compute_dtype
from shared.layers.cross_attention import BytesReadPatches
from shared.layers.ngrams import PRIMES
from shared.model_settings import NgramSettings
from shared.models.blt import Blt

# ---- Hash n-grams of the newest tokens of growing documents, from a tail of the tokens before them.
#
# Shapes: R rows, n new tokens, M tokens of tail, F hash functions, N n-gram sizes.


class NgramTail:
    """The rows of the fused n-gram table that new tokens read, equal to `shared.layers.ngrams.ngram_rows`."""

    def __init__(self, settings: NgramSettings, device: torch.device) -> None:
        self.length = max(settings.sizes, default=1) - 1
        """M: how many tokens before a new one its n-grams reach."""
        self._rows = settings.rows
        span = self.length + 1
        powers = [
            # The oldest token of each n-gram has power 0; products and sums wrap as int64 does.
            [pow(prime, place - (span - size), 1 << 64) if place >= span - size else 0 for place in range(span)]
            for prime in PRIMES[: settings.functions]
            for size in settings.sizes
        ]
        self._powers = torch.from_numpy(np.array(powers, np.uint64).astype(np.int64)).to(device)
        self._tables = torch.arange(len(powers), device=device) * settings.rows

    def rows(self, tail: Tensor, ids: Tensor) -> Tensor:
        """tail int64 [R, M] (0 before a document), ids int64 [R, n] -> int64 [R n, F N]."""
        windows = torch.cat([tail, ids], 1).unfold(1, self.length + 1, 1).flatten(0, 1)
        hashed = (windows[:, None] * self._powers).sum(-1)
        return torch.remainder(hashed, self._rows) + self._tables


@dataclass(frozen=True)
class _Place:
    """Where rows stand, besides their keys and values. Immutable, so that a place can be gone back to."""

    tokens: tuple[int, ...]
    patches: tuple[int, ...]
    """Patches that the global model has read, by row."""
    tail: Tensor
    """int64 [R, M], the last tokens of each row, which n-grams reach."""
    pending: tuple[tuple[Tensor, ...], ...]
    """By row: encoder states [X, m, D] of the bytes of the patch in progress, for each of its cross-attentions."""
    read: tuple[Tensor, ...]
    """For each cross-attention of the decoder: keys and values [R, K, 2, G, C] of the last complete patch."""


@dataclass(frozen=True)
class _Advance:
    """What an advance has found, until it is known how much of it stays."""

    ids: Tensor
    """int64 [R, n]."""
    states: Tensor
    """[X, R, n, D]."""
    ends: np.ndarray
    """bool [R, n], whether a patch ends with each token."""
    reads: Tensor
    """int64 [R, n], which entry of ``table`` the decoder read at each token."""
    table: tuple[Tensor, ...]
    """For each cross-attention of the decoder [R + P, K, 2, G, C]: what rows read before, then each new patch's."""


class BltRows:
    """R documents before a byte latent transformer.

    Tokens are taken in two steps: `advance` reads them, `accept` keeps some of each row. `snapshot` and `rollback`
    forget what was kept since.
    """

    def __init__(self, model: Blt, rows: int = 1) -> None:
        settings, weight = model.settings, model.encoder.embedding.weight
        device, dtype = weight.device, compute_dtype(weight)
        self.model = model
        self._ngrams = NgramTail(settings.ngrams, device)
        self._bytes = Slots(rows, settings.window, device)
        self._patches = GrowingPatches(model.global_.blocks, settings.global_, rows, dtype, device)
        self._encoder = StackCache(settings.encoder, self._bytes, dtype, device)
        self._decoder = StackCache(settings.decoder, self._bytes, dtype, device)
        stacks = {"encoder": settings.encoder, "decoder": settings.decoder}
        self._rotations = {name: Rotations(stack, device) for name, stack in stacks.items()}
        nothing = torch.zeros(
            (rows, settings.queries, 2, settings.decoder.key_value_heads, settings.decoder.head_width), device=device
        )
        self._place = _Place(
            tokens=(0,) * rows,
            patches=(0,) * rows,
            tail=torch.zeros(rows, self._ngrams.length, dtype=torch.int64, device=device),
            pending=((),) * rows,
            read=(nothing,) * len(model.decoder.cross),
        )
        self._last: _Advance | None = None

    @property
    def global_forwards(self) -> int:
        """Patches that the global model has read in all rows."""
        return self._patches.forwards

    def advance(self, ids: Tensor, ends: np.ndarray) -> Tensor:
        """The next tokens of each row -> logits fp32 [R, n, V]. Nothing is kept before `accept`.

        Args:
            ids: int64 [R, n].
            ends: bool [R, n], whether a patch ends with each token, that is, the next one begins a patch.
        """
        model, decoder = self.model, self.model.decoder
        place = self._bytes.place(ids.shape[1])
        states = self._encode(ids, place)
        table, reads = self._read_patches(states, ends)
        index = torch.from_numpy(reads.flatten()).to(ids.device)
        x = states[-1].flatten(0, 1)
        rotation = self._rotations["decoder"].at(place, self._longest(ids))
        for layer, block in enumerate(decoder.blocks):
            assert isinstance(block, Block)
            if layer < len(table):
                cross = decoder.cross[layer]
                assert isinstance(cross, BytesReadPatches)
                x = cross.read(x, table[layer].index_select(0, index))
            x = self._decoder.step(layer, block, x, rotation, place)
        self._last = _Advance(ids, states, ends, index.view(ids.shape), table)
        logits: Tensor = model.decoder.logits(x).unflatten(0, ids.shape)
        return logits

    def _longest(self, ids: Tensor) -> int:
        return max(self._bytes.lengths) + ids.shape[1]

    def _encode(self, ids: Tensor, place: Placement) -> Tensor:
        """Byte states after each encoder layer whose bytes patches read: [X, R, n, D]."""
        model, encoder = self.model, self.model.encoder
        x = encoder.embedding(ids.flatten())
        if model.settings.ngrams.sizes:
            rows = self._ngrams.rows(self._place.tail, ids)
            x = x + F.embedding_bag(rows, model.ngrams.weight, mode="sum")
        rotation = self._rotations["encoder"].at(place, self._longest(ids))
        kept = []
        for layer, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            x = self._encoder.step(layer, block, x, rotation, place)
            if layer >= encoder.first:
                kept.append(x)
        states: Tensor = torch.stack(kept).unflatten(1, ids.shape)
        return states

    def _read_patches(self, states: Tensor, ends: np.ndarray) -> tuple[tuple[Tensor, ...], np.ndarray]:
        """Run the global model over the patches that end here.

        Returns what the decoder can read, as in `_Advance.table`, and int64 [R, n], what it reads at each token.
        """
        rows, count = ends.shape
        reads = np.arange(rows)[:, None].repeat(count, 1)
        pieces: list[Tensor] = []
        lengths: list[int] = []
        counts = ends.sum(1)
        if not counts.any():
            return self._place.read, reads
        for row in np.flatnonzero(counts):
            begin, waiting = 0, list(self._place.pending[row])
            for end in (np.flatnonzero(ends[row]) + 1).tolist():
                pieces += waiting
                pieces.append(states[:, row, begin:end])
                lengths.append(sum(piece.shape[1] for piece in waiting) + end - begin)
                begin, waiting = end, []
            # From the token that ends a patch on, the decoder reads that patch.
            number = len(lengths) - counts[row] + np.cumsum(ends[row]) - 1
            reads[row] = np.where(np.cumsum(ends[row]) > 0, rows + number, row)
        vectors = self._patch_vectors(torch.cat(pieces, 1), lengths)
        out = self._run_global(vectors, counts)
        settings, decoder = self.model.settings, self.model.decoder
        vectors = decoder.patch_projection(out).unflatten(-1, (settings.queries, settings.decoder.width))
        table = []
        for cross, before in zip(decoder.cross, self._place.read):
            assert isinstance(cross, BytesReadPatches)
            table.append(torch.cat([before, cross.keys_values(vectors)]))
        return tuple(table), reads

    def _patch_vectors(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """Byte states [X, M, D] of patches of these lengths -> [P, K, D]."""
        encoder, count = self.model.encoder, len(lengths)
        of_token = torch.from_numpy(np.repeat(np.arange(count), lengths)).to(states.device)
        vectors = encoder.pool(states[0], of_token, count)
        for cross, tokens in zip(encoder.cross, states):
            vectors = cross(vectors, tokens, of_token)
        return vectors

    def _run_global(self, vectors: Tensor, counts: np.ndarray) -> Tensor:
        """Patch vectors [P, K, D], row by row ``counts`` of them -> global states [P, D_global]."""
        model = self.model.global_
        x = vectors.flatten(1)
        if model.input_projection is not None:
            x = model.input_projection(x)
        return self._patches.run(x, counts)

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens (at least one) of each row's last advance."""
        last, before = self._last, self._place
        assert last is not None, "accept follows an advance"
        assert min(kept) >= 1, "an advance that keeps nothing of a row was in vain"
        self._last = None
        rows, count = last.ends.shape
        tail = torch.cat([before.tail, last.ids], 1)
        if min(kept) == count:
            tail, reads = tail[:, count:], last.reads[:, -1]
        else:
            upto = torch.tensor(kept, device=tail.device)[:, None]
            tail = tail.gather(1, upto + torch.arange(before.tail.shape[1], device=tail.device))
            reads = last.reads.gather(1, upto - 1)[:, 0]
        pending = []
        for row in range(rows):
            ended = np.flatnonzero(last.ends[row, : kept[row]])
            begin = int(ended[-1]) + 1 if len(ended) else 0
            waiting = () if len(ended) else before.pending[row]
            fresh = last.states[:, row, begin : kept[row]]
            pending.append((*waiting, fresh) if fresh.shape[1] else waiting)
        self._restore(
            _Place(
                tokens=tuple(length + number for length, number in zip(before.tokens, kept)),
                patches=tuple(
                    length + int(last.ends[row, : kept[row]].sum()) for row, length in enumerate(before.patches)
                ),
                tail=tail,
                pending=tuple(pending),
                read=before.read if last.table is before.read else tuple(x.index_select(0, reads) for x in last.table),
            )
        )

    def _restore(self, place: _Place) -> None:
        self._place = place
        self._bytes.lengths = list(place.tokens)
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
        place = self._place
        self._place = replace(
            place,
            tokens=tuple(place.tokens[row] for row in rows),
            patches=tuple(place.patches[row] for row in rows),
            tail=place.tail[list(rows)],
            pending=tuple(place.pending[row] for row in rows),
            read=tuple(x[list(rows)] for x in place.read),
        )

    @classmethod
    def joined(cls, parts: Sequence["BltRows"]) -> "BltRows":
        """The rows of all parts, one after another."""
        whole = cls(parts[0].model, 0)
        whole._bytes = Slots.joined([part._bytes for part in parts])
        whole._patches.join([part._patches for part in parts])
        whole._encoder = StackCache.joined([part._encoder for part in parts], whole._bytes)
        whole._decoder = StackCache.joined([part._decoder for part in parts], whole._bytes)
        places = [part._place for part in parts]
        whole._place = _Place(
            tokens=sum((place.tokens for place in places), ()),
            patches=sum((place.patches for place in places), ()),
            tail=torch.cat([place.tail for place in places]),
            pending=sum((place.pending for place in places), ()),
            read=tuple(torch.cat(parts) for parts in zip(*(place.read for place in places))),
        )
        return whole
