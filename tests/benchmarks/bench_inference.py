"""Writing with many rows, several lengths of prompts and formats of weights: python tests/benchmarks/bench_inference.py

Random weights, a threshold that gives about 4.5 bytes a patch, greedy. Every way of writing takes its turn in each
round, so that all meet the same machine. Printed are the time to the first byte after a prompt, bytes a second of all
rows while they are written side by side (prompts not counted), and two shares: of the memory bandwidth (weights, keys
and values that are read, against what a long sum reads) and of the largest fp32 products of matrices.
``--peers`` adds transformers, without its cache, and the class of an exported folder, both in fp32 and
bfloat16; neither knows int8. Nothing is asserted about time.
"""

import argparse
import copy
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from bench_generation import ENTROPY_MODEL, SPECIAL, class_of_the_folder, counterpart
from torch import Tensor
from training_example import BLT, BYTES_PER_PATCH, fresh_model, product_peak
from transformers import StoppingCriteria

from shared.incremental import DecodingState
from shared.layers.weight_formats import WeightFormat, convert_weights
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.patching import PatchingSettings
from shared.stack_settings import StackSettings
from shared.vocabulary import BOS, EOS, byte_tokens
from trainer.generation.batch import Batch, Prompt
from trainer.generation.row import Row
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

WIDE = {"width": 512, "heads": 8, "feed_forward": 1408}
MODELS = {
    "21M": BLT,
    "134M": BltSettings.model_validate(
        {
            "ngrams": {"rows": 2048},
            "encoder": WIDE | {"layers": 1},
            "global": {"width": 1024, "layers": 8, "heads": 8, "feed_forward": 2816},
            "decoder": WIDE | {"layers": 4},
            "window": 512,
        }
    ),
}
TRANSFORMERS = "transformers"


@dataclass
class Measured:
    """One way of writing, over the rounds."""

    first: list[float] = field(default_factory=list)
    """Seconds from the prompt to the first byte, of a single row."""
    rate: list[float] = field(default_factory=list)
    """Bytes a second of all rows."""


@dataclass(frozen=True)
class Writer:
    """A model in one format, and the rule that cuts what it writes."""

    model: Blt
    entropy_model: EntropyModel
    rule: PatchingSettings

    def batch(self) -> Batch:
        return Batch(DecodingState(self.model, self.rule, self.entropy_model, rows=0))

    def prompt(self, text: bytes, count: int) -> Prompt:
        settings = GenerateSettings(length=count, sampling=SamplingSettings(temperature=0))
        return Prompt(Row(text, settings), DecodingState(self.model, self.rule, self.entropy_model))

    def write(self, texts: list[bytes], count: int, found: Measured | None = None) -> list[float]:
        """``count`` bytes after every text, side by side; the entropies of what was written."""
        batch, entropies = self.batch(), []
        for text in texts:
            began = time.perf_counter()
            prompt = self.prompt(text, count)
            while not prompt.done:
                prompt.advance()
            batch.join(prompt)
        if found is not None and len(texts) == 1:
            next(iter(batch.step()))
            found.first.append(time.perf_counter() - began)
        began, before = time.perf_counter(), batch.statistics.bytes
        while batch.rows:
            entropies += [piece.entropy or 0.0 for _, pieces in batch.step() for piece in pieces]
        if found is not None:
            found.rate.append((batch.statistics.bytes - before) / (time.perf_counter() - began))
        return entropies


def calibrated(model: Blt, entropy_model: EntropyModel, text: bytes) -> PatchingSettings:
    """A threshold with about the wanted patches in what is written."""
    rule = PatchingSettings(rule="entropy", theta=0.0, max_length=512)
    for _ in range(4):
        entropies = Writer(model, entropy_model, rule).write([text], 128)
        rule = rule.with_theta(float(np.quantile(entropies, 1 - 1 / BYTES_PER_PATCH)), grid=False)
    return rule


def read_per_step(settings: BltSettings, rows: int, length: int, itemsize: float) -> float:
    """Bytes of memory that a step reads: every weight that it needs once, and each row's keys and values."""

    def weights(stack: StackSettings) -> float:
        heads = stack.heads + 2 * stack.key_value_heads
        return stack.layers * stack.width * (stack.width + heads * stack.head_width + 3 * stack.hidden)

    def held(stack: StackSettings, places: float) -> float:
        return (4 if itemsize == 4 else 2) * rows * places * stack.layers * 2 * stack.key_value_heads * stack.head_width

    local, window = (settings.encoder, settings.decoder), min(settings.window, length)
    of_patch = 1 - (1 - 1 / BYTES_PER_PATCH) ** rows
    read = sum(itemsize * weights(stack) + held(stack, window) for stack in local)
    read += of_patch * itemsize * weights(settings.global_)
    read += held(settings.global_, length / BYTES_PER_PATCH) / BYTES_PER_PATCH
    kept = ENTROPY_MODEL.layers * 2 * ENTROPY_MODEL.key_value_heads * ENTROPY_MODEL.head_width
    return read + 4 * weights(ENTROPY_MODEL) + 4 * rows * min(ENTROPY_MODEL.window, length) * kept


