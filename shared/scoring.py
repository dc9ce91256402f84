"""Next-byte entropies of whole documents from streams of fixed length: the same bits whatever lies beside a document.

Documents begin at multiples of the attention band on one endless axis, which is cut every T tokens; a document that a
cut divides goes on from carried keys and values. Every product of matrices therefore has the same shape, and every
document the same place within its bands, in every stream.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from shared.attention import BAND
from shared.batch import segments
from shared.entropy_model import Carry, EntropyModel, entropy
from shared.layers import rounded_to
from shared.vocabulary import BOE, document_tokens

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class _Pending:
    """A document on its way through the streams."""

    inputs: np.ndarray
    """int16 [n + 1]: every token but the last."""
    placed: int = 0
    entropies: list[np.ndarray] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.inputs) - self.placed


class Scorer:
    """Scores documents with an entropy model; memory is bounded by a stream, its carry and the documents in it."""

    def __init__(
        self,
        model: EntropyModel,
        stream_length: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        """``stream_length``: tokens a stream, part of the numerics class (law 5). The model is copied, not changed."""
        if stream_length <= 0 or stream_length % BAND:
            raise ValueError(f"stream_length {stream_length} must be a positive multiple of {BAND}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r} must be one of {', '.join(_DTYPES)}")
        self.stream_length = stream_length
        self.device = torch.device(device)
        self.model = rounded_to(copy.deepcopy(model).to(self.device), _DTYPES[dtype]).eval().requires_grad_(False)

    def score(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Entropies of each document, in order, as soon as the stream that ends it is done.

        Args:
            documents: int16 [n + 2] each, tokens [BOS, b1..bn, EOS].

        Yields:
            float32 [n + 1] nats each: at i the entropy of token i + 1 given the tokens up to i. EOS is not an input.
        """
        source = (_Pending(np.asarray(document[:-1])) for document in documents)
        pending: list[_Pending] = []
        with torch.inference_mode():
            carry = self.model.empty_carry()
        exhausted = False
        while not exhausted:
            fill, pieces = 0, []
            current: _Pending | None = pending[-1] if pending and pending[-1].left else None
            while fill < self.stream_length:
                if current is None:
                    current = next(source, None)
                    if current is None:
                        exhausted = True
                        break
                    assert current.left, "a document has at least BOS as an input"
                    pending.append(current)
                taken = min(current.left, self.stream_length - fill)
                pieces.append((current, current.placed, fill, taken))
                current.placed += taken
                fill += -(-taken // BAND) * BAND
                if not current.left:
                    current = None
            if pieces:
                entropies, carry = self._stream(pieces, carry)
                for document, _, at, taken in pieces:
                    document.entropies.append(entropies[at : at + taken].copy())
            while pending and not pending[0].left:
                done = pending.pop(0).entropies
                yield done[0] if len(done) == 1 else np.concatenate(done)

    def _stream(self, pieces: list[tuple[_Pending, int, int, int]], carry: Carry) -> tuple[np.ndarray, Carry]:
        """One stream: (document, from, place in the stream, tokens) each; gaps become documents of their own."""
        ids = np.full(self.stream_length, BOE, np.int64)
        positions = np.arange(self.stream_length, dtype=np.int64)
        lengths = []
        for number, (document, start, at, taken) in enumerate(pieces):
            ids[at : at + taken] = document.inputs[start : start + taken]
            positions[at : at + taken] += start - at
            end = pieces[number + 1][2] if number + 1 < len(pieces) else self.stream_length
            positions[at + taken : end] -= at + taken
            lengths += [taken, end - at - taken] if end > at + taken else [taken]
        with torch.inference_mode():
            stream = segments(lengths, positions).to(self.device)
            logits, carry = self.model.forward_carried(torch.from_numpy(ids).to(self.device), stream, carry)
            return entropy(logits).cpu().numpy(), carry


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
