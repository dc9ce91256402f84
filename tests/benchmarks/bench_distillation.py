"""What distillation from a token model saves: training bytes, and bits per byte at equal FLOPs.

    python tests/benchmarks/bench_distillation.py FOLDER [--bytes 1000000] [--first 200000] [--seeds 0 1 2]

FOLDER holds what docs/results/2026-11-30-distillation.md makes: teacher/, a flat model over tokens, whose blocks are
the global transformer of every system; tokens/ and causal/, recuts of one dataset by rule bpe with the teacher's
tokenizer, which is tokenizer/, and by a causal rule; targets/, what the teacher says of it; recipe.toml. Runs go to
FOLDER/runs; one that is there is not repeated.

All systems have the recipe, the order of documents of their seed, and the FLOPs of (c), which trains on BYTES:

    (a) tokens   stage 1 on FIRST bytes in patches that are the teacher's tokens, then stage 2 on causal patches
    (a) causal   stage 1 on the causal patches, then the same
    (b)          the teacher's blocks, no distillation: stage 2 alone
    (c)          from scratch
    (d) taught   the teacher's blocks, and its probabilities all along: stage 2 alone, on causal patches

Counted are the FLOPs of both stages, and of the teacher over the bytes on which it is learned from; not those that made
the teacher.
"bytes until (c)" are all training bytes, those of stage 1 included, after which a system's validation is what (c)'s is
at its end; between two validations the curve is a line. FOLDER/runs has the curves (curves.html) and their points
(curves.csv).
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Point:
    """A pass over the validation split."""

    bytes: float
    """Trained on."""
    flops: float
    bits: float


def pairs_of(one: Point, other: Point) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bytes, and FLOPs, of both."""
    return (one.bytes, other.bytes), (one.flops, other.flops)


@dataclass(frozen=True)
class Trained:
    """A system with one seed."""

    points: list[Point]
    seconds: float

    @property
    def last(self) -> Point:
        return self.points[-1]

    def until(self, bits: float) -> Point | None:
        """Where its validation first is as low as this; None if it never is."""
        before = None
        for point in self.points:
            if point.bits <= bits:
                if before is None or before.bits <= bits:
                    return point
                share = (before.bits - bits) / (before.bits - point.bits)
                size, flops = (a + share * (b - a) for a, b in pairs_of(before, point))
                return Point(size, flops, bits)
            before = point
        return None


@dataclass(frozen=True)
class Study:
    """What was given."""

    folder: Path
    bytes: int
    first: int
    seeds: Sequence[int]
    lr: float | None

    @property
    def teacher_flops(self) -> float:
        """FLOPs a byte of the teacher's pass."""
        _, manifest = load_targets(self.folder / "targets", "train")
        return manifest.flops / manifest.bytes

    def trained(self, seed: int) -> dict[str, Trained]:
        """All systems, each with its points over bytes and FLOPs."""
        given, runs = self.folder, self.folder / "runs" / str(seed)
        scratch = self._run(runs / "scratch", given / "recipe.toml", given / "causal", seed, self.bytes)
        rate = per_byte(scratch)
        budget = rate * scratch.lines[-1]["targets"]
        student, recipe = runs / "student", runs / "student" / "recipe.toml"
        if not student.exists():
            words = ["--recipe", given / "recipe.toml", "--run.seed", seed]
            command("-m", "trainer", "byteify", given / "teacher", student, *words)
        start = ["--start.model", student, *scaled(GLOBAL_RATE)]
        copied = self._run(runs / "blocks", recipe, given / "causal", seed, self.bytes, *start)
        found = {"(c) from scratch": of_run(scratch), "(b) blocks": of_run(copied)}
        for name in ("tokens", "causal"):
            wanted = ["--distillation.targets", given / "targets", "--distillation.teacher", given / "teacher"]
            if name == "causal":
                wanted += ["--distillation.tokenizer", given / "tokenizer"]
            start = ["--start.model", student, *scaled(0)]
            first = self._run(runs / f"{name}-1", recipe, given / name, seed, self.first, *wanted, *start)
            spent = (per_byte(first) + self.teacher_flops) * first.lines[-1]["targets"]
            start = ["--start.model", runs / f"{name}-1" / "model", *scaled(GLOBAL_RATE)]
            left = int((budget - spent) / rate)
            second = self._run(runs / f"{name}-2", recipe, given / "causal", seed, left, *start)
            found[f"(a) {name}"] = after(of_run(second), first.lines[-1]["targets"], spent, seconds_of(first))
        wanted = ["--distillation.targets", given / "targets", "--distillation.embedding", 0]
        start = ["--start.model", student, *scaled(GLOBAL_RATE)]
        length = int(budget / (rate + self.teacher_flops))
        taught = self._run(runs / "taught", recipe, given / "causal", seed, length, *wanted, *start)
        found["(d) taught"] = after(of_run(taught), 0, 0.0, 0.0, self.teacher_flops)
        return found

    def _run(self, out: Path, recipe: Path, data: Path, seed: int, length: int, *options: object) -> History:
        """Train, or find it trained."""
        if not (out / "model" / "identity.json").exists():
            words = ["--data.path", data, "--run.out", out, "--run.seed", seed, "--run.bytes", length]
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
    """Useful FLOPs a byte, the mean over its intervals."""
    return fmean(line["flops_per_byte"]["useful"] for line in run.lines)