def flops_per_byte(settings: BltSettings) -> float:
    """Of products with weights alone."""
    parts: list[tuple[StackSettings, float]] = [
        (stack, 1.0) for stack in (settings.encoder, settings.decoder, ENTROPY_MODEL)
    ]
    parts.append((settings.global_, 1 / BYTES_PER_PATCH))
    return sum(2 * share * stack.layers * stack.width * (4 * stack.width + 3 * stack.hidden) for stack, share in parts)


def bandwidth() -> float:
    """Bytes a second that a sum over much memory reads."""
    numbers = torch.ones(64 << 20)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - began)
    return numbers.nbytes / best


class Clock(StoppingCriteria):
    """Notes when each byte of all rows has been written."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def peers(
    model: Blt, entropy_model: EntropyModel, theta: float
) -> Iterator[tuple[str, Callable[[list[bytes], int, Measured], None]]]:
    """Each with the function that writes greedily after prompts of equal lengths."""
    for (name, made), dtype in product(
        (("folder's class", class_of_the_folder), (TRANSFORMERS, counterpart)), (torch.float32, torch.bfloat16)
    ):
        peer = made(model, entropy_model).to(dtype)
        peer.config.patching_threshold = theta
        options = {"use_cache": False} if name == TRANSFORMERS else {}

        def write(
            texts: list[bytes], count: int, found: Measured, peer: object = peer, options: dict[str, bool] = options
        ) -> None:
            clock, began = Clock(), time.perf_counter()
            ids = torch.stack([torch.from_numpy(np.append(BOS, byte_tokens(text)).astype(np.int64)) for text in texts])
            with torch.inference_mode():
                peer.generate(  # type: ignore[attr-defined]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    do_sample=False,
                    suppress_tokens=SPECIAL,
                    stopping_criteria=[clock],
                    **options,
                )
            found.first.append(clock.times[0] - began)
            found.rate.append(len(texts) * (count - 1) / (clock.times[-1] - clock.times[0]))

        yield name if dtype == torch.float32 else f"{name}, bf16", write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="21M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 2_048], help="bytes")
    parser.add_argument("--weights", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--bytes", type=int, default=64, help="to write in each row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="transformers and the exported folder's class too")
    arguments = parser.parse_args()
    if arguments.peers and arguments.model != "21M":
        parser.error("--peers have the small model only")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    settings = MODELS[arguments.model]
    model, entropy_model = fresh_model(settings).eval(), EntropyModel(ENTROPY_MODEL).eval()
    initialise(entropy_model, 1)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = 0  # rows are to go on; the other special ids are never chosen
    source = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()
    rule = calibrated(model, entropy_model, source[:256])
    writers: dict[str, Writer] = {}
    for weight_format in arguments.weights:
        kind: WeightFormat = weight_format
        writers[kind] = Writer(convert_weights(copy.deepcopy(model), kind), entropy_model, rule)
    others = dict(peers(model, entropy_model, float(rule.theta or 0))) if arguments.peers else {}
    memory, peak = bandwidth(), product_peak(torch.float32)
    parameters = [sum(p.numel() for p in part.parameters()) for part in (model, entropy_model)]
    print(
        f"{parameters[0]:,} + {parameters[1]:,} parameters, {arguments.threads} thread{'s' * (arguments.threads > 1)}; "
        f"memory {memory / 1e9:.1f} GB/s, fp32 products {peak / 1e9:.0f} GFLOP/s"
    )
    for length in arguments.prompts:
        for rows in arguments.rows:
            texts = [source[97 * row : 97 * row + length] for row in range(rows)]
            found = {name: Measured() for name in (*writers, *others)}
            for _ in range(arguments.rounds):
                for name, writer in writers.items():
                    writer.write(texts, arguments.bytes, found[name])
                for name, write in others.items():
                    # What transformers takes for a byte of a row grows with all that is before it.
                    few = max(3, min(arguments.bytes, 6_144 // (length * rows)))
                    count = few if name.startswith(TRANSFORMERS) else arguments.bytes
                    write(texts, count, found[name])
            print(f"prompt of {length:,} bytes, {rows} row{'s' * (rows > 1)}")
            for name, measured in found.items():
                if measured.rate:
                    line = f"  {name:<21}{np.median(measured.rate):9.1f} bytes/s, best {max(measured.rate):.1f}"
                    if rows == 1:
                        line += f"; first byte after {np.median(measured.first):.3f} s"
                    if name in writers:
                        size = {"float32": 4, "bfloat16": 2, "int8": 1}[name]
                        steps = np.median(measured.rate) / rows
                        read = read_per_step(settings, rows, length + arguments.bytes // 2, size) * steps
                        line += f"; {read / memory:.0%} of bandwidth, "
                        line += f"{flops_per_byte(settings) * rows * steps / peak:.0%} of products"
                    print(line, flush=True)


if __name__ == "__main__":
    main()
