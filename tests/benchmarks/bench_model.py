"""How many bytes a second the models score and train, on one thread: python tests/benchmarks/bench_model.py [TEXT]

Seconds are processor seconds of this process, so that a busy machine changes the figures little. Nothing is asserted.
"""

import argparse
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from shared.layers.batch import Patches, segments
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings, patch_lengths
from shared.vocabulary import document_tokens

ENTROPY = EntropyModelSettings(width=128, layers=4, heads=4, window=128)
LOCAL = {"width": 128, "heads": 4}
BLT = BltSettings.model_validate(
    {
        "ngrams": {"rows": 8192},
        "encoder": LOCAL | {"layers": 1},
        "global": {"width": 256, "layers": 4, "heads": 4},
        "decoder": LOCAL | {"layers": 2},
        "window": 128,
    }
)
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
DOCUMENT = 2_000


def documents(text: bytes, count: int) -> list[np.ndarray]:
    return [document_tokens(text[i * DOCUMENT : (i + 1) * DOCUMENT - 2]) for i in range(count)]


def rate(run: Callable[[], object], size: int, repeats: int) -> float:
    """Bytes a second, the best of several runs after one to warm up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return size / min(seconds)


def scoring(text: bytes, repeats: int) -> None:
    model = EntropyModel(ENTROPY)
    initialise(model, 0)
    print(f"entropy model, {sum(p.numel() for p in model.parameters()):,} parameters")
    inputs = documents(text, len(text) // DOCUMENT)
    for dtype in DTYPES:
        for stream in (1024, 4096):
            scorer = Scorer(model, stream, dtype)

            def score(scorer: Scorer = scorer) -> None:
                for _ in scorer.score(inputs):
                    pass

            speed = rate(score, sum(map(len, inputs)), repeats)
            print(f"  score {dtype:8} streams of {stream:5}: {speed:9,.0f} bytes/s")


def training(text: bytes, tokens: int, repeats: int) -> None:
    inputs = documents(text, tokens // DOCUMENT)
    ids = torch.from_numpy(np.concatenate([d[:-1] for d in inputs]).astype(np.int64))
    labels = torch.from_numpy(np.concatenate([d[1:] for d in inputs]).astype(np.int64))
    in_tokens, in_patches = list[int](), list[int]()
    of_token, of_decoder = list[np.ndarray](), list[np.ndarray]()
    for document in inputs:
        lengths = patch_lengths(document, PatchingSettings(rule="static", stride=5))
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        of_token.append(numbers[:-1] + sum(in_patches))
        of_decoder.append(numbers[1:] - 1 + sum(in_patches))
        in_tokens.append(len(document) - 1)
        in_patches.append(int(numbers[-2]) + 1)
    owner, reader = (torch.from_numpy(np.concatenate(parts)) for parts in (of_token, of_decoder))
    axis, patches = segments(in_tokens), Patches(owner, reader, segments(in_patches))

    def report(model: nn.Module, *arguments: object) -> None:
        initialise(model, 0)
        print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, {len(ids)} tokens")
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype)

            def step() -> None:
                model.zero_grad()
                F.cross_entropy(model(ids, axis, *arguments), labels).backward()

            with torch.inference_mode():
                forward = rate(lambda: model(ids, axis, *arguments), len(ids), repeats)
            name = str(dtype).removeprefix("torch.")
            both = rate(step, len(ids), repeats)
            print(f"  {name:8} forward {forward:9,.0f} bytes/s, and backward {both:9,.0f} bytes/s")

    report(EntropyModel(ENTROPY))
    report(Blt(BLT), patches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", default=Path(sysconfig.get_path("stdlib")) / "argparse.py")
    parser.add_argument("--documents", type=int, default=20, help=f"of {DOCUMENT:,} bytes, to score")
    parser.add_argument("--tokens", type=int, default=8_192, help="of a training step")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.text.read_bytes()
    scoring(text[: arguments.documents * DOCUMENT], arguments.repeats)
    training(text, arguments.tokens, arguments.repeats)


if __name__ == "__main__":
    main()
