"""Spoils artefacts of every boundary and reads them, each case in a process of its own.

python tests/fuzz/fuzz.py [--cases 20000] [--workers 2] [--seed 0] [--boundary NAME]... [--case NUMBER] [--keep FOLDER]

Prints cases per second and every failure with the command that repeats it; the exit code says whether there were any.
"""

import argparse
import hashlib
import multiprocessing
import pkgutil
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import fuzz_paths  # noqa: F401 (first: the others need it)
import torch
from boundaries import BOUNDARIES, WRITES, Boundary
from fuzz_common import Action
from sandbox import run_case

import pipeline.commands
import trainer.commands
from trainer.errors import USER_ERRORS

LATE = (
    *("dateutil.relativedelta", "pipeline.executors.inline", "pipeline.executors.processes", "shared.counts.scorer"),
    *("shared.incremental.blt", "shared.incremental.hnet", "shared.shards.in_memory", "trainer.data.packing.build"),
    *("trainer.evaluation.compatibility", "trainer.evaluation.tasks.running", "trainer.generation.generator"),
    *("trainer.interchange.folders", "trainer.planning.report"),
)
"""What commands import when they need it: imported here once, it is not in the time of every case."""
for package in (pipeline.commands, trainer.commands):
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(found.name)
for name in LATE:
    import_module(name)

REFUSALS = USER_ERRORS
"""How a reader that is called from Python says that an artefact is not as it should be."""


OF_LIBRARIES = {("parquet input", "killed: SIGABRT"), ("parquet export", "killed: SIGABRT")}
"""Boundaries and problems that are a library's own: pyarrow 26 ends the process where the statistics in a footer have
histograms of a wrong length, an exception that its C++ does not hand on."""


@dataclass(frozen=True)
class Failure:
    """A case that did not end as it should."""

    boundary: str
    seed: int
    case: int
    action: str
    mutation: str
    problem: str
    words: str

    def __str__(self) -> str:
        again = f"--boundary {self.boundary!r} --seed {self.seed} --case {self.case}"
        return f"{self.boundary}, {self.action}, {self.mutation}: {self.problem}\n    again: fuzz.py {again}"


class Fuzzer:
    """Valid artefacts of some boundaries, made once, and cases of them."""

    def __init__(self, boundaries: Sequence[Boundary], folder: Path) -> None:
        self._boundaries, self._folder = list(boundaries), folder
        for boundary in boundaries:
            place = folder / "valid" / boundary.name
            place.mkdir(parents=True)
            boundary.make(place)

    def valid(
        self, boundary: Boundary, done: set[tuple[bytes, Action]] | None = None
    ) -> Iterator[tuple[str, str | None, str]]:
        """Every action on the valid artefact: its name, its problem if there is one, and what it printed.

        What is in ``done`` has been tried on the same bytes, and is left out; what is tried is added.
        """
        digest = _digest(self._folder / "valid" / boundary.name)
        for number, action in enumerate(boundary.actions):
            if done is not None and (digest, action) in done:
                continue
            if done is not None:
                done.add((digest, action))
            place = self._copy(boundary, f"{boundary.name}-valid-{number}")
            outcome = run_case(place / "in", [partial(_checked, action)], (), action in WRITES)
            yield action.__name__, outcome.problem, outcome.words
            shutil.rmtree(place)

    def case(self, boundary: Boundary, seed: int, number: int, keep: bool = False) -> Failure | None:
        """Spoil a copy of the artefact and read it."""
        rng = random.Random(f"{boundary.name}/{seed}/{number}")
        place = self._copy(boundary, f"{boundary.name}-{number}")
        before = _listing(place / "outside")
        mutation = boundary.mutate(rng, place / "in")
        action = rng.choice(boundary.actions)
        outcome = run_case(place / "in", [action], REFUSALS, action in WRITES)
        problem = outcome.problem
        if problem is None and _listing(place / "outside") != before:
            problem = "changes something outside its folder"
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
        if problem is None or (boundary.name, problem) in OF_LIBRARIES:
            return None
        return Failure(boundary.name, seed, number, action.__name__, mutation, problem, outcome.words)

    def _copy(self, boundary: Boundary, name: str) -> Path:
        place = self._folder / "cases" / name
        shutil.copytree(self._folder / "valid" / boundary.name, place / "in")
        (place / "outside").mkdir()
        (place / "outside" / "file").write_text("not to be touched")
        return place


