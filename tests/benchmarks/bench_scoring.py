"""Scoring against scoring one document at a time, a whole run, two workers, and the machine's peak; in one run.

python tests/benchmarks/bench_scoring.py [CORPUS.jsonl.zst] [--documents 1000] [--threads 1] [--published]

The same entropy weights score a seeded sample of documents: packed into streams, as preprocess does; in the entropy
model of transformers, one document at a time, padded to 8,192 tokens (as the released preprocessing does) and as it is;
and in our own model, one at a time. Blocks of documents go to each way in turn, so that all see the same machine. Then
the whole pipeline, reading and writing included, beside bare scoring, and two workers beside one. --published adds the
shape of the published entropy model (768 wide, 14 layers, window 512) as a fraction of the machine's own products of
matrices, measured in between.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_example import product_peak, share_of_peak
from transformers import AutoConfig
from transformers.models.blt.modeling_blt import BltPatcher

from pipeline.read import read_split
from pipeline.records import Records, sample_hash
from pipeline.run.driver import make_plan, preprocess
from pipeline.settings import ExecutorSettings, Job, OutputSettings, ReadSettings, ScoringSettings
from shared.interop.hf_config import hf_config
from shared.interop.names import HF, parts
from shared.layers.batch import segments
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.entropy_model import EntropyModel, entropy
from shared.models.flops import forward_flops
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.models.workload import useful_workload
from shared.patching import PatchingSettings
from shared.vocabulary import BOE, document_tokens

SMALL = EntropyModelSettings(width=192, layers=2, heads=4, feed_forward=512, window=128)
PUBLISHED = EntropyModelSettings(width=768, layers=14, heads=12, window=512)
ANY_BLT = BltSettings.model_validate(
    {name: {"width": 64, "heads": 1, "layers": 1} for name in ("encoder", "global", "decoder")}
)
PACKED = "packed into streams"
OWN_SOURCES = [Path(__file__).parents[2] / name for name in ("shared", "pipeline", "trainer")]
PADDED = 8192
BLOCK = 100
PADDED_OF_BLOCK = 3
"""Padded documents cost a hundred times as much: so many of a block are enough to know what they cost."""


def sample(paths: Sequence[Path], count: int, seed: int = 0) -> list[bytes]:
    """The first documents of the corpus in a seeded order."""
    reading = ReadSettings()
    plan = make_plan(paths, reading)
    texts = [
        text
        for split in plan.splits
        for found in read_split(split, reading)
        if isinstance(found, Records)
        for text in found.texts
        if isinstance(text, bytes) and text
    ]
    return sorted(texts, key=lambda text: sample_hash(text, seed))[:count]


def fresh(settings: EntropyModelSettings) -> EntropyModel:
    model = build_model(settings)
    initialise(model, 1)
    assert isinstance(model, EntropyModel)
    return model


def patcher_of_transformers(model: EntropyModel, settings: EntropyModelSettings) -> Any:
    """The same weights in the entropy model of transformers."""
    config = AutoConfig.for_model(**hf_config(ANY_BLT, settings)).patcher_config
    entropy_model: Any = BltPatcher(config)  # its methods have no types
    entropy_model.eval()
    ours = model.state_dict()
    state = {part.theirs.removeprefix(HF.patcher): ours[part.ours][part.rows] for part in parts(settings, HF)}
    entropy_model.load_state_dict(state, strict=True)
    return entropy_model


def in_transformers(entropy_model: Any, tokens: np.ndarray, length: int) -> np.ndarray:
    """One document in one forward pass of ``length`` tokens."""
    ids = np.full(length, BOE, np.int64)
    ids[: len(tokens) - 1] = tokens[:-1]
    with torch.inference_mode():
        entropies: Tensor = entropy_model(torch.from_numpy(ids)[None])[0][0]
        return entropies[: len(tokens) - 1].numpy()


def alone(model: EntropyModel, tokens: np.ndarray) -> np.ndarray:
    """One document in one forward pass of our model."""
    with torch.inference_mode():
        return entropy(model(torch.from_numpy(tokens[:-1].astype(np.int64)), segments([len(tokens) - 1]))).numpy()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against_one_at_a_time(model: EntropyModel, texts: Sequence[bytes], stream: int) -> None:
    scorer, entropy_model = Scorer(model, stream), patcher_of_transformers(model, SMALL)
    documents = [document_tokens(text) for text in texts]
    spent = {
        name: [0.0, 0] for name in (PACKED, "transformers, padded", "transformers, unpadded", "ours, one at a time")
    }
    largest = 0.0

    def counted(name: str, found: Iterator[np.ndarray]) -> list[np.ndarray]:
        """Processor time, which others on the machine change little."""
        began = time.process_time()
        entropies = list(found)
        so_far = spent.setdefault(name, [0.0, 0.0])
        so_far[0] += time.process_time() - began
        so_far[1] += sum(len(values) - 1 for values in entropies)
        return entropies

    for begin in range(0, len(documents), BLOCK):
        block = documents[begin : begin + BLOCK]
        few = [document for document in block if len(document) <= PADDED][:PADDED_OF_BLOCK]
        packed = counted(PACKED, scorer.score(block))
        counted("transformers, padded", (in_transformers(entropy_model, document, PADDED) for document in few))
        theirs = (in_transformers(entropy_model, document, len(document) - 1) for document in block)
        single = counted("transformers, unpadded", theirs)
        counted("ours, one at a time", (alone(scorer.model, document) for document in block))
        largest = max(largest, *(float(np.abs(a - b).max()) for a, b in zip(packed, single)))
    rates = {name: size / time for name, (time, size) in spent.items()}
    total = sum(map(len, texts))
    print(f"{len(texts)} documents, {total:,} bytes, {total / len(texts):.0f} on average; streams of {stream}")
    for name, rate in rates.items():
        print(f"  {name:<22} {rate / 1e3:8.2f} kB/s   packed is {rates[PACKED] / rate:6.2f} times as fast")
    print(f"  largest difference of an entropy: {largest:.1e} nats")


def of_the_peak(texts: Sequence[bytes], stream: int, rounds: int = 3) -> None:
    model = fresh(PUBLISHED)
    long = [b"\n\n".join(texts)[: stream - 1]]
    lengths = [len(text) + 1 for text in long]
    print(f"published shape, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, a stream of {stream}")
    for dtype in ("float32", "bfloat16"):
        scorer = Scorer(model, stream, dtype)
        flops = forward_flops(PUBLISHED, useful_workload(PUBLISHED, lengths)).total
        list(scorer.score([document_tokens(long[0])]))
        best, peaks = float("inf"), list[float]()
        for _ in range(rounds):
            peaks.append(
                max(map(product_peak, (torch.float32, torch.bfloat16)))
            )  # bf16 products are the slower ones on some processors
            best = min(best, seconds(partial(list, scorer.score([document_tokens(long[0])]))))
        rate = flops / best
        of = share_of_peak(rate, peaks)
        print(f"  {dtype:<9} {sum(lengths) / best / 1e3:6.2f} kB/s  {rate / 1e9:6.1f} GFLOP/s useful: {of}")


def whole_runs(model: EntropyModel, texts: Sequence[bytes], stream: int, threads: int, rounds: int = 2) -> None:
    """A whole run against bare scoring, and two workers against one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "a.jsonl").open("w") as file:
            for text in texts:
                file.write(json.dumps({"text": text.decode(errors="replace")}) + "\n")
        save_model(model, SMALL, folder / "model")
        reading = ReadSettings(split_bytes=max((folder / "a.jsonl").stat().st_size // 4, 1))
        output = OutputSettings(
            patching=PatchingSettings(rule="entropy", theta=3.0).on_grid(),
            sidecar="uint8",
            scoring=ScoringSettings(stream_length=stream, threads=threads),
            entropy_model_sha256=model_sha256(folder / "model"),
        )
        scorer = Scorer(model, stream)
        documents = [document_tokens(text) for text in texts]
        bare, rates = [], {1: [], 2: []}  # type: ignore[var-annotated]
        for number in range(rounds):
            bare.append(seconds(lambda: [None for _ in scorer.score(documents)]))
            for workers, found in rates.items():
                job = Job(
                    out=folder / f"{number}-{workers}", reading=reading, output=output, entropy_model=folder / "model"
                )
                report = preprocess(job, [folder / "a.jsonl"], ExecutorSettings(executor="inline", workers=workers))
                assert report.progress is not None
                found.append(report.progress.updated - report.progress.began)
        total = sum(map(len, texts))
        one, two = min(rates[1]), min(rates[2])
        print(f"whole runs, {threads} thread a worker (set-up of workers not counted)")
        print(f"  bare scoring       {total / min(bare) / 1e3:8.2f} kB/s")
        print(f"  one worker         {total / one / 1e3:8.2f} kB/s   {min(bare) / one:.2f} of bare scoring")
        print(f"  two workers        {total / two / 1e3:8.2f} kB/s   {one / two / 2:.2f} of twice one")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path, nargs="*", default=OWN_SOURCES, help="(default: this project's sources)")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stream", type=int, default=4096)
    parser.add_argument("--published", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = sample(arguments.corpus, arguments.documents)
    model = fresh(SMALL)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {arguments.threads} threads, float32")
    against_one_at_a_time(model, texts, arguments.stream)
    whole_runs(model, texts, arguments.stream, arguments.threads)
    if arguments.published:
        of_the_peak(texts, arguments.stream)


if __name__ == "__main__":
    main()