def seconds_of(run: History) -> float:
    return float(run.lines[-1]["seconds"])


def of_run(run: History) -> Trained:
    rate = per_byte(run)
    return Trained([Point(x, rate * x, bits) for x, bits in run.validation_curve()], seconds_of(run))


def after(trained: Trained, size: float, flops: float, seconds: float, more: float = 0.0) -> Trained:
    """What came after a first stage of so many bytes and FLOPs; ``more``: FLOPs a byte that it has not counted."""
    points = [
        replace(point, bytes=point.bytes + size, flops=point.flops + flops + more * point.bytes)
        for point in trained.points
    ]
    return Trained(points, trained.seconds + seconds)


def words(values: Sequence[float], digits: int) -> str:
    """A mean with its 95% interval over seeds."""
    found = student_interval(values)
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def report(study: Study, found: dict[int, dict[str, Trained]]) -> None:
    """Print the two figures, and write the curves."""
    heads = ["system", "bits/byte", "better than (c) by", "FLOPs", "bytes", "bytes until (c)", "times fewer", "time"]
    lines = []
    for name in next(iter(found.values())):
        own = {seed: systems[name] for seed, systems in found.items()}
        scratch = {seed: systems["(c) from scratch"] for seed, systems in found.items()}
        better = [scratch[seed].last.bits - own[seed].last.bits for seed in own]
        reached = {seed: one.until(scratch[seed].last.bits) for seed, one in own.items()}
        fewer = [scratch[seed].last.bytes / point.bytes for seed, point in reached.items() if point is not None]
        until = [point.bytes for point in reached.values() if point is not None]
        never = len(own) - len(until)
        lines.append(
            [
                name,
                words([one.last.bits for one in own.values()], 4),
                words(better, 4),
                quantity(fmean(one.last.flops for one in own.values())),
                quantity(fmean(one.last.bytes for one in own.values())),
                (words([value / 1e3 for value in until], 0) + " k") if until else "never",
                (words(fewer, 2) if fewer else "-") + (f", {never} never" if never else ""),
                clock(fmean(one.seconds for one in own.values())),
            ]
        )
    show(aligned(heads, lines, left=(0,)))
    show(f"teacher: {quantity(study.teacher_flops)}FLOP a byte of stage 1, which is {quantity(study.first)}B")
    with (study.folder / "runs" / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["system", "seed", "bytes", "flops", "bits_per_byte"])
        for seed, systems in found.items():
            for name, one in systems.items():
                table.writerows([name, seed, point.bytes, point.flops, point.bits] for point in one.points)
    curves = [
        Curve(name if number == 0 else "", [(point.bytes, point.bits) for point in systems[name].points], colour)
        for number, systems in enumerate(found.values())
        for colour, name in enumerate(systems)
    ]
    drawn = chart("Bits per byte of held-out text", "", "training bytes", curves, from_zero=False)
    (study.folder / "runs" / "curves.html").write_text(
        drawn_page("Distillation", header("Distillation", "") + section("Curves", drawn))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float)
    given = parser.parse_args()
    study = Study(given.folder.resolve(), given.bytes, given.first, given.seeds, given.lr)
    report(study, {seed: study.trained(seed) for seed in study.seeds})


if __name__ == "__main__":
    main()
