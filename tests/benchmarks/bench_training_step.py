"""Where the time of a training step goes, and how memory grows: python tests/benchmarks/bench_training_step.py [TEXT]

First the step's useful FLOPs a second as a fraction of this machine's own largest products of matrices, measured in the
same run, and each part alone, forward and backward. Then peak memory of one document of 4 to 64 kB, each size in a
process of its own. Nothing is asserted.
"""

import argparse
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from training_example import (
    BYTES_PER_PATCH,
    DTYPES,
    Example,
    alternately,
    example,
    fresh_model,
    learn,
    our_logits,
    product_peak,
    read_text,
    share_of_peak,
)

from shared.layers.attention import AttentionMask, attention
from shared.layers.blocks import Block, compute_dtype
from shared.layers.cross_attention import BytesReadPatches, PatchesReadBytes
from shared.layers.fused_ops import apply_rotary, swiglu
from shared.layers.rotary import rotary
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.flops import training_flops
from shared.models.workload import useful_workload
from shared.stack_settings import StackSettings

FEW_PATCHES = 64.0
"""Bytes a patch, so that the global model has next to nothing to do."""
SIZES = (4_096, 8_192, 16_384, 32_768, 65_536)
SMALL = BltSettings.model_validate(
    {
        "ngrams": {"rows": 1024},
        "encoder": {"width": 64, "heads": 2, "layers": 1},
        "global": {"width": 128, "heads": 2, "layers": 1},
        "decoder": {"width": 64, "heads": 2, "layers": 1},
        "window": 512,
    }
)


def useful_flops(model: Blt, given: Example) -> float:
    """Of forward and backward: products with parameters, and attention over the keys that are seen; nothing twice."""
    patches, documents = given.patches.documents, given.batch.documents
    work = useful_workload(model.settings, documents.lengths, patches.lengths)
    return training_flops(model.settings, work).total


Part = tuple[str, int, Callable[[], object]]


