"""Whether two checkouts compute the same, bit for bit: for changes that are to change names and structure only.

    python tests/same_results.py OLD NEW [--text FILE] [--samples FILE] [--keep FOLDER]

Runs the whole chain in both on this machine, with this interpreter: text to shards, an entropy model, a threshold,
patched shards, both small recipes over 40 steps on one and on two ranks, a greedy sample and an export; then a sample
in many languages in both formats, and a run without duplicates. It compares what is decoded, and says where the files
themselves differ. tests/renames.toml of a checkout says what is called otherwise in it.
"""

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
SMALL = ["--run.steps", str(STEPS), "--data.tokens", "1024", "--metrics.validate_every", "20"]
FIGURES = ("loss", "bits_per_byte", "grad_norm", "targets", "lr", "bytes_per_patch", "token_fill", "patch_fill")
"""Of metrics.jsonl, which follow from data, settings and seed; the others are times and memory."""

PROBE = """
import hashlib, importlib, inspect, itertools, sys
def found(*places):
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {places} is there")
open_dataset = found("shared.shards.open:open_dataset", "shared.shards.dataset:open_dataset")
limits = found("trainer.data.packing.limits:pack_limits", "trainer.data.limits:pack_limits")
from trainer.data.loader import PackLoader
ARRAYS = "document ended ids in_slice labels slice_bytes slice_patches slice_targets slice_text subset".split()
dataset = open_dataset(sys.argv[1])
streams = "streams" if "streams" in inspect.signature(PackLoader).parameters else "lanes"
loader = PackLoader(dataset, limits(dataset.manifest, 1024), packs_per_step=2, seed=1, **{streams: 8})
for pack in itertools.islice(loader, 80):
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(name.encode() + getattr(pack, name).tobytes())
    print(digest.hexdigest())
"""
"""Prints a digest of each of the first packs: every array of it."""


