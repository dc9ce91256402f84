"""A training step of H-Net beside one of a BLT with the same stacks, and what finding the boundaries takes of it.

    python tests/benchmarks/bench_routing.py [--tokens 8192] [--rounds 7] [--size 4.5]

Both have the same text in documents of 2,000 bytes, the same stacks and no n-gram tables; the BLT has static patches of
about the size that H-Net's room is for. Steps are forward and backward, taken alternately; the ratio is the median over
rounds, in CPU time of this process on one thread. Nothing is asserted.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from shared.layers.batch import Batch, Patches, patch_room, segments
from shared.layers.routing import patch_ends, smoothed
from shared.model_settings import BltSettings, HNetSettings
from shared.models.blt import Blt
from shared.models.hnet import HNet
from shared.models.initialise import initialise
from shared.vocabulary import BOS, OFFSET
from trainer.optim.train_step import losses

DOCUMENT = 2000
"""Bytes."""
LOCAL: dict[str, object] = {"width": 128, "layers": 1, "heads": 4, "feed_forward": 384}
GLOBAL: dict[str, object] = {"width": 256, "layers": 3, "heads": 4, "feed_forward": 768}
STACKS: dict[str, object] = {"encoder": LOCAL, "global": GLOBAL, "decoder": LOCAL}


def text(tokens: int) -> tuple[Tensor, list[int]]:
    """Ids int64 [T] of documents, and their lengths."""
    lengths = [DOCUMENT] * (tokens // DOCUMENT) + ([tokens % DOCUMENT] if tokens % DOCUMENT else [])
    ids = torch.from_numpy(np.random.default_rng(0).integers(OFFSET, OFFSET + 256, tokens))
    ids[torch.tensor([0, *np.cumsum(lengths)[:-1].tolist()])] = BOS
    return ids, lengths


def with_static_patches(ids: Tensor, lengths: list[int], size: float) -> Batch:
    """Patches of ``size`` bytes, the first of each document BOS alone."""
    place = np.concatenate([np.arange(length) for length in lengths])
    number = np.where(place == 0, 0, np.ceil(place / size).astype(np.int64))
    counts = [int(part.max()) + 1 for part in np.split(number, np.cumsum(lengths)[:-1])]
    first = np.repeat(np.cumsum(counts) - counts, lengths)
    of_token = torch.from_numpy(first + number)
    return Batch(ids, ids.roll(-1), segments(lengths), Patches(of_token, of_token, segments(counts)))


def step_of(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """Forward and backward."""

    def step() -> None:
        loss, ratio = losses(model, batch, None)
        (loss if ratio is None else loss + ratio).backward()
        model.zero_grad()

    return step


def cpu_seconds(of: Callable[[], object]) -> float:
    """Of one call."""
    began = time.process_time()
    of()
    return time.process_time() - began


def main() -> None:
    """Print seconds, the ratio, and the share of what is linear in tokens and patches alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=float, default=4.5, help="bytes a patch of the BLT, and the target of H-Net")
    options = parser.parse_args()
    torch.set_num_threads(1)
    blt = Blt(BltSettings.model_validate(STACKS | {"window": 128, "ngrams": {"sizes": []}}))
    hnet = HNet(HNetSettings.model_validate(STACKS | {"window": 128, "target": options.size}))
    for model in (blt, hnet):
        initialise(model, 0)
    ids, lengths = text(options.tokens)
    patched = with_static_patches(ids, lengths, options.size)
    credit = hnet.settings.patch_credit
    room = patch_room(lengths, credit, options.tokens, int(credit.bound(np.array(lengths)).sum()))
    routed = Batch(ids, ids.roll(-1), segments(lengths), room).to(torch.device("cpu"))
    steps: dict[str, Callable[[], object]] = {"blt": step_of(blt, patched), "hnet": step_of(hnet, routed)}
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(options.tokens, generator=generator) < 1 / options.size
    share, vectors = torch.rand(room.count, generator=generator), torch.rand(room.count, 128, generator=generator)
    parts: dict[str, Callable[[], object]] = {
        "boundaries by credit": lambda: patch_ends(wanted, routed.documents, credit, hnet.settings.max_length),
        "smoothing": lambda: smoothed(share, vectors),
    }
    for of in (*steps.values(), *parts.values()):
        of()
    seconds: dict[str, list[float]] = {name: [] for name in (*steps, *parts)}
    for _ in range(options.rounds):
        for name, of in (steps | parts).items():
            seconds[name].append(cpu_seconds(of))
    ratio = median(one / other for one, other in zip(seconds["hnet"], seconds["blt"]))
    assert patched.patches is not None
    print(f"{options.tokens:,} tokens; patches: blt {patched.patches.count:,}, hnet room for {room.count:,}")
    for name, taken in seconds.items():
        print(f"{name:22} {median(taken) * 1e3:9.1f} ms of CPU")
    print(f"hnet / blt             {ratio:9.2f}")


if __name__ == "__main__":
    main()
