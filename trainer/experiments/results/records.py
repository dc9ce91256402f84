"""From the folder of a run to its place in the results: what it logged, and what its model scored. Free of torch."""

from pathlib import Path

from shared.settings import Settings
from shared.shards.manifest import load_manifest
from trainer.data.splits import TRAIN_SPLIT
from trainer.experiments.results.results import Point, RunResult, Scored, Table
from trainer.metrics.history import History, load_history
from trainer.provenance.json_records import Value, expected, kept

SCORE_NAME = "score.json"


class Score(Scored):
    """What a model scored on the validation split of its run."""

    run: str
    """Digest of the run's identity."""
    documents: str
    """Digest of the ids of the documents, in order: runs with equal ones can be compared document by document."""
    document_bytes: tuple[int, ...]


def load_score(folder: Path) -> Score | None:
    """The score beside a run; None when there is none yet. Raises ConfigError for a damaged one."""
    return kept(folder / SCORE_NAME, Score)


def expected_score(folder: Path) -> Score:
    """The same where there must be one. Raises ConfigError."""
    return expected(folder / SCORE_NAME, Score, "make compare")


def result_of(experiment: Path, run: Path, table: Table, system: str, seed: int) -> RunResult:
    """What is recorded of a run that is trained and scored. Raises ConfigError when it is not."""
    score, history = expected_score(run), load_history(run)
    points = spent(history)
    last = points[-1]
    train = load_manifest(Path(history.config["data"]["path"]) / TRAIN_SPLIT).totals.bytes
    return RunResult(
        table=table,
        system=system,
        seed=seed,
        folder=run.relative_to(experiment),
        steps=last.step,
        passes=last.bytes / train,
        lr=history.config["optimizer"]["lr"],
        processors=processors_of(history),
        **last.model_dump(exclude={"step"}),
        curve=curve(history, points),
        **score.model_dump(exclude={"run", "documents", "document_bytes"}),
    )


def processors_of(history: History) -> tuple[str, ...]:
    """Names of the processors that a run was started on."""
    return tuple(sorted({start["processor"][:200] for start in history.starts if start.get("processor")}))


class Spent(Settings):
    """What a run has used up after a step."""

    step: int
    bytes: int
    useful_flops: Value
    entropy_flops: Value
    seconds: Value


def spent(history: History) -> list[Spent]:
    """The sums of what a run logged, after each of its lines; validations and saves take none of its seconds."""
    found, before = [], Spent(step=0, bytes=0, useful_flops=0.0, entropy_flops=0.0, seconds=0.0)
    for line in history.lines:
        seconds = line["step_seconds"]["whole"] * (line["step"] - before.step)
        text = line["bytes_per_second"] * seconds
        before = Spent(
            step=line["step"],
            bytes=before.bytes + round(text),
            useful_flops=before.useful_flops + line["flops_per_second"] * seconds,
            entropy_flops=before.entropy_flops + line["flops_per_byte"].get("entropy_model", 0.0) * text,
            seconds=before.seconds + seconds,
        )
        found.append(before)
    return found


def curve(history: History, points: list[Spent]) -> tuple[Point, ...]:
    """The validations of a run, each with what had been used up by then."""
    at = {point.step: point for point in points}
    return tuple(
        Point(
            bits_per_byte=line["validation"]["bits_per_byte"],
            **at[line["step"]].model_dump(exclude={"entropy_flops"}),
        )
        for line in history.validations
        if line["step"] in at and line["validation"]["bits_per_byte"] is not None
    )
