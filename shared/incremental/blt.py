"""The byte latent transformer over growing documents: bytes pass the local models, the global one runs once a patch.

Shapes: R rows, n tokens that each row takes, P patches that end among them, M their bytes, X cross-attentions (1 for
pooling without any),
K vectors a patch, D local width, G key/value heads, C head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.incremental.patches import GrowingPatches
from shared.incremental.rows import RowTensor
from shared.incremental.slots import Placement, Slots
from shared.incremental.stack import Rotations, StackCache
from shared.layers.blocks import Block, compute_dtype
from shared.layers.cross_attention import BytesReadPatches
from shared.layers.ngrams import PRIMES
from shared.layers.weight_formats import cache_dtype
from shared.model_settings import NgramSettings
from shared.models.blt import Blt

_FIRST_PENDING = 64  # bytes of a patch in progress that there is room for; doubles as patches grow

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
    """Where rows stand, besides what lies in slots. Immutable, so that a place can be gone back to."""

    tokens: np.ndarray
    """int64 [R]."""
    patches: np.ndarray
    """int64 [R], patches that the global model has read."""
    waiting: np.ndarray
    """int64 [R], bytes of the patch in progress."""
    tail: Tensor
    """int64 [R, M], the last tokens of each row, which n-grams reach."""
    read: tuple[Tensor, ...]
    """For each cross-attention of the decoder: keys and values [R, K, 2, G, C] of the last complete patch."""


@dataclass(frozen=True)
class _Advance:
    """What an advance has found, until it is known how much of it stays."""

    ids: Tensor
    """int64 [R, n]."""
    ends: np.ndarray
    """bool [R, n], whether a patch ends with each token."""
    reads: np.ndarray
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
        kept = cache_dtype(model, dtype)
        self.model = model
        self._ngrams = NgramTail(settings.ngrams, device)
        self._bytes = Slots(rows, settings.window, device)
        self._patches = GrowingPatches(model.global_.blocks, settings.global_, rows, kept, device)
        self._encoder = StackCache(settings.encoder, self._bytes, kept, device)
        self._decoder = StackCache(settings.decoder, self._bytes, kept, device)
        stacks = {"encoder": settings.encoder, "decoder": settings.decoder}
        self._rotations = {name: Rotations(stack, device) for name, stack in stacks.items()}
        crossing = len(model.encoder.blocks) - model.encoder.first
        shape = (rows, _FIRST_PENDING, crossing, settings.encoder.width)
        self._pending = RowTensor(torch.zeros(shape, dtype=dtype, device=device))
        """[R, L, X, D], encoder states of the bytes of the patch in progress: the first ``waiting`` of each row."""
        nothing = torch.zeros(
            (rows, settings.queries, 2, settings.decoder.key_value_heads, settings.decoder.head_width), device=device
        )
        self._place = _Place(
            tokens=np.zeros(rows, np.int64),
            patches=np.zeros(rows, np.int64),
            waiting=np.zeros(rows, np.int64),
            tail=torch.zeros(rows, self._ngrams.length, dtype=torch.int64, device=device),
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
        longest = int(self._place.tokens.max()) + ids.shape[1]
        x = self._encode(ids, place, longest)
        table, reads = self._read_patches(ends)
        index = torch.from_numpy(reads.flatten()).to(ids.device)
        rotations = self._rotations["decoder"].at(place, longest)
        for layer, block in enumerate(decoder.blocks):
            assert isinstance(block, Block)
            if layer < len(table):
                cross = decoder.cross[layer]
                assert isinstance(cross, BytesReadPatches)
                x = cross.read(x, table[layer].index_select(0, index))
            x = self._decoder.step(layer, block, x, rotations[layer], place)
        self._last = _Advance(ids, ends, reads, table)
        logits: Tensor = model.decoder.logits(x).unflatten(0, ids.shape)
        return logits

    def _encode(self, ids: Tensor, place: Placement, longest: int) -> Tensor:
        """Byte states [R n, D] after the encoder. Those that patches read are put behind the patch in progress."""
        model, encoder = self.model, self.model.encoder
        x: Tensor = encoder.embedding(ids.flatten())
        if model.settings.ngrams.sizes:
            rows = self._ngrams.rows(self._place.tail, ids)
            x = x + F.embedding_bag(rows, model.ngrams.weight, mode="sum")
        rotations = self._rotations["encoder"].at(place, longest)
        kept = []
        for layer, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            x = self._encoder.step(layer, block, x, rotations[layer], place)
            if layer >= encoder.first:
                kept.append(x)
        waiting, count = self._place.waiting, ids.shape[1]
        self._pending.lengthen(int(waiting.max()) + count, doubling=True)
        self._flat_pending().index_copy_(
            0, self._pending_index(waiting[:, None] + np.arange(count)), torch.stack(kept, 1)
        )
        return x

    def _flat_pending(self) -> Tensor:
        """[R L, X, D], a view."""
        flat: Tensor = self._pending.rows.flatten(0, 1)
        return flat

    def _pending_index(self, places: np.ndarray, rows: np.ndarray | None = None) -> Tensor:
        """On the axis [R L]: places int64 [R, n], or [m] in ``rows`` int64 [m], -> int64 [R n] or [m]."""
        first = np.arange(len(places))[:, None] if rows is None else rows
        index = (first * self._pending.rows.shape[1] + places).flatten()
        return torch.from_numpy(index).to(self._pending.rows.device)

    def _read_patches(self, ends: np.ndarray) -> tuple[tuple[Tensor, ...], np.ndarray]:
        """Run the global model over the patches that end here.

        Returns what the decoder can read, as in `_Advance.table`, and int64 [R, n], what it reads at each token.
        """
        rows, waiting = len(ends), self._place.waiting
        counts = ends.sum(1)
        if not counts.any():
            return self._place.read, np.arange(rows)[:, None].repeat(ends.shape[1], 1)
        # From the token that ends a patch on, the decoder reads that patch.
        ended = np.cumsum(ends, 1)
        number = (np.cumsum(counts) - counts)[:, None] + ended - 1
        reads = np.where(ended > 0, rows + number, np.arange(rows)[:, None])
        # A patch begins with its row's first waiting byte, or where the one before it in the row ends.
        row, end = np.nonzero(ends)
        end = waiting[row] + end + 1
        begin = np.append(0, end[:-1]) * np.append(False, row[1:] == row[:-1])
        lengths = end - begin
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        index = self._pending_index(np.repeat(begin, lengths) + within, np.repeat(row, lengths))
        vectors = self._patch_vectors(self._flat_pending().index_select(0, index), lengths)
        out = self._run_global(vectors, counts)
        settings, decoder = self.model.settings, self.model.decoder
        vectors = decoder.patch_projection(out).unflatten(-1, (settings.queries, settings.decoder.width))
        table = []
        for cross, before in zip(decoder.cross, self._place.read):
            assert isinstance(cross, BytesReadPatches)
            table.append(torch.cat([before, cross.keys_values(vectors)]))
        return tuple(table), reads

    def _patch_vectors(self, states: Tensor, lengths: np.ndarray) -> Tensor:
        """Byte states [M, X, D] of patches of these lengths -> [P, K, D]."""
        encoder, count = self.model.encoder, len(lengths)
        of_token = torch.from_numpy(np.repeat(np.arange(count), lengths)).to(states.device)
        vectors = encoder.pool(states[:, 0], of_token, count)
        for cross, tokens in zip(encoder.cross, states.unbind(1)):
            vectors = cross(vectors, tokens, of_token)
        return vectors

    def _run_global(self, vectors: Tensor, counts: np.ndarray) -> Tensor:
        """Patch vectors [P, K, D], row by row ``counts`` of them -> global states [P, D_global]."""
        return self._patches.run(self.model.global_.inputs(vectors), counts)

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens (at least one) of each row's last advance."""
        last, before, counts = self._last, self._place, np.asarray(kept, np.int64)
        assert last is not None, "accept follows an advance"
        assert counts.min() >= 1, "an advance that keeps nothing of a row was in vain"
        self._last = None
        rows, count = last.ends.shape
        device = last.ids.device
        tail = torch.cat([before.tail, last.ids], 1)
        if counts.min() == count:
            tail = tail[:, count:]
        else:
            upto = torch.from_numpy(counts).to(device)[:, None]
            tail = tail.gather(1, upto + torch.arange(before.tail.shape[1], device=device))
        ends = last.ends & (np.arange(count) < counts[:, None])
        ended = ends.sum(1)
        # What is left of the last advance behind the last end in each row.
        fresh = np.where(ended > 0, counts - (count - ends[:, ::-1].argmax(1)), counts)
        self._close_up(before.waiting, counts, np.where(ended > 0, fresh, 0))
        read = before.read
        if last.table is not read:
            reads = torch.from_numpy(last.reads[np.arange(rows), counts - 1]).to(device)
            read = tuple(x.index_select(0, reads) for x in last.table)
        waiting = np.where(ended > 0, fresh, before.waiting + counts)
        self._restore(_Place(before.tokens + counts, before.patches + ended, waiting, tail, read))

    def _close_up(self, waiting: np.ndarray, kept: np.ndarray, left: np.ndarray) -> None:
        """Move the ``left`` newest bytes of each row, int64 [R], to the front: the patch before them has ended."""
        if not left.any():
            return
        row = np.repeat(np.arange(len(left)), left)
        place = np.arange(len(row)) - np.repeat(np.cumsum(left) - left, left)
        source = np.repeat(waiting + kept - left, left) + place
        moved = self._flat_pending().index_select(0, self._pending_index(source, row))
        self._flat_pending().index_copy_(0, self._pending_index(place, row), moved)

    def _restore(self, place: _Place) -> None:
        self._place = place
        self._bytes.lengths = place.tokens
        self._patches.lengths = place.patches

    def snapshot(self) -> _Place:
        """Where the rows stand; good for `rollback` while no patch has ended, and no row has taken more than
        LONGEST_ADVANCE tokens, since.
        """
        return self._place

    def rollback(self, snapshot: _Place) -> None:
        """Forget all tokens since a snapshot."""
        self._restore(snapshot)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        for part in (self._bytes, self._patches, self._encoder, self._decoder, self._pending):
            part.select(rows)
        place, chosen = self._place, list(rows)
        self._place = _Place(
            tokens=place.tokens[chosen],
            patches=place.patches[chosen],
            waiting=place.waiting[chosen],
            tail=place.tail[chosen],
            read=tuple(x[chosen] for x in place.read),
        )

    def append(self, other: "BltRows") -> None:
        """The rows of another, after these."""
        self._bytes.append(other._bytes)
        self._patches.append(other._patches)
        self._encoder.append(other._encoder)
        self._decoder.append(other._decoder)
        self._pending.lengthen(other._pending.rows.shape[1])
        self._pending.append(other._pending.rows)
        one, two = self._place, other._place
        self._place = _Place(
            tokens=np.append(one.tokens, two.tokens),
            patches=np.append(one.patches, two.patches),
            waiting=np.append(one.waiting, two.waiting),
            tail=torch.cat([one.tail, two.tail]),
            read=tuple(map(torch.cat, zip(one.read, two.read))),
        )
