"""Speed of the pipeline as ratios within one run: reading against bare json.loads, a whole run against its scoring.

python tests/benchmarks/bench_pipeline.py [MB of text [MB to be scored]]
"""

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from pipeline.plan import Plan
from pipeline.read import read_split
from pipeline.run.driver import make_plan
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import Job, OutputSettings, ReadSettings, ScoringSettings
from pipeline.splits.process import process_split
from shared.inputs import DocumentScorer
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise
from shared.patching import PatchingSettings
from shared.vocabulary import document_tokens

MODEL = EntropyModelSettings(width=128, layers=4, heads=4, window=128)
RULES: tuple[Literal["none", "byte", "space"], ...] = ("none", "byte", "space")


def corpus(path: Path, size: int) -> int:
    """Write about ``size`` bytes of text as jsonl, from this project's own sources; returns the bytes of text."""
    texts = [file.read_text() for file in sorted(Path(__file__).parents[2].glob("*/*.py"))]
    written = number = 0
    with path.open("w") as file:
        while written < size:
            text = texts[number % len(texts)]
            file.write(json.dumps({"id": number, "lang": "python", "text": text}) + "\n")
            written, number = written + len(text.encode()), number + 1
    return written


def as_parquet(lines: Path, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines.open("rb")]), path, row_group_size=5000)


def as_arrow(lines: Path, path: Path) -> None:
    table = pq.read_table(lines.parent / "a.parquet")
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


def as_webdataset(lines: Path, path: Path) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for line in lines.open("rb"):
            record = json.loads(line)
            writer.write({"__key__": f"{record['id']:09d}", "txt": record["text"], "json": {"lang": record["lang"]}})


def as_wet(lines: Path, path: Path) -> None:
    with path.open("wb") as file:
        for line in lines.open("rb"):
            text = json.loads(line)["text"].encode()
            head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(text)}\r\n\r\n"
            file.write(gzip.compress(head.encode() + text + b"\r\n\r\n"))


OTHER_FORMATS: dict[str, Callable[[Path, Path], None]] = {
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "a.tar": as_webdataset,
    "a.warc.wet.gz": as_wet,
}


def timed(work: Callable[[], object]) -> float:
    """The shorter of two runs, in seconds: the machine is rarely ours alone."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(megabytes: float, scored_megabytes: float) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = corpus(folder / "a.jsonl", int(megabytes * 1e6))
        reading = ReadSettings(validation_fraction=0)

        def job(output: OutputSettings) -> Job:
            return Job(out=folder / "out", reading=reading, output=output)

        def read(plan: Plan) -> None:
            for split in plan.splits:
                for _ in read_split(split, reading):
                    pass

        def process(job: Job, plan: Plan, scorer: DocumentScorer | None = None) -> None:
            for split in plan.splits:
                process_split(job, split, "", scorer)

        plan = make_plan([folder / "a.jsonl"], reading)
        bare = timed(lambda: [json.loads(line)["text"].encode() for line in (folder / "a.jsonl").open("rb")])
        print(f"{size / 1e6:.1f} MB of text in jsonl, one thread")
        rates = [("json.loads alone", bare)]
        rates.append(("read records", timed(partial(read, plan))))
        for name, write in OTHER_FORMATS.items():
            write(folder / "a.jsonl", folder / name)
            other = make_plan([folder / name], reading)
            rates.append((f"read records, {name}", timed(partial(read, other))))
        for rule in RULES:
            work = job(OutputSettings(patching=PatchingSettings(rule=rule)))
            rates.append((f"whole run, rule {rule}", timed(partial(process, work, plan))))
        for what, seconds in rates:
            print(f"  {what:<28} {size / seconds / 1e6:8.1f} MB/s  {bare / seconds:5.2f} of json.loads")

        model = build_model(MODEL)
        initialise(model, 1)
        save_model(model, MODEL, folder / "model")
        scoring = ScoringSettings()
        scorer, _ = load_scorer(folder / "model", scoring)
        scored = corpus(folder / "b.jsonl", int(scored_megabytes * 1e6))
        texts = [json.loads(line)["text"].encode() for line in (folder / "b.jsonl").open("rb")]
        alone = timed(lambda: sum(len(e) for e in scorer.score(map(document_tokens, texts))))
        plan = make_plan([folder / "b.jsonl"], reading)
        output = OutputSettings(
            patching=PatchingSettings(rule="entropy", theta=5.0).on_grid(),
            sidecar="uint8",
            scoring=scoring,
            entropy_model_sha256=model_sha256(folder / "model"),
        )
        whole = timed(partial(process, job(output), plan, scorer))
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{scored / 1e6:.1f} MB scored by {parameters / 1e6:.2f}M parameters, one thread, {scoring.dtype}")
        print(f"  scoring alone                {scored / alone / 1e3:8.1f} kB/s")
        print(f"  whole run                    {scored / whole / 1e3:8.1f} kB/s  {alone / whole:5.2f} of scoring alone")


if __name__ == "__main__":
    given = tuple(map(float, sys.argv[1:]))
    main(*given, *(20.0, 0.3)[len(given) :])
