"""Rows that measure: scoring, training steps with their memory, float8, generation."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

import trainer.checkpoints.initial_weights as beginning
from infra.gpu.bench import ROOT, Bench, is_out_of_memory
from infra.gpu.models import small_blt, small_entropy_model, text
from shared.incremental import DecodingState
from shared.layers.batch import Batch
from shared.layers.blocks import DTYPES
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.flops import forward_flops, training_flops
from shared.models.scoring import Scorer
from shared.models.workload import useful_workload
from shared.patching import PatchingSettings
from shared.vocabulary import IGNORED_LABEL, document_tokens
from trainer.data.packing.limits import PackLimits, patches_for
from trainer.distributed.world import World, started
from trainer.memory import dry_run
from trainer.memory.estimate import estimate
from trainer.memory.parts import Memory
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

RECIPES = ROOT / "trainer" / "recipes"
PATCH_SIZE = 4.5
SMALL_MODEL = {
    "model.ngrams.rows": 512,
    "model.encoder": "{width = 64, layers = 1, heads = 2}",
    "model.global": "{width = 96, layers = 2, heads = 2}",
    "model.decoder": "{width = 64, layers = 1, heads = 2}",
    "data.tokens": 512,
    "parallel.compile": "false",
}
PAPERS_ENTROPY_MODEL = EntropyModelSettings(width=768, layers=14, heads=12, window=512)
GIB = 2**30


def scoring(bench: Bench) -> None:
    """The entropy model of the paper, 99.5 M parameters, over documents of 4 kB."""
    settings = small_entropy_model().settings if bench.small else PAPERS_ENTROPY_MODEL
    model = EntropyModel(settings)
    fill_quickly(model)
    stream, count = (2**16, 256) if bench.cuda and not bench.small else (1024, 2)
    documents = [document_tokens(text(4095, seed)) for seed in range(count)]
    size = sum(len(document) - 2 for document in documents)
    work = useful_workload(settings, [len(document) - 1 for document in documents])
    flops = forward_flops(settings, work).total
    for dtype in ("bfloat16", "float32"):
        scorer = Scorer(model, stream, dtype, bench.device)

        def score(scorer: Scorer = scorer) -> None:
            deque(scorer.score(documents), maxlen=0)

        seconds = bench.seconds(score, rounds=2)
        bench.found(
            f"{dtype}, streams of {stream}",
            f"{size / seconds / 1e6:.3g} MB/s, {flops / seconds / 1e12:.3g} TFLOP/s"
            + bench.share_of_peak(flops / seconds, dtype),
            bytes_per_second=size / seconds,
            flops_per_second=flops / seconds,
        )


def step_400m(bench: Bench) -> None:
    """One pack of 16,384 bytes at the 400M shape."""
    measure_step(bench, "blt-400m.toml")


def step_1b(bench: Bench) -> None:
    """The same at the 1B shape."""
    measure_step(bench, "blt-1b.toml")


@contextmanager
def one_rank(settings: TrainSettings) -> Iterator[World]:
    """A world of this process alone."""
    with started(settings.run) as world:
        yield world


def recipe(bench: Bench, name: str, **changes: object) -> TrainSettings:
    """A recipe for one pack a step on this device; a tiny model where sizes are small."""
    values: dict[str, object] = {"data.path": "DATA", "run.out": str(bench.folder / "run"), "data.packs": 1}
    values |= {"run.device": bench.device.type, "run.threads": torch.get_num_threads(), "plan.ranks": 1}
    values |= SMALL_MODEL if bench.small else {}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return load_recipe(RECIPES / name, overrides, TrainSettings)


def measure_step(bench: Bench, name: str) -> None:
    """Bytes a second, utilisation, and memory by part beside what a plan says."""
    settings = recipe(bench, name)
    patches = patches_for(settings.data.tokens, 1 / PATCH_SIZE)
    planned = estimate(settings, 1, patches, tiled=not bench.cuda).parts()
    limits = PackLimits(settings.data.tokens, patches)
    bench.found("memory planned", gib(planned), None, **planned)
    batch = documents_of(limits, 4 if not bench.small else 2)
    assert batch.patches is not None
    work = useful_workload(settings.model, batch.documents.lengths, batch.patches.documents.lengths[:-1])
    flops = training_flops(settings.model, work).total
    vars(beginning)["fill"] = fill_quickly  # drawing billions of numbers takes minutes
    with one_rank(settings) as world:
        try:
            model = beginning.build_model(settings, world)
            optimizer = build_optimizer(model, settings.optimizer)

            def step() -> None:
                take_step(model, optimizer, TrainStep([batch], limits.tokens, lr=1e-5), world)

            seconds = bench.seconds(step, rounds=5, warm=3)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            bench.out_of_memory("training step", error)
            return
    parameters = sum(parameter.numel() for parameter in model.parameters())
    what = f"{parameters / 1e9:.3g} G parameters, {limits.tokens:,} bytes"
    found = f"{seconds:.3g} s, {limits.tokens / seconds:,.0f} bytes/s, {flops / seconds / 1e12:.3g} TFLOP/s"
    share = bench.share_of_peak(flops / seconds, settings.run.dtype)
    bench.found(what, found + share, bytes_per_second=limits.tokens / seconds, flops_per_second=flops / seconds)
    dtype, keep = DTYPES[settings.run.dtype], settings.parallel.keep_gathered
    parts = memory_found(bench, dry_run.static_memory(model, optimizer, dtype, keep))
    bench.found("memory found", gib(parts), None, **parts)


def memory_found(bench: Bench, known: Memory) -> dict[str, int]:
    """Static parts, and the most that the device held."""
    parts = {name: size for name, size in known.largest_first().items() if size}
    if bench.cuda:
        parts["peak"] = torch.cuda.max_memory_allocated(bench.device)
        parts["transient and activations"] = parts["peak"] - sum(
            size for name, size in parts.items() if name not in ("peak", "gradients")
        )
    return parts


def words(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def gib(parts: dict[str, int]) -> str:
    """Parts in words, their sum first."""
    total = parts.get("peak", sum(parts.values()))
    each = ", ".join(
        f"{name.replace('_', ' ')} {words(size)}" for name, size in parts.items() if size and name != "peak"
    )
    return f"{words(total)}: {each}"


def documents_of(limits: PackLimits, documents: int) -> Batch:
    """A full pack of equally long documents, patches of equal length, every token a target."""
    assert limits.patches is not None
    patches = int(limits.tokens / PATCH_SIZE)
    owner = np.arange(limits.tokens) * patches // limits.tokens
    tokens = np.diff(np.searchsorted(owner, np.arange(documents + 1) * patches // documents))
    counts = np.diff(np.arange(documents + 1) * patches // documents)
    found = dry_run.batch(tokens.tolist(), owner, counts.tolist(), limits)
    return replace(found, labels=found.labels.clamp_min(IGNORED_LABEL))


@torch.no_grad()
def fill_quickly(model: torch.nn.Module, seed: int = 0) -> None:
    """Values of the right size, drawn on the device: speed does not depend on which."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if local.ndim == 1:
            local.fill_(1.0)
        else:
            local.normal_(std=parameter.shape[-1] ** -0.5)


