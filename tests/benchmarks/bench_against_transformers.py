"""A training step against transformers' BltForCausalLM: python tests/benchmarks/bench_against_transformers.py [TEXT]

Forward and backward of equal weights over equal text and equal patch lengths, in turn, in one run: bytes a second of
both and the ratio. Logits are compared first. Peak memory against bytes is in bench_training_step.py. Nothing is
asserted about time.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from training_example import (
    BLT,
    DTYPES,
    Example,
    Timing,
    alternately,
    example,
    fresh_model,
    learn,
    our_logits,
    read_text,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.hf_states import to_hf_state

from shared.interop.hf_config import hf_config
from shared.models.blt import Blt

Works = dict[str, Callable[[], None]]
AUTOCAST, PURE = "transformers, autocast", "transformers, bf16 weights"


def counterpart(model: Blt) -> nn.Module:
    from transformers import BltConfig, BltForCausalLM

    theirs = BltForCausalLM(BltConfig(**hf_config(BLT)))
    theirs.load_state_dict(to_hf_state(model.state_dict(), BLT))
    return theirs


def their_logits(model: nn.Module, given: Example) -> Tensor:
    logits: Tensor = model(given.ids, patch_lengths=given.lengths, use_cache=False).logits
    return logits.flatten(0, 1)


def works(model: Blt, theirs: nn.Module, given: Example, dtype: str) -> Works:
    """A step of each."""
    labels = given.batch.labels
    if dtype == "float32":
        return {
            "ours": lambda: learn(model, lambda: our_logits(model, given.batch), labels),
            "transformers": lambda: learn(theirs, lambda: their_logits(theirs, given), labels),
        }
    # bf16 parameters are what mixed precision of FSDP computes with, on both sides.
    half, their_half = copy.deepcopy(model).bfloat16(), copy.deepcopy(theirs).bfloat16()

    def cast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            learn(theirs, lambda: their_logits(theirs, given), labels)

    return {
        "ours": lambda: learn(half, lambda: our_logits(half, given.batch), labels),
        AUTOCAST: cast,
        PURE: lambda: learn(their_half, lambda: their_logits(their_half, given), labels),
    }


def report(timings: dict[str, Timing], tokens: int) -> None:
    for name, timing in timings.items():
        print(
            f"    {name:<28}{tokens / timing.best:9,.0f} bytes/s best {tokens / timing.median:9,.0f} median"
            f"   {min(timing.processor):7.2f} s processor {min(timing.wall):7.2f} s wall"
        )
    ours, peers = timings["ours"], [timing for name, timing in timings.items() if name != "ours"]
    best, median = min(peer.best for peer in peers) / ours.best, min(peer.median for peer in peers) / ours.median
    print(f"    ratio {best:.2f}x best, {median:.2f}x median of {len(ours.seconds)}")


def compare(text: bytes, rows: int, size: int, rounds: int, leave_out: str | None) -> str:
    """Print both dtypes at one shape; returns the slower of their two ways in bf16."""
    model = fresh_model()
    theirs, given = counterpart(model), example(text, rows, size)
    with torch.no_grad():
        difference = (our_logits(model, given.batch) - their_logits(theirs, given)).abs().max()
    print(f"  {rows} x {size:,} bytes, {given.patches.count} patches; logits differ by {difference:.1e} at most")
    slower = PURE
    for dtype in DTYPES:
        chosen = {name: work for name, work in works(model, theirs, given, dtype).items() if name != leave_out}
        for name, work in chosen.items():
            if size <= 2048 or name == "ours":
                work()  # warm up; at the larger shape their first step is as slow as any
        print(f"   {dtype}")
        timings = alternately(chosen, rounds)
        report(timings, given.tokens)
        if AUTOCAST in timings and PURE in timings:
            slower = max((AUTOCAST, PURE), key=lambda name: timings[name].best)
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="a file; else the standard library's sources")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads, one after another")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="two documents only, two rounds: a minute")
    parser.add_argument(
        "--bytes", type=int, default=2_048, help="of each of two documents; then four times as many, one"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    text = read_text(arguments.text)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"{sum(p.numel() for p in fresh_model().parameters()):,} parameters, {threads} thread(s)")
        slower = compare(text, 2, arguments.bytes, 2 if arguments.quick else arguments.rounds, None)
        if not arguments.quick:
            compare(text, 1, 4 * arguments.bytes, max(2, arguments.rounds // 2), slower)


if __name__ == "__main__":
    main()