def _checked(action: Action, folder: Path) -> None:
    code = action(folder)
    if code not in (None, 0):
        raise AssertionError(f"the valid artefact is refused: exit code {code}")


def _digest(folder: Path) -> bytes:
    """Of names and contents."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr([(str(p.relative_to(folder)), p.read_bytes()) for p in files]).encode()).digest()


def _listing(folder: Path) -> list[tuple[str, int, int, bytes]]:
    files = sorted(folder.rglob("*"))
    return [(str(p), p.lstat().st_ino, p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in files]


def fuzz(boundaries: Sequence[Boundary], cases: int, seed: int, folder: Path) -> Iterator[Failure | None]:
    """Cases of all boundaries in turn; what came of each."""
    torch.set_num_threads(1)
    fuzzer = Fuzzer(boundaries, folder)
    for number in range(cases):
        yield fuzzer.case(boundaries[number % len(boundaries)], seed, number // len(boundaries))


def _share(
    names: Sequence[str], cases: int, seed: int, results: "multiprocessing.Queue[Failure | bool | None]"
) -> None:
    boundaries = [boundary for boundary in BOUNDARIES if boundary.name in names]
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            for failure in fuzz(boundaries, cases, seed, Path(folder)):
                results.put(failure)
    finally:
        results.put(True)  # also when an artefact cannot be made: then cases are missing, and that is a failure


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="cases in all (20000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other cases (0)")
    parser.add_argument("--boundary", action="append", help="only this one (repeatable)")
    parser.add_argument("--case", type=int, help="one case again, with all that it says; needs one --boundary")
    parser.add_argument("--keep", type=Path, help="with --case: a folder that keeps the spoiled artefact")
    options = parser.parse_args()
    names = [boundary.name for boundary in BOUNDARIES]
    if unknown := set(options.boundary or ()) - set(names):
        parser.error(f"no boundary is called {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    names = options.boundary or names
    if options.case is not None:
        torch.set_num_threads(1)
        (boundary,) = [boundary for boundary in BOUNDARIES if boundary.name in names]
        folder = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
        found = Fuzzer([boundary], folder).case(boundary, options.seed, options.case, keep=options.keep is not None)
        print(found and f"{found}\n{found.words}")
        return int(found is not None)
    return _all(names, options.cases, options.workers, options.seed)


def _all(names: Sequence[str], cases: int, workers: int, seed: int) -> int:
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    results = context.Queue()
    shares = [cases // workers + (n < cases % workers) for n in range(workers)]
    started = [
        context.Process(target=_share, args=(names, share, seed * 1000 + n, results)) for n, share in enumerate(shares)
    ]
    for process in started:
        process.start()
    done, kinds, ended = 0, Counter[str](), 0
    while ended < workers:
        result = results.get()
        if result is True:
            ended += 1
            continue
        done += 1
        if isinstance(result, Failure):
            kind = f"{result.boundary}: {result.problem[:80]}"
            kinds[kind] += 1
            if kinds[kind] <= 2:
                print(result, flush=True)
        if done % 1000 == 0:
            rate = done / (time.monotonic() - began)
            print(f"{done:,} of {cases:,} cases, {rate:.0f}/s, {sum(kinds.values())} failures", flush=True)
    seconds = time.monotonic() - began
    found = f"{sum(kinds.values())} failures"
    print(f"{done:,} cases of {len(names)} boundaries in {seconds:.0f} s ({done / seconds:.1f}/s), {found}")
    for kind, count in kinds.most_common():
        print(f"  {count:5} {kind}")
    return int(bool(kinds) or done < cases)


if __name__ == "__main__":
    sys.exit(main())