def float8(bench: Bench) -> None:
    """The global transformer's products in float8 against bf16: the step's loss, and its time."""
    if not bench.cuda or torch.cuda.get_device_capability(bench.device) < (8, 9):
        bench.skipped("float8", "needs a GPU with float8 products (capability 8.9 or more)")
        return
    if find_spec("torchao") is None:
        bench.skipped("float8", "needs torchao, which is not installed")
        return
    vars(beginning)["fill"] = fill_quickly
    found = {}
    for wide in (False, True):
        settings = recipe(bench, "blt-1b.toml", model__ngrams__rows=1000, parallel__float8=str(wide).lower())
        found[wide] = loss_and_seconds(bench, settings)
        torch.cuda.empty_cache()
    (exact, slow), (rounded, fast) = found[False], found[True]
    apart = abs(rounded - exact) / exact
    bench.found("loss, against bf16", f"{rounded:.4f} and {exact:.4f} nats", apart < 0.02, difference=apart)
    bench.found("step, against bf16", f"{fast:.3g} s and {slow:.3g} s, {slow / fast:.2f}x", ratio=slow / fast)


def loss_and_seconds(bench: Bench, settings: TrainSettings) -> tuple[float, float]:
    """Mean nats of a full pack, and the time of a step that learns nothing."""
    limits = PackLimits(settings.data.tokens, patches_for(settings.data.tokens, 1 / PATCH_SIZE))
    batch = documents_of(limits, 2)
    with one_rank(settings) as world:
        model = beginning.build_model(settings, world)
        optimizer = build_optimizer(model, settings.optimizer)

        def step() -> float:
            return take_step(model, optimizer, TrainStep([batch], limits.tokens, lr=0.0), world).nats

        return step() / limits.tokens, bench.seconds(step)


def generation(bench: Bench) -> None:
    """Greedy bytes after a prompt of 256, an entropy model finding the patches; one row and eight."""
    model, entropy_model = small_blt(), small_entropy_model()
    if not bench.small:
        settings = recipe(bench, "blt-400m.toml", model__ngrams__rows=10_000).model
        assert isinstance(settings, BltSettings)
        model, entropy_model = Blt(settings), EntropyModel(PAPERS_ENTROPY_MODEL)
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    for each in (model, entropy_model):
        each.to(bench.device, dtype).eval()
        fill_quickly(each)
    rule = PatchingSettings(rule="entropy", theta=5.56, max_length=5)  # with random weights: a patch every five bytes
    prompt = torch.from_numpy(document_tokens(text(255, 0))[:-1].astype(np.int64)).to(bench.device)
    count = 16 if bench.small else 128
    for rows in (1, 8):

        def write(rows: int = rows) -> Tensor:
            documents = DecodingState(model, rule, entropy_model, rows)
            found = documents.advance(prompt.expand(rows, -1))
            documents.accept([len(prompt)] * rows)
            for _ in range(count):
                ids = found.logits[:, -1, 4:260].argmax(-1, keepdim=True) + 4
                found = documents.advance(ids)
                documents.accept([1] * rows)
            return found.logits

        seconds = bench.seconds(write, rounds=1)
        rate = rows * count / seconds
        bench.found(f"{rows} row{'s' * (rows > 1)}, {count} bytes each", f"{rate:,.1f} bytes/s", bytes_per_second=rate)
    if not bench.small and bench.cuda:
        bench.found("most memory", f"{torch.cuda.max_memory_allocated(bench.device) / GIB:.1f} GiB")
