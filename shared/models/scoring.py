"""Next-byte entropies of whole documents from streams of fixed length: the same bits whatever lies beside a document.

Documents begin at multiples of the attention band on one endless axis, which is cut every T tokens; a document that a
cut divides goes on from carried keys and values. Every product of matrices therefore has the same shape, and every
document the same place within its bands, in every stream.
"""

import copy
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.inputs import DocumentScorer, Inputs
from shared.layers.batch import Segments, segments
from shared.layers.blocks import DTYPES, Precision, cast_model
from shared.layers.tile_sizes import BAND
from shared.models.entropy_model import EntropyModel, KVCache, entropy
from shared.vocabulary import BOE, document_tokens


class _Feed:
    """A document on its way into the streams."""

    def __init__(self, inputs: Inputs) -> None:
        assert inputs.count, "a document has at least BOS as an input"
        self._chunks, self._chunk = inputs.chunks, np.zeros(0, np.int16)
        self.placed, self.left = 0, inputs.count

    def pop(self, count: int) -> np.ndarray:
        """int16 [count], the next inputs."""
        taken: list[np.ndarray] = []
        wanted = count
        while wanted:
            if not len(self._chunk):
                self._chunk = next(self._chunks)
            taken.append(self._chunk[:wanted])
            self._chunk = self._chunk[wanted:]
            wanted -= len(taken[-1])
        self.placed, self.left = self.placed + count, self.left - count
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


@dataclass(frozen=True)
class _Piece:
    """Inputs of one document in one stream."""

    ids: np.ndarray
    start: int
    """Position of the first in its document."""
    at: int
    """Place of the first in the stream."""
    last: bool


class Scorer(DocumentScorer):
    """Scores documents with an entropy model; memory is bounded by a stream, its carry and the documents in it."""

    def __init__(
        self,
        model: EntropyModel,
        stream_length: int,
        dtype: Precision = "float32",
        device: torch.device | str = "cpu",
        in_flight: int | None = None,
    ) -> None:
        """The model is copied, not changed.

        Args:
            stream_length: tokens a stream, part of the numerics class (law 5).
            in_flight: streams that are begun before the oldest is waited for; no part of any result. None: one on a
                CPU, which has nothing to wait for, and two elsewhere.
        """
        if stream_length <= 0 or stream_length % BAND:
            raise ValueError(f"stream_length {stream_length} must be a positive multiple of {BAND}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
        self.stream_length = stream_length
        self.device = torch.device(device)
        self._in_flight = in_flight or (1 if self.device.type == "cpu" else 2)
        self.model = cast_model(copy.deepcopy(model).to(self.device), DTYPES[dtype]).eval().requires_grad_(False)

    def score_pieces(self, documents: Iterable[Inputs]) -> Iterator[tuple[np.ndarray, bool]]:
        """Entropies as they come out of the streams: float32 [k] nats, and whether they end their document.

        Documents are read as they are needed, so that one of any length takes the memory of a stream.
        """
        source = map(_Feed, documents)
        with torch.inference_mode():
            carry = self.model.empty_carry()
        current: _Feed | None = None
        running: deque[tuple[list[_Piece], _Arriving]] = deque()
        exhausted = False
        while running or not exhausted:
            fill = 0
            pieces: list[_Piece] = []
            while fill < self.stream_length and not exhausted:
                if current is None:
                    current = next(source, None)
                    if current is None:
                        exhausted = True
                        break
                start, count = current.placed, min(current.left, self.stream_length - fill)
                pieces.append(_Piece(current.pop(count), start, fill, not current.left))
                fill += -(-count // BAND) * BAND
                if not current.left:
                    current = None
            if pieces:
                found, carry = self._stream(pieces, carry)
                running.append((pieces, _Arriving(found)))
            if len(running) >= self._in_flight or (exhausted and running):
                done, arriving = running.popleft()
                entropies = arriving.get()
                for piece in done:
                    yield entropies[piece.at : piece.at + len(piece.ids)].copy(), piece.last

    def _stream(self, pieces: list[_Piece], carry: KVCache) -> tuple[Tensor, KVCache]:
        """One stream, begun: entropies fp32 [T] where they are computed. Gaps become documents of their own."""
        ids = np.full(self.stream_length, BOE, np.int64)
        positions = np.arange(self.stream_length, dtype=np.int64)
        lengths = []
        for number, piece in enumerate(pieces):
            stop = piece.at + len(piece.ids)
            ids[piece.at : stop] = piece.ids
            positions[piece.at : stop] += piece.start - piece.at
            end = pieces[number + 1].at if number + 1 < len(pieces) else self.stream_length
            positions[stop:end] -= stop
            lengths += [len(piece.ids), end - stop] if end > stop else [len(piece.ids)]
        with torch.inference_mode():
            logits, carry = self.model.forward_with_cache(*self._sent(ids, segments(lengths, positions)), carry)
            return entropy(logits), carry

    def _sent(self, ids: np.ndarray, documents: Segments) -> tuple[Tensor, Segments]:
        """Ids and documents on the device, by one copy that nobody waits for."""
        parts = [torch.from_numpy(ids), documents.ids, documents.positions, documents.offsets.long()]
        together = torch.cat(parts)
        if self.device.type == "cuda":
            together = together.pin_memory()
        tokens, numbers, positions, offsets = together.to(self.device, non_blocking=True).split([len(p) for p in parts])
        return tokens, Segments(numbers, positions, offsets.int(), documents.lengths)


class _Arriving:
    """A result on its way from the device; the copy begins at once, behind the work that makes it."""

    def __init__(self, found: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._here = found if found.is_cuda else found.cpu()
        if found.is_cuda:
            self._here = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._here.copy_(found, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def get(self) -> np.ndarray:
        """Wait for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._here.numpy()


def probe(scorer: Scorer) -> str:
    """sha256 over the entropies of fixed documents that fill one stream: equal in one numerics class (law 5)."""
    sizes: list[int] = []
    noise = hashlib.shake_256(b"patchwork probe").digest(scorer.stream_length)
    while sum(sizes) + BAND <= scorer.stream_length:
        sizes.append(min(BAND * (1 + len(sizes) ** 2), scorer.stream_length - sum(sizes)))
    ends = np.cumsum(sizes)
    # A document of n bytes has n + 1 inputs; the odd ones leave a gap before the next.
    documents = [
        document_tokens(noise[end - size : end - 1 - number % 2]) for number, (size, end) in enumerate(zip(sizes, ends))
    ]
    digest = hashlib.sha256()
    for entropies in scorer.score(documents):
        digest.update(entropies.astype("<f4").tobytes())
    return digest.hexdigest()
