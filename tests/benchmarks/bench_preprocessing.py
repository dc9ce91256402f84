"""Preprocessing without a model: MB of text a second of one core, jsonl and Parquet to shards, short documents.

    python tests/benchmarks/bench_preprocessing.py [MB] [--rounds N] [--before TREE] [--datatrove PYTHON]

Documents of 250 and 1,000 bytes on average (code of this repository, cut anywhere), two subsets, rules static, space
and none. Every figure is of a process of its own and counts the seconds that it worked, without its start: planning
and all splits of a run. TREE: another checkout, measured by the same lines in turn. PYTHON: an interpreter that has
datatrove, which reads the same file and writes Parquet.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SIZES = (250, 1000)
RULES = ("static", "space", "none")
OURS = """
import sys, time
from pathlib import Path
from pipeline.run.driver import make_plan
from pipeline.settings import Job, OutputSettings, ReadSettings
from pipeline.splits.process import process_split
from shared.patching import PatchingSettings
source, out, rule = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
patching = PatchingSettings(rule=rule, stride=4 if rule == "static" else None)
job = Job(out=out, reading=ReadSettings(), output=OutputSettings(patching=patching))
for folder in ("train", "validation"):
    (out / folder).mkdir(parents=True)
begun = time.process_time()
plan = make_plan([source], job.reading)
for split in plan.splits:
    process_split(job, split, "")
print(time.process_time() - begun)
"""
DATATROVE = """
import sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.writers import ParquetWriter
folder, name, out = sys.argv[1:]
reader = (ParquetReader if name.endswith(".parquet") else JsonlReader)(folder, glob_pattern=name)
steps = [reader, ParquetWriter(out + "/written")]
begun = time.process_time()
LocalPipelineExecutor(pipeline=steps, tasks=1, logging_dir=out + "/logs").run()
print(time.process_time() - begun)
"""


def corpus(folder: Path, size: int, total: int) -> int:
    """Write documents as jsonl and Parquet; returns their bytes of text."""
    text = "".join(file.read_text() for file in sorted(ROOT.glob("*/**/*.py")) if ".venv" not in file.parts)
    draw = random.Random(size)
    rows = []
    for number in range(total // size):
        begin = draw.randrange(len(text) - 2 * size)
        own = text[begin : begin + draw.randint(size // 2, size * 3 // 2)]
        rows.append({"id": f"document-{number}", "text": own, "source": ("code", "web")[number % 3 == 0]})
    with (folder / f"{size}.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{size}.parquet", row_group_size=10_000, compression="zstd")
    return sum(len(row["text"].encode()) for row in rows)


def seconds(python: str, code: str, tree: Path, *arguments: object) -> float:
    """Processor seconds that a program prints as its last line."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def main(megabytes: float, rounds: int, before: Path | None, datatrove: str | None) -> None:
    trees = {"this tree": ROOT} | ({"before": before.resolve()} if before else {})
    print(f"MB of text a second of one core, the best of {rounds} rounds in turn")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            total = corpus(folder, size, int(megabytes * 1e6)) / 1e6
            for suffix in ("jsonl", "parquet"):
                source = folder / f"{size}.{suffix}"
                best: dict[str, float] = {}
                for number in range(rounds):
                    for who, tree in trees.items():
                        for rule in RULES:
                            out = folder / f"{who}-{suffix}-{rule}-{number}"
                            found = seconds(sys.executable, OURS, tree, source, out, rule)
                            key = f"{who}, {rule}"
                            best[key] = min(best.get(key, found), found)
                    if datatrove is not None:
                        out = folder / f"datatrove-{suffix}-{number}"
                        found = seconds(datatrove, DATATROVE, folder, folder, source.name, out)
                        best["datatrove"] = min(best.get("datatrove", found), found)
                shown = "  ".join(f"{who} {total / found:.1f}" for who, found in best.items())
                print(f"  {size:>5} bytes, {suffix:<7}  {shown}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="?", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--datatrove")
    options = parser.parse_args()
    main(options.megabytes, options.rounds, options.before, options.datatrove)
