"""What distillation from a token model saves: training bytes, and bits per byte at equal FLOPs.

    python tests/benchmarks/study_distillation.py FOLDER [--bytes 1000000] [--share 0.2] [--seeds 0 1 2]

FOLDER holds what docs/results/2026-11-30-distillation.md makes: teacher/, a flat model over tokens, whose blocks are
the global transformer of every system; tokens/ and causal/, recuts of one dataset by rule bpe with the teacher's
tokenizer, which is tokenizer/, and by a causal rule; targets/, what the teacher says of it; recipe.toml. Runs go to
FOLDER/runs; one that is there is not repeated.

All systems have the recipe and the order of documents of their seed:

    (a) tokens   SHARE of the bytes as stage 1, blocks frozen, in patches that are the teacher's tokens;
                 then stage 2 on causal patches
    (a) causal   the same with stage 1 on the causal patches, too
    (b)          the teacher's blocks, no distillation: stage 2 alone
    (c)          from scratch
    (d) taught   no stage 1: the teacher's blocks, and its probabilities all along, on causal patches

In (a) the teacher's probabilities are learned from in both stages. Counted are the FLOPs of both stages, and of the
teacher over the bytes on which it is learned from; not those that made the teacher.

(c) trains on BYTES. Every other system is trained twice, on half as many, and until it has the FLOPs of (c), (a) on
tokens also on as many: the rate falls to its floor at the end of each run, so that the end of a run is compared with
the end of another. "bytes until (c)" are the training bytes, those of stage 1 included, of a run that ends where (c)
ends. Between two runs it is read off a line over the logarithm of bytes; of a run outside of them no more is said than
that. FOLDER/runs has the curves (curves.html) and their points (curves.csv).
"""

import argparse
import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from shared.distillation.targets_folder import load_targets
from shared.io.display.quantities import clock, quantity
from shared.io.display.tables import aligned
from shared.io.display.terminal import show
from trainer.drawing.chart import Curve, chart
from trainer.drawing.page import drawn_page, header, section
from trainer.experiments.results.statistics import student_interval
from trainer.metrics.history import History, load_history

ROOT = Path(__file__).parents[2]
GLOBAL_RATE = 0.5
"""Of the learning rate, for the blocks that come from the teacher, in stage 2 (as Bolmo has it)."""
OTHER = 100
"""Between the seeds of both stages."""
PROBABILITIES = 4
"""Weight of the divergence from the teacher, beside the text itself with 1 (as Bolmo has it)."""


@dataclass(frozen=True)
class Point:
    """A pass over the validation split."""

    bytes: float
    """Trained on."""
    flops: float
    bits: float


@dataclass(frozen=True)
class Trained:
    """A run, or the runs of both stages, with one seed."""

    points: list[Point]
    seconds: float
    terms: dict[str, float] | None = None
    """Of the loss of stage 1 in its last interval, nats a target; for the embedding squares a patch of its tokens."""

    @property
    def last(self) -> Point:
        return self.points[-1]


@dataclass(frozen=True)
class Both:
    """A system with one seed: half the bytes of (c), and all its FLOPs."""

    half: Trained
    full: Trained
    whole: Trained | None = None
    """On as many bytes as (c), where it is trained so."""

    def until(self, bits: float) -> float:
        """Training bytes of a run that ends with these bits: 0 if they are fewer than half, infinite if they are more
        than those of the longest run.
        """
        ends = [run.last for run in (self.half, self.full, self.whole) if run is not None]
        if ends[0].bits <= bits:
            return 0.0
        for one, other in pairwise(ends):
            if other.bits <= bits:
                share = (one.bits - bits) / (one.bits - other.bits)
                return math.exp(math.log(one.bytes) + share * math.log(other.bytes / one.bytes))
        return math.inf


@dataclass(frozen=True)
class System:
    """A way to begin with the teacher."""

    folder: str
    name: str
    first: str | None = None
    """The dataset of stage 1; None if there is none."""
    taught: bool = True
    """Whether stage 2 learns the teacher's probabilities."""
    whole: bool = False
    """Whether it is trained on as many bytes as (c), too."""


SYSTEMS = (
    System("blocks", "(b) blocks", taught=False),
    System("tokens", "(a) tokens", first="tokens", whole=True),
    System("causal", "(a) causal", first="causal"),
    System("taught", "(d) taught"),
)