def parts(model: Blt, given: Example) -> list[Part]:
    """Each part with how often a step has it; running one is its forward and backward."""
    batch, settings = given.batch, model.settings
    patches, tokens = given.patches, given.tokens
    dtype = compute_dtype(model.encoder.embedding.weight)
    local, wide = settings.encoder, settings.global_
    layers = settings.encoder.layers + settings.decoder.layers

    def both(work: Callable[..., Tensor | tuple[Tensor, ...]], *shapes: tuple[int, ...]) -> Callable[[], None]:
        inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]

        def run() -> None:
            for x in inputs:
                x.grad = None
            out = work(*inputs)
            outs = out if isinstance(out, tuple) else (out,)
            torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])

        return run

    def block_parts(
        what: str, block: Block, stack: StackSettings, n: int, count: int, window: int | None
    ) -> list[Part]:
        documents = batch.documents if window else patches.documents
        rotation = rotary(documents.positions, stack)
        mask = AttentionMask.of(documents, dtype, window)
        heads, groups, width = stack.heads, stack.key_value_heads, stack.head_width
        shapes = [(n, heads, width), (n, groups, width), (n, groups, width)]

        def products(x: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
            return block.qkv(x), block.attention_output.onto(x, x), block.gate_up(x), block.down.onto(x, hidden)

        def between(x: Tensor, qkv: Tensor, gate_up: Tensor) -> tuple[Tensor, ...]:
            turned = apply_rotary(qkv.unflatten(-1, (-1, width)), rotation, heads, groups)
            return block.attention_norm(x), block.feed_forward_norm(x), *turned, swiglu(gate_up)

        return [
            (f"{what} blocks, products", count, both(products, (n, stack.width), (n, stack.hidden))),
            (f"{what} blocks, attention", count, both(lambda q, k, v: attention(q, k, v, mask), *shapes)),
            (
                f"{what} blocks, norms, rotary, SwiGLU",
                count,
                both(between, (n, stack.width), (n, (heads + 2 * groups) * width), (n, 2 * stack.hidden)),
            ),
        ]

    to_patches, to_bytes = model.encoder.cross[0], model.decoder.cross[0]
    assert isinstance(to_patches, PatchesReadBytes)
    assert isinstance(to_bytes, BytesReadPatches)
    states, vectors = (tokens, local.width), (patches.count, settings.queries, local.width)
    block, wide_block = model.encoder.blocks[0], model.global_.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(wide_block, Block)

    def embed() -> None:
        (model.ngrams(batch.ids, batch.documents) + model.encoder.embedding(batch.ids)).sum().backward()

    return [
        *block_parts("local", block, local, tokens, layers, settings.window),
        *block_parts("global", wide_block, wide, patches.count, wide.layers, None),
        (
            "bytes read patches",
            len(model.decoder.cross),
            both(lambda x, y: to_bytes(x, y, patches.of_decoder), states, vectors),
        ),
        (
            "patches read bytes",
            len(model.encoder.cross),
            both(lambda x, y: to_patches(y, x, patches.of_token), states, vectors),
        ),
        (
            "pooling, projections of patches",
            1,
            both(
                lambda x, y: (
                    model.encoder.pool(x, patches.of_token, patches.count),
                    model.decoder.patch_projection(y),
                ),
                states,
                (patches.count, wide.width),
            ),
        ),
        ("hashes and embeddings", 1, embed),
        (
            "logits and loss",
            1,
            both(lambda x: F.cross_entropy(model.decoder.logits(x), batch.labels), states),
        ),
    ]


def take(model: Blt, given: Example) -> None:
    learn(model, lambda: our_logits(model, given.batch), given.batch.labels)


def report_step(text: bytes, rows: int, size: int, rounds: int) -> None:
    given = example(text, rows, size)
    for name, dtype in DTYPES.items():
        model = fresh_model().to(dtype)
        peaks = [max(map(product_peak, DTYPES.values()))]  # bf16 products are the slower ones on some processors
        step = "the step"
        works: dict[str, Callable[[], object]] = {step: partial(take, model, given)}
        counts = {}
        for part, count, work in parts(model, given):
            works[part], counts[part] = work, count
        for work in works.values():
            work()
        timings = alternately(works, rounds)
        peaks.append(max(map(product_peak, DTYPES.values())))
        seconds = timings[step].best
        flops = useful_flops(model, given)
        print(f"  {rows} x {size:,} bytes, {name}: {seconds:.2f} s, {given.tokens / seconds:,.0f} bytes/s")
        of = share_of_peak(flops / seconds, peaks)
        print(f"    {flops / 1e9:.0f} useful GFLOP, {flops / seconds / 1e9:.0f} GFLOP/s: {of}")
        total = sum(timings[part].best * count for part, count in counts.items())
        for part, count in counts.items():
            spent = timings[part].best
            print(f"    {part:<40}{spent * 1e3:8.1f} ms x {count}  {spent * count / total:5.1%}")
        print(f"    {'all parts, each measured alone':<40}{total * 1e3:8.1f} ms, {total / seconds:.0%} of the step")


def peak_of(size: int, kind: str, bytes_per_patch: float, text: bytes) -> int:
    """Bytes of peak memory that a step, or a forward pass, of one document adds to a process that holds the model."""
    given, model = example(text, 1, size, bytes_per_patch), fresh_model(SMALL)
    small = example(text, 1, 256).batch
    learn(model, lambda: our_logits(model, small), small.labels)  # what is allocated once
    before = most_memory()
    if kind == "step":
        learn(model, lambda: our_logits(model, given.batch), given.batch.labels)
    else:
        with torch.inference_mode():
            our_logits(model, given.batch)
    return most_memory() - before


def most_memory() -> int:
    """Bytes that this process has had at most. getrusage would begin with those of the process that started it."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def report_memory(arguments: list[str], sizes: Sequence[int]) -> None:
    print(f"  peak memory, one document, {sum(p.numel() for p in fresh_model(SMALL).parameters()):,} parameters, fp32")
    for mean in (BYTES_PER_PATCH, FEW_PATCHES):
        print(f"   {mean:g} bytes a patch" + (", next to no global attention" if mean == FEW_PATCHES else ""))
        report_sizes(arguments, sizes, mean)


def report_sizes(arguments: list[str], sizes: Sequence[int], mean: float) -> None:
    for size in sizes:
        found = []
        for kind in ("step", "forward"):
            command = [sys.executable, __file__, *arguments, "--peak", kind, str(size), str(mean)]
            found.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(
            f"    {size:7,} bytes: step {found[0] / 1e6:7.0f} MB, {found[0] / size / 1e3:5.2f} kB a byte;"
            f" forward {found[1] / 1e6:6.0f} MB, {found[1] / size / 1e3:5.2f} kB a byte"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="a file; else the standard library's sources")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 x 2,048 bytes and documents up to 16 kB: a minute")
    parser.add_argument(
        "--bytes", type=int, default=2_048, help="of each of two documents; then four times as many, one"
    )
    parser.add_argument("--memory", type=int, nargs="+", help="bytes of the documents whose peak memory is found")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "SIZE", "PATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    text = read_text(arguments.text)
    if arguments.peak is not None:
        kind, size, mean = arguments.peak
        print(peak_of(int(size), kind, float(mean), text))
        return
    print(f"{sum(p.numel() for p in fresh_model().parameters()):,} parameters, {arguments.threads} thread(s)")
    rounds = 2 if arguments.quick else arguments.rounds
    report_step(text, 2, arguments.bytes, rounds)
    if not arguments.quick:
        report_step(text, 1, 4 * arguments.bytes, rounds)
    report_memory(
        [str(arguments.text)] if arguments.text else [], arguments.memory or (SIZES[:3] if arguments.quick else SIZES)
    )


if __name__ == "__main__":
    main()
