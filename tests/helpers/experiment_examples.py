"""An experiment as a comparison leaves it, with made-up figures: ten systems, two seeds, two tables."""

import math
from pathlib import Path
from typing import Any

from trainer.experiments.results.results import (
    Comparison,
    Point,
    RateSweep,
    RateTried,
    Results,
    RunResult,
    System,
    Tokenizer,
)

SYSTEMS: tuple[tuple[str, Any, str, str | None, float, float, float, float | None], ...] = (
    ("bytes", "bytes", "A flat transformer over bytes.", None, 2.30, 3.1e6, 0.0, None),
    ("megabyte", "megabyte", "Patches of 4 bytes (MegaByte).", None, 2.46, 1.6e6, 0.0, 4.0),
    ("spacebyte", "spacebyte", "A global model at word boundaries (SpaceByte).", None, 2.26, 2.0e6, 0.0, 5.1),
    ("bpe", "bpe", "A Llama-shaped transformer over subwords.", None, 2.12, 1.1e6, 0.0, 3.3),
    ("blt-space", "blt", "BLT with patches at spaces.", None, 2.19, 1.9e6, 0.0, 5.1),
    ("blt-entropy-4.5", "blt", "BLT with patches where the next byte is hard to guess.", None, 2.17, 2.0e6, 3e5, 4.5),
    ("blt-entropy-6", "blt", "The same with longer patches.", None, 2.20, 1.8e6, 3e5, 6.0),
    ("blt-monotonic-4.5", "blt", "Patches where the entropy rises.", None, 2.18, 2.0e6, 3e5, 4.5),
    ("blt-newline-4.5", "blt", "The same; a newline resets the entropy model.", None, 2.185, 2.0e6, 3e5, 4.5),
    ("blt-no-ngrams", "blt", "Without hash n-gram tables.", "blt-entropy-4.5", 2.27, 2.0e6, 3e5, 4.5),
)
"""Name, family, description, ablates, bits per byte, FLOPs a byte, the entropy model's, bytes a patch."""
SUBSETS = {"code": -0.4, "prose": 0.3, "tldr-en": 0.05, "tldr-de": 0.12, "tldr-zh": 0.31}
BUDGET = 5e12


def made_up_results(seeds: int = 2, tables: tuple[str, ...] = ("flops", "bytes")) -> Results:
    """The record; ``seeds`` and ``tables`` say how much of it is done."""
    runs = tuple(
        _run(table, system, number, seed)
        for table in tables
        for number, system in enumerate(SYSTEMS)
        for seed in range(seeds)
    )
    pairs = (
        ("spacebyte", "megabyte"),
        ("blt-space", "megabyte"),
        ("blt-entropy-4.5", "blt-no-ngrams"),
        ("blt-entropy-4.5", "blt-space"),
        ("blt-entropy-4.5", "bpe"),
        ("bpe", "bytes"),
    )
    bits = {(run.system, run.seed): run.bits_per_byte for run in runs if run.table == "flops"}
    comparisons = [_comparison(bits, *pair, seeds) for pair in pairs] if seeds > 1 and "flops" in tables else []
    return Results(
        title="tldr, code and prose",
        corpus="tldr-train.jsonl.zst, algorithms-python.jsonl.zst, tinyshakespeare.txt",
        train_bytes=3_830_112,
        validation_bytes=172_031,
        budget_flops=BUDGET,
        budget_bytes=1_500_000 if "bytes" in tables else None,
        machine="a made-up processor, 1 thread a run, 2 runs at a time, torch 2.13.0",
        tokenizer=Tokenizer(vocabulary=4096, sha256="0" * 64, bytes_per_token=3.3),
        systems=tuple(System(name=s[0], family=s[1], description=s[2], ablates=s[3]) for s in SYSTEMS),
        runs=runs,
        comparisons=tuple(comparisons),
        document_bytes=(4_000,) * 43,
    )


def with_rates(results: Results) -> Results:
    """The record with what newer ones have: learning rates that were tried, a ranking, rates and processors of runs."""
    tried = tuple(
        RateTried(
            lr=lr,
            bits_per_byte=bits,
            folder=Path(f"runs/rates/bpe/{lr}"),
            useful_flops=1e9,
            entropy_flops=0,
            seconds=9,
            processors=("a made-up processor",),
        )
        for lr, bits in ((0.001, 2.4), (0.002, 2.2), (0.004, 2.3))
    )
    runs = [run.model_copy(update={"lr": 0.002, "processors": ("a made-up processor",)}) for run in results.runs]
    lead = results.comparisons[0].model_copy(update={"better": "bpe", "worse": "blt-entropy-4.5"})
    sweep = RateSweep(family="bpe", tables=False, system="bpe", seed=0, tried=tried)
    new = {"rates": (sweep,), "ranking": (lead,), "runs": tuple(runs), "entropy_counted": True}
    return results.model_copy(update=new)


def _run(table: Any, system: tuple[Any, ...], number: int, seed: int) -> RunResult:
    name, _, _, _, bits, flops, entropy_flops, patch = system
    bits += (0.012 * math.sin(7 * seed + number)) + (0.05 if table == "bytes" else 0.0)
    trained = 1_500_000 if table == "bytes" else round(BUDGET / (3 * flops))
    spent = 3.0 * flops * trained
    seconds = spent / (2.4e10 + 2e9 * math.cos(number))
    steps = [share / 5 for share in range(1, 6)]
    return RunResult(
        table=table,
        system=name,
        seed=seed,
        folder=Path(f"runs/{table}/{name}/seed-{seed}"),
        parameters=6_400_000 - 100_000 * number,
        table_parameters=3_145_728 if name.startswith("blt") and "no-ngrams" not in name else 0,
        steps=400,
        bytes=trained,
        passes=trained / 3_830_112,
        useful_flops=spent,
        entropy_flops=entropy_flops * trained,
        seconds=seconds,
        bits_per_byte=bits,
        bits_by_subset={subset: bits + more for subset, more in SUBSETS.items()},
        document_bits=(100.0, 200.0),
        bytes_per_patch=patch,
        flops_per_byte=flops,
        entropy_flops_per_byte=entropy_flops,
        curve=tuple(
            Point(
                step=round(400 * share),
                bytes=round(trained * share),
                useful_flops=spent * share,
                seconds=seconds * share,
                bits_per_byte=bits * share**-0.18,
            )
            for share in steps
        ),
    )


def _comparison(bits: dict[tuple[str, int], float], better: str, worse: str, seeds: int) -> Comparison:
    differences = tuple(bits[worse, seed] - bits[better, seed] for seed in range(seeds))
    mean = sum(differences) / seeds
    half = 6.3 * abs(differences[0] - differences[1])
    return Comparison(
        table="flops",
        better=better,
        worse=worse,
        differences=differences,
        mean=mean,
        low=mean - half,
        high=mean + half,
        confidence=0.95,
        document_low=mean - 0.012,
        document_high=mean + 0.013,
    )
