"""What systems learn from, made once and shared: corpus, entropy models, entropies, patches, tokenizers.

Each step is a command of the pipeline, or a run of the trainer; all of them go on where they were stopped and do
nothing when their result is there.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.io.progress import Progress
from trainer.errors import TrainingError
from trainer.experiments.folder import claim
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Experiment, PatchingRecipe

BY_ENTROPY = ("entropy", "monotonic")
PLACEHOLDER_THETA = "1.0"
"""Of the dataset whose entropies are kept: others are cut from it, with thresholds of their own."""


@dataclass(frozen=True)
class Corpus:
    """What is read, and how much of it."""

    paths: tuple[str, ...]
    sample_bytes: int | None
    """Of text in all, shared equally among the paths; None: everything."""
    document_bytes: int | None
    """Plain text is cut into documents of about so many bytes; None: a file is one document."""
    validation_fraction: float
    seed: int
    options: tuple[str, ...] = ()
    """More options of `python -m pipeline preprocess`."""

    @property
    def in_words(self) -> str:
        sample = f", at most {self.sample_bytes:,} bytes of it" if self.sample_bytes else ""
        return f"{', '.join(Path(path).name for path in self.paths)}{sample}"


@dataclass(frozen=True)
class Step:
    """One command and what it makes."""

    out: Path
    words: tuple[str, ...]
    """Of `python -m pipeline`."""


def corpus_steps(corpus: Corpus, out: Path) -> list[Step]:
    """Unpatched shards of all paths in OUT/corpus; several are read apart, each with its share, and merged.

    What was read is written once more by the pipeline from its own shards: cut in that way, it is cut in the same way
    again when it is scored, so that equal seeds draw documents in the same order whatever the patches are.
    """
    if not corpus.paths:
        raise ConfigError("compare needs a corpus: files or folders of text")
    several = len(corpus.paths) > 1
    parts = [out / "corpora" / f"{number}-{_stem(path)}" for number, path in enumerate(corpus.paths)]
    steps = []
    for path, part in zip(corpus.paths, parts):
        words = ["preprocess", path, "--rule", "none", "--executor", "inline", *corpus.options]
        words += ["--validation-fraction", repr(corpus.validation_fraction)]
        if corpus.sample_bytes is not None:
            words += ["--sample-bytes", str(corpus.sample_bytes // len(corpus.paths)), "--seed", str(corpus.seed)]
        if corpus.document_bytes is not None:
            words += ["--document-bytes", str(corpus.document_bytes)]
        if several and ".txt" in Path(path).suffixes:  # it says nothing of itself that could tell it from the others
            words += ["--subset", _stem(path)]
        steps.append(_step(part, *words))
    if several:
        parts = [out / "corpora" / "merged"]
        steps.append(_step(parts[0], "merge", *(str(step.out) for step in steps)))
    words = ["preprocess", str(parts[0]), "--rule", "none", "--executor", "inline"]
    return [*steps, _step(out / "corpus", *words)]


def scored_step(name: str, out: Path, executor: Sequence[str]) -> Step:
    """The corpus with the entropies of a model, in full precision: rises need it."""
    words = ["preprocess", str(out / "corpus"), "--entropy-model", str(out / "entropy" / name / "model")]
    words += ["--rule", "entropy", "--theta", PLACEHOLDER_THETA, "--sidecar", "float32", *executor]
    return _step(out / "scored" / name, *words)


def cutting_steps(name: str, patching: PatchingRecipe, out: Path) -> list[Step]:
    """The corpus in patches or tokens."""
    wanted = ["--rule", patching.rule]
    source, before = out / "corpus", []
    if patching.rule in BY_ENTROPY:
        source = out / "scored" / str(patching.entropy_model)
        wanted += ["--target", repr(patching.target)]
    elif patching.rule == "static":
        wanted += ["--stride", str(patching.stride)]
    elif patching.rule == "bpe":
        tokenizer = out / "tokenizers" / str(patching.vocabulary)
        vocabulary = str(patching.vocabulary)
        before = [_step(tokenizer, "tokenizer", str(source / "train"), "--vocabulary", vocabulary)]
        wanted += ["--tokenizer", str(tokenizer)]
    return [*before, _step(data_folder(name, patching, out), "recut", str(source), *wanted, "--workers", "1")]


def data_folder(name: str, patching: PatchingRecipe, out: Path) -> Path:
    """Where the text is that is cut in this way."""
    return out / "corpus" if patching.rule == "none" else out / "data" / name


def prepare(
    experiment: Experiment,
    patchings: Iterable[str],
    corpus: Corpus,
    out: Path,
    jobs: int,
    executor: Sequence[str],
    line: Progress,
) -> dict[str, Path]:
    """Make what these patchings need; the folder of each. Raises TrainingError when a step fails, OutputError when
    ``out`` is a folder of something else.
    """
    claim(out)
    wanted = {name: experiment.patchings[name] for name in dict.fromkeys(patchings)}
    for step in corpus_steps(corpus, out):
        _carry_out(step, line)
    models = list(dict.fromkeys(cut.entropy_model for cut in wanted.values() if cut.entropy_model is not None))
    runs = [
        Run(f"entropy/{name}", experiment.entropy_recipe(name, out / "corpus", out / "entropy" / name), score=False)
        for name in models
    ]
    if runs:
        line.say(f"== entropy models -> {out / 'entropy'}: {', '.join(models)}")
    if failed := run_all(runs, jobs, line):
        raise TrainingError(f"no entropies without {', '.join(failed)}")
    for name in models:
        _carry_out(scored_step(name, out, executor), line)
    for name, patching in wanted.items():
        for step in cutting_steps(name, patching, out) if patching.rule != "none" else []:
            _carry_out(step, line)
    return {name: data_folder(name, patching, out) for name, patching in wanted.items()}


def _step(out: Path, command: str, *words: str) -> Step:
    return Step(out, (command, *words, "--out", str(out)))


def _carry_out(step: Step, line: Progress) -> None:
    """Run a command of the pipeline; what it says goes where this process speaks."""
    line.say(f"== {step.words[0]} -> {step.out}")
    command = [sys.executable, "-m", "pipeline", *step.words]
    if subprocess.run(command, check=False).returncode not in FINE:
        raise TrainingError(
            f"`{shlex.join(['python', *command[1:]])}` failed; fix this and rerun the same command to resume"
        )


FINE = (0, 3)
"""Exit codes of the pipeline: 3 says that records were unreadable, which it has counted and told of."""


def _stem(path: str) -> str:
    """The name of a file without its suffixes, of a folder as it is."""
    return Path(path).name.split(".")[0] or "corpus"