@dataclass(frozen=True)
class Study:
    """What was given."""

    folder: Path
    bytes: int
    share: float
    seeds: Sequence[int]
    lr: float | None

    @property
    def teacher_flops(self) -> float:
        """FLOPs a byte of the teacher's pass."""
        _, manifest = load_targets(self.folder / "targets", "train")
        return manifest.flops / manifest.bytes

    def scratch(self, seed: int) -> Trained:
        """(c)."""
        out = self.folder / "runs" / str(seed) / "scratch"
        run = self._run(out, self.folder / "recipe.toml", "causal", seed, self.bytes)
        return of_run(run, per_byte(run))

    def trained(self, system: System, seed: int, budget: float) -> Both:
        """A system on half the bytes of (c), and with the FLOPs of its ``budget``."""
        half = self._stages(system, seed, self.bytes // 2, "half")
        rate = half.last.flops / half.last.bytes
        length = int(budget / rate)
        if length <= self.bytes // 2:
            sys.exit(f"{system.name} takes twice the FLOPs of (c): no run lies between half its bytes and its FLOPs")
        full = self._stages(system, seed, length, "full")
        return Both(half, full, self._stages(system, seed, self.bytes, "whole") if system.whole else None)

    def _stages(self, system: System, seed: int, length: int, name: str) -> Trained:
        given, runs = self.folder, self.folder / "runs" / str(seed)
        student = runs / "student"
        if not student.exists():
            words = ["--recipe", given / "recipe.toml", "--run.seed", seed]
            command("-m", "trainer", "byteify", given / "teacher", student, *words)
        recipe, start, before = student / "recipe.toml", student, None
        taught = ["--distillation.targets", given / "targets", "--distillation.probabilities", PROBABILITIES]
        if system.first is not None:
            wanted = [*taught, "--distillation.teacher", given / "teacher", "--start.model", start, *scaled(0)]
            if system.first == "causal":
                wanted += ["--distillation.tokenizer", given / "tokenizer"]
            start = runs / f"{system.folder}-{name}-1"
            before = self._run(start, recipe, system.first, seed, round(self.share * length), *wanted)
            start = start / "model"
            length -= before.lines[-1]["targets"]
        wanted = ["--start.model", start, *scaled(GLOBAL_RATE)]
        if system.taught:
            wanted += [*taught, "--distillation.embedding", 0]
        # Its text is not that of stage 1 again.
        order = seed if before is None else seed + OTHER
        run = self._run(runs / f"{system.folder}-{name}", recipe, "causal", order, length, *wanted)
        found = of_run(run, per_byte(run) + (self.teacher_flops if system.taught else 0.0))
        return found if before is None else after(before, per_byte(before) + self.teacher_flops, found)

    def _run(self, out: Path, recipe: Path, data: str, seed: int, length: int, *options: object) -> History:
        """Train, or find it trained."""
        if not (out / "model" / "identity.json").exists():
            words = ["--data.path", self.folder / data, "--run.out", out, "--run.seed", seed, "--run.bytes", length]
            lr = [] if self.lr is None else ["--optimizer.lr", self.lr]
            command("trainer/main.py", recipe, *words, *lr, *options)
        return load_history(out)


def scaled(rate: float) -> list[str]:
    """The option that gives the global transformer a share of the learning rate."""
    return ["--optimizer.rates", f"{{global_ = {rate}}}"]


def command(*words: object) -> None:
    """A program of this repository."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def per_byte(run: History) -> float:
    """Useful FLOPs a byte, the mean over its bytes."""
    ends: list[int] = [line["targets"] for line in run.lines]
    sizes = [end - before for before, end in zip([0, *ends], ends)]
    flops: float = sum(size * line["flops_per_byte"]["useful"] for size, line in zip(sizes, run.lines))
    return flops / ends[-1]


def of_run(run: History, rate: float) -> Trained:
    """``rate``: FLOPs a byte."""
    return Trained([Point(x, rate * x, bits) for x, bits in run.validation_curve()], run.lines[-1]["seconds"])


def after(before: History, rate: float, trained: Trained) -> Trained:
    """What came after a first stage, whose FLOPs a byte are ``rate``."""
    last = before.lines[-1]
    size, terms = last["targets"], dict(last["distillation"])
    points = [replace(at, bytes=at.bytes + size, flops=at.flops + rate * size) for at in trained.points]
    terms["embedding"] *= last["bytes_per_patch"]
    return Trained(points, trained.seconds + last["seconds"], terms)


def words(values: Sequence[float], digits: int) -> str:
    """A mean with its 95% interval over seeds."""
    found = student_interval(values)
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def report(study: Study, scratch: dict[int, Trained], found: dict[System, dict[int, Both]]) -> None:
    """Print the two figures, and write the curves."""
    heads = ["system", "bits/byte", "better than (c) by", "FLOPs", "bytes", "bytes until (c)", "times fewer", "time"]
    lines = [
        ["(c) from scratch", words([one.last.bits for one in scratch.values()], 4), "", *size(scratch), "", "", ""]
    ]
    halves, wholes = [], dict[str, list[float]]()
    for system, runs in found.items():
        full, half = {seed: both.full for seed, both in runs.items()}, {seed: both.half for seed, both in runs.items()}
        until = [both.until(scratch[seed].last.bits) for seed, both in runs.items()]
        longest = [(both.whole or both.full).last for both in runs.values()]
        most = f"{fmean(one.bytes for one in longest) / 1e3:,.0f}"
        lines.append(
            [
                system.name,
                words([one.last.bits for one in full.values()], 4),
                words([scratch[seed].last.bits - one.last.bits for seed, one in full.items()], 4),
                *size(full),
                *reached(until, study.bytes, most),
                clock(fmean(one.seconds for one in full.values())),
            ]
        )
        better = words([scratch[seed].last.bits - one.last.bits for seed, one in half.items()], 4)
        halves.append([system.name, words([one.last.bits for one in half.values()], 4), better, *size(half)])
        if any(both.whole for both in runs.values()):
            wholes[system.name] = [both.whole.last.bits for both in runs.values() if both.whole]
        firsts = [one.terms for one in half.values()]
        for term in ("bytes", "probabilities", "embedding"):
            # Of causal patches those that are no tokens have no embedding to learn.
            none = None in firsts or (term == "embedding" and system.first != "tokens")
            halves[-1].append("-" if none else f"{fmean(one[term] for one in firsts if one):.3f}")
    show(aligned(heads, lines, left=(0,)))
    show("")
    heads = ["half the bytes", "bits/byte", "better than (c) by", "FLOPs", "bytes"]
    show(aligned([*heads, "end of stage 1: bytes", "probabilities", "embedding"], halves, left=(0,)))
    show("")
    for name, bits in wholes.items():
        show(f"{name} on as many bytes as (c): {words(bits, 4)} bits/byte")
    show(f"teacher: {quantity(study.teacher_flops)}FLOP a byte; stage 1: {study.share:.0%} of the bytes")
    curves_of(study, scratch, found)


def reached(until: Sequence[float], whole: int, most: str) -> tuple[str, str]:
    """Bytes until (c), and how many times fewer they are than the ``whole`` of (c): where all seeds have a figure."""
    if fewer := sum(not value for value in until):
        return f"less than {whole // 2 / 1e3:,.0f} k, {fewer} of {len(until)}", "more than 2"
    if never := sum(math.isinf(value) for value in until):
        return f"more than {most} k, {never} of {len(until)}", "-"
    return words([value / 1e3 for value in until], 0) + " k", words([whole / value for value in until], 2)


def size(runs: dict[int, Trained]) -> list[str]:
    """FLOPs and bytes, means."""
    last = [one.last for one in runs.values()]
    return [quantity(fmean(point.flops for point in last)), quantity(fmean(point.bytes for point in last))]


def curves_of(study: Study, scratch: dict[int, Trained], found: dict[System, dict[int, Both]]) -> None:
    """Write the curves of the runs with equal FLOPs, and the points of all."""
    drawn = {
        "(c) from scratch": scratch,
        **{one.name: {at: both.full for at, both in runs.items()} for one, runs in found.items()},
    }
    halves = {f"{one.name}, half": {at: both.half for at, both in runs.items()} for one, runs in found.items()}
    with (study.folder / "runs" / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["system", "seed", "bytes", "flops", "bits_per_byte"])
        for name, runs in (drawn | halves).items():
            for seed, one in runs.items():
                table.writerows([name, seed, point.bytes, point.flops, point.bits] for point in one.points)
    curves = [
        Curve(name, [(point.bytes, point.bits) for point in one.points], colour, listed=seed == study.seeds[0])
        for colour, (name, runs) in enumerate(drawn.items())
        for seed, one in runs.items()
    ]
    figure = chart("Bits per byte of held-out text", "", "training bytes", curves, from_zero=False)
    (study.folder / "runs" / "curves.html").write_text(
        drawn_page("Distillation", header("Distillation", "") + section("Curves", figure))
    )


def check_runs(study: Study) -> None:
    """What is there is not repeated, so that it must have been made in the same way."""
    runs = study.folder / "runs"
    values = {"bytes": study.bytes, "share": study.share, "lr": study.lr}
    values |= {"global rate": GLOBAL_RATE, "probabilities": PROBABILITIES}
    runs.mkdir(exist_ok=True)
    if not (path := runs / "study.json").exists():
        path.write_text(json.dumps(values))
    elif (before := json.loads(path.read_text())) != values:
        sys.exit(f"{runs} holds runs of {before}; these are {values}: give another folder, or remove it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.2, help="of the bytes, for stage 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float)
    given = parser.parse_args()
    study = Study(given.folder.resolve(), given.bytes, given.share, given.seeds, given.lr)
    check_runs(study)
    scratch, found = {}, {system: dict[int, Both]() for system in SYSTEMS}
    for seed in study.seeds:
        scratch[seed] = study.scratch(seed)
        for system in SYSTEMS:
            found[system][seed] = study.trained(system, seed, scratch[seed].last.flops)
    report(study, scratch, found)


if __name__ == "__main__":
    main()
