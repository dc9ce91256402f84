"""What the benchmarks of a training step share: the model, a batch of real text, and how time is taken.

The model is that of 20.8 M parameters at which transformers was measured before: local width 256 with 1 + 3 layers,
global width 512 with 4 layers, 2 queries a patch, 6 n-gram tables of 2048 rows, window 512.
"""

import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.batch import Batch, Patches, segments
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.vocabulary import document_tokens

LOCAL = {"width": 256, "heads": 4, "feed_forward": 704}
BLT = BltSettings.model_validate(
    {
        "ngrams": {"rows": 2048},
        "encoder": LOCAL | {"layers": 1},
        "global": {"width": 512, "layers": 4, "heads": 4, "feed_forward": 1408},
        "decoder": LOCAL | {"layers": 3},
        "window": 512,
    }
)
BYTES_PER_PATCH = 4.5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_text(path: Path | None) -> bytes:
    """A file, or the standard library's sources."""
    if path is not None:
        return path.read_bytes()
    return b"".join(file.read_bytes() for file in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")))


def draw_lengths(tokens: int, seed: int, mean: float) -> np.ndarray:
    """Patch lengths of so many tokens in the mean that cover ``tokens``, the first of them BOS alone."""
    sampled = np.random.default_rng(seed).geometric(1 / mean, tokens)
    ends = np.minimum(1 + np.cumsum(sampled), tokens)
    return np.diff(np.concatenate([[0, 1], ends[: int(np.searchsorted(ends, tokens)) + 1]]))


@dataclass(frozen=True)
class Example:
    """The same documents as our flat batch, and as the rows that transformers takes."""

    batch: Batch
    ids: Tensor
    """int64 [rows, S]."""
    lengths: Tensor
    """int64 [rows, patches], of S + 1 tokens, zeros behind."""

    @property
    def patches(self) -> Patches:
        assert isinstance(self.batch.patches, Patches)
        return self.batch.patches

    @property
    def tokens(self) -> int:
        return self.ids.numel()


def example(text: bytes, rows: int, size: int, bytes_per_patch: float = BYTES_PER_PATCH) -> Example:
    """``rows`` documents of ``size`` inputs each."""
    documents = [document_tokens(text[row * size : (row + 1) * size - 1]) for row in range(rows)]
    assert all(len(tokens) == size + 1 for tokens in documents), f"{len(text)} bytes of text are not enough"
    lengths = [draw_lengths(size + 1, row, bytes_per_patch) for row in range(rows)]
    owners = [np.repeat(np.arange(len(each)), each) for each in lengths]
    # A last patch that holds EOS alone is none of a pack's.
    counts = [int(owner[-2]) + 1 for owner in owners]
    first = np.cumsum([0, *counts])

    def flat(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    patches = Patches(
        flat([owner[:-1] + start for owner, start in zip(owners, first)]),
        flat([owner[1:] - 1 + start for owner, start in zip(owners, first)]),
        segments(counts),
    )
    inputs, labels = flat([tokens[:-1] for tokens in documents]), flat([tokens[1:] for tokens in documents])
    padded = [np.pad(each, (0, max(map(len, lengths)) - len(each))) for each in lengths]
    batch = Batch(inputs, labels, segments([size] * rows), patches)
    return Example(batch, inputs.view(rows, size), torch.from_numpy(np.stack(padded).astype(np.int64)))


def fresh_model(settings: BltSettings = BLT) -> Blt:
    model = Blt(settings)
    initialise(model, 0)
    return model


def our_logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(batch.ids, batch.documents, batch.patches)
    return logits


def learn(model: nn.Module, logits: Callable[[], Tensor], labels: Tensor) -> None:
    """Forward, mean cross-entropy, backward."""
    for parameter in model.parameters():
        parameter.grad = None
    F.cross_entropy(logits().float(), labels).backward()


@dataclass
class Timing:
    """Runs of one thing."""

    processor: list[float] = field(default_factory=list)
    """Seconds of all threads."""
    wall: list[float] = field(default_factory=list)

    def add(self, work: Callable[[], object]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.processor.append(time.process_time() - processor)
        self.wall.append(time.perf_counter() - wall)

    @property
    def seconds(self) -> list[float]:
        """What a busy machine changes least: with one thread that thread's own seconds, else those on the clock."""
        return self.processor if torch.get_num_threads() == 1 else self.wall

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def alternately(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each in turn, again and again, so that all meet the same machine."""
    timings = {name: Timing() for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            timings[name].add(work)
    return timings


def product_peak(dtype: torch.dtype, size: int = 2048, rounds: int = 4) -> float:
    """FLOP a second of this machine's largest products of matrices."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    return 2 * size**3 / alternately({"product": lambda: left @ right}, rounds)["product"].best


def share_of_peak(rate: float, peaks: Sequence[float]) -> str:
    """``rate`` as a share of the largest of ``peaks``, which were measured before and during the same run.

    Without a share where they differ by more than 10%, or where ``rate`` is above all of them: then they are no peak.
    """
    least, most = min(peaks), max(peaks)
    if least < 0.9 * most:
        return f"no share: products reached {least / 1e9:.0f} to {most / 1e9:.0f} GFLOP/s"
    if rate > most:
        return f"no share: products alone reached only {most / 1e9:.0f} GFLOP/s"
    return f"{rate / most:.0%} of {most / 1e9:.0f}"