class Side:
    """One checkout and the folder that its commands run in."""

    def __init__(self, checkout: Path, folder: Path, options: Mapping[str, str]) -> None:
        self.checkout, self.folder, self._options = checkout.resolve(), folder, options
        folder.mkdir(parents=True)

    def run(self, *words: object) -> str:
        """Run python with these words; what it prints. Raises SystemExit where it fails."""
        line = [sys.executable, *(self._options.get(str(word), str(word)) for word in words)]
        variables = {**os.environ, "PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        done = subprocess.run(line, cwd=self.folder, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.checkout}: {' '.join(line[1:])}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout

    def train(self, recipe: str, data: str, out: str, ranks: int) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks > 1 else []
        main, settings = self.checkout / "trainer/main.py", self.checkout / "trainer/recipes" / recipe
        self.run(*launcher, main, settings, "--data.path", data, "--run.out", out, *SMALL)


def chain(side: Side, text: Path, samples: Path) -> None:
    """Everything that is compared."""
    inline = ("--executor", "inline", "--workers", 1)
    side.run("-m", "pipeline", "preprocess", text, "--for-training", "--rule", "none", "--out", "corpus", *inline)
    for ranks in (1, 2):
        side.train("entropy-small.toml", "corpus", f"entropy-{ranks}", ranks)
    entropy = "entropy-1/model"
    side.run(
        "-m", "pipeline", "calibrate", "corpus/train", "--patcher", entropy, "--target", 4.5, "--out", "patching.json"
    )
    cut = ("--patcher", entropy, "--patching", "patching.json", "--sidecar", "float32", *inline)
    side.run("-m", "pipeline", "preprocess", "corpus", "--out", "patched", *cut)
    side.run("-m", "pipeline", "preprocess", "corpus", "--out", "unique", "--dedup", *cut)
    sampled = ("--sample-bytes", 60_000, "--seed", 3, "--subset-column", "lang", "--meta")
    for kind in ("arrow", "webdataset"):
        side.run(
            "-m", "pipeline", "preprocess", samples, "--out", f"languages-{kind}", "--format", kind, *cut, *sampled
        )
    for ranks in (1, 2):
        side.train("blt-small.toml", "patched", f"blt-{ranks}", ranks)
    prompt = ("--prompt", "def ", "--bytes", 200, "--temperature", 0, "--json")
    written = json.loads(side.run("-m", "trainer", "generate", "blt-1/model", *prompt).splitlines()[0])
    for key in ("seconds", "bytes_per_second"):
        written.pop(key, None)
    (side.folder / "sample.json").write_text(json.dumps(written))
    side.run("-m", "trainer", "export-hf", "blt-1/model", "exported")
    side.run("-m", "trainer", "evaluate", "blt-1/model", "patched", "--json", "evaluation.json")
    for data in ("corpus", "patched"):
        (side.folder / f"packs-{data}.txt").write_text(side.run("-c", PROBE, f"{data}/train"))


# ---- What is compared: a name and two values, each made from one side's folder


def tensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def batches(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        return [row for batch in _read(source) for row in batch.to_pylist()]


def _read(source: pa.NativeFile) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(source)
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def figures(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: line[name] for name in ("step", *FIGURES) if name in line} for line in lines]


def scores(path: Path) -> Any:
    return [
        value for key, value in sorted(json.loads(path.read_text()).items()) if key in ("subsets", "total", "models")
    ]


READERS: dict[str, Callable[[Path], Any]] = {
    "*.arrow": batches,
    "*.index": batches,
    "*.entropy": batches,
    "*.tar": members,
    "metrics.jsonl": figures,
    "evaluation.json": scores,
    "sample.json": lambda path: json.loads(path.read_text()),
    "packs-*.txt": lambda path: path.read_text().splitlines(),
    "patching.json": lambda path: {k: v for k, v in json.loads(path.read_text()).items() if "theta" in k},
    "model.safetensors": tensors,
}

LISTED = "files-*.arrow"
"""Inputs of a run, with their times."""


def compared(old: Path, new: Path, names: Mapping[str, str], folders: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(file, verdict) for every file of a kind that is compared; "equal", or what differs."""
    for pattern, reader in READERS.items():
        before, after = (
            {p.relative_to(side) for p in side.rglob(pattern) if not ("checkpoints" in p.parts or p.match(LISTED))}
            for side in (old, new)
        )
        was = {Path(*(folders.get(part, part) for part in place.parts)): place for place in before}
        for place in sorted(after | was.keys()):
            if place not in was or place not in after:
                yield str(place), "only on one side"
                continue
            ours, theirs = reader(new / place), reader(old / was[place])
            if isinstance(theirs, dict) and pattern == "model.safetensors":
                theirs = {renamed(name, names): value for name, value in theirs.items()}
            words = difference(theirs, ours)
            bytes_equal = (old / was[place]).read_bytes() == (new / place).read_bytes()
            yield str(place), words or ("equal" if bytes_equal or pattern == "metrics.jsonl" else "equal when decoded")


def renamed(name: str, names: Mapping[str, str]) -> str:
    for before, after in names.items():
        name = re.sub(before, after, name)
    return name


def difference(old: Any, new: Any, where: str = "") -> str:
    """Where two values first differ; empty where they do not. NaN equals NaN, and arrays are compared as bytes."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        equal = old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes()
        return "" if equal else f"{where}: other values"
    if type(old) is not type(new):
        return f"{where}: {type(old).__name__}, now {type(new).__name__}"
    if isinstance(old, dict):
        if old.keys() != new.keys():
            return f"{where}: keys {sorted(old.keys() ^ new.keys())}"
        return next(filter(None, (difference(old[key], new[key], f"{where}/{key}") for key in old)), "")
    if isinstance(old, list | tuple):
        if len(old) != len(new):
            return f"{where}: {len(old)} values, now {len(new)}"
        return next(filter(None, (difference(a, b, f"{where}/{n}") for n, (a, b) in enumerate(zip(old, new)))), "")
    same = old == new or (isinstance(old, float) and old != old and new != new)
    return "" if same else f"{where}: {old!r:.60}, now {new!r:.60}"


def main() -> int:
    """The command line; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout from before the change")
    parser.add_argument("new", type=Path, help="a checkout from after it")
    parser.add_argument("--text", type=Path, help="text to train on (default: documentation of this project)")
    parser.add_argument("--samples", type=Path, help="jsonl with columns text and lang (default: made up)")
    parser.add_argument("--keep", type=Path, help="a folder that keeps what both have made; a side that is there stays")
    options = parser.parse_args()
    table = tomllib.loads((ROOT / "tests/renames.toml").read_text())
    folder = options.keep or Path(tempfile.mkdtemp(prefix="same-results-"))
    folder.mkdir(parents=True, exist_ok=True)
    text, samples = (
        options.text or _own_text(folder / "text.txt"),
        options.samples or _languages(folder / "languages.jsonl"),
    )
    for name, checkout in (("old", options.old), ("new", options.new)):
        began, done = time.monotonic(), folder / f"{name}.done"
        if done.exists():
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        chain(Side(checkout, folder / name, _options_of(checkout)), text.resolve(), samples.resolve())
        done.touch()
        print(f"{name}: {checkout} in {time.monotonic() - began:.0f} s", flush=True)
    different = 0
    for place, verdict in compared(folder / "old", folder / "new", table["parameters"], table["folders"]):
        different += not verdict.startswith("equal")
        print(f"  {verdict if verdict.startswith('equal') else 'DIFFERENT: ' + verdict:20} {place}")
    print(f"{different} files differ" if different else "everything that is computed is equal")
    return int(different > 0)


def _options_of(checkout: Path) -> dict[str, str]:
    """What options that are called otherwise by now are called in a checkout."""
    renames = checkout / "tests/renames.toml"
    found: dict[str, str] = tomllib.loads(renames.read_text())["options"] if renames.exists() else {}
    return found


def _own_text(path: Path) -> Path:
    if not path.exists():  # a side that is kept was made from it
        path.write_text("\n\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))))
    return path


def _languages(path: Path) -> Path:
    """Made-up texts in several scripts, with records that occur twice."""
    words = {
        "en": "the house on the hill",
        "el": "το σπίτι στο λόφο",
        "ja": "丘の上の家",
        "hi": "पहाड़ी पर घर",
        "ru": "дом на холме",
    }
    with path.open("w") as file:
        for number in range(400):
            lang = sorted(words)[number % len(words)]
            text = f"{words[lang]} {number // 10}. " * (1 + number % 7)
            file.write(json.dumps({"text": text, "lang": lang, "number": number}, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
