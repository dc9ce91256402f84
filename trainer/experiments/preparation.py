"""What systems learn from, made once and shared: corpus, entropy models, entropies, patches, tokenizers.

Each step is a call of the pipeline, or a run of the trainer; all of them go on where they were stopped and do nothing
when their result is there. This module and `entropy_models` are the only ones of the trainer that import the pipeline.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.calibration.calibrate import Wanted, calibrate_sizes
from pipeline.calibration.report import print_sizes
from pipeline.read.options import reading_from
from pipeline.rewriting.merge import merge
from pipeline.rewriting.recut import Change, recut
from pipeline.rewriting.rewrite import show_result
from pipeline.rewriting.tokenizer import train_tokenizer
from pipeline.run.driver import preprocess
from pipeline.run.summary import exit_code, print_summary
from pipeline.scoring.options import entropy_model_sha256, scoring_of
from pipeline.settings import ExecutorSettings, Job, OutputSettings, ReadSettings, ScoringSettings
from shared.errors import ConfigError, ExitCode
from shared.io.display.progress import Progress
from shared.io.files.outputs import Output
from shared.patching import PatchingSettings
from shared.patching.sizes import BEGINNING
from shared.shards.open import open_dataset
from trainer.data.splits import TRAIN_SPLIT
from trainer.errors import TrainingError
from trainer.experiments.entropy_models import entropy_model_folder, make_entropy_models
from trainer.experiments.folder import claim
from trainer.experiments.results.results import EntropyModelMade
from trainer.experiments.systems import Experiment, PatchingRecipe, patch_sizes_file

BY_ENTROPY = ("entropy", "monotonic")
PLACEHOLDER_THETA = 1.0
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
    """Options of `python -m pipeline preprocess` that say which records there are."""

    @property
    def in_words(self) -> str:
        sample = f", at most {self.sample_bytes:,} bytes of it" if self.sample_bytes else ""
        return f"{', '.join(Path(path).name for path in self.paths)}{sample}"


@dataclass(frozen=True)
class Request:
    """What is asked for, of any experiment."""

    experiment: Experiment
    corpus: Corpus
    out: Path
    jobs: int
    executor: Literal["ray", "inline"]
    """Who scores the corpus."""


@dataclass(frozen=True)
class Step:
    """Something that the pipeline makes: a call that does nothing when it is there."""

    out: Path
    make: Callable[[Path], object]
    """Called with ``out``."""
    name: str
    """As it is called in messages."""


@dataclass(frozen=True)
class Preprocess:
    """A run of `pipeline.run.driver.preprocess`. Raises TrainingError when splits or records failed."""

    source: str
    reading: ReadSettings = field(default_factory=ReadSettings)
    patching: PatchingSettings = field(default_factory=partial(PatchingSettings, rule="none"))
    entropy_model: Path | None = None
    """Folder of the model whose entropies are kept, in full precision: rises need it."""
    executor: ExecutorSettings = field(default_factory=partial(ExecutorSettings, executor="inline"))

    def __call__(self, out: Path) -> None:
        """Do it, or finish what was interrupted."""
        model = self.entropy_model
        scored: dict[str, Any] = {}
        if model is not None:
            sha256 = entropy_model_sha256(model, "compare")
            scoring = scoring_of(model, ScoringSettings())
            scored = {"sidecar": "float32", "scoring": scoring, "entropy_model_sha256": sha256}
            model = model.resolve()
        output = OutputSettings(patching=self.patching, **scored)
        job = Job(out=out.resolve(), reading=self.reading, output=output, entropy_model=model)
        report = preprocess(job, [self.source], self.executor)
        print_summary(job, report)
        if exit_code(report) not in (ExitCode.DONE, ExitCode.DEAD_LETTERS):
            raise TrainingError(f"{out} could not be made; fix this and rerun the same command to resume")


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
        given: dict[str, Any] = {"validation_fraction": corpus.validation_fraction}
        if corpus.sample_bytes is not None:
            given |= {"sample_bytes": corpus.sample_bytes // len(corpus.paths), "seed": corpus.seed}
        if corpus.document_bytes is not None:
            given["document_bytes"] = corpus.document_bytes
        if several and ".txt" in Path(path).suffixes:  # it says nothing of itself that could tell it from the others
            given["subset"] = _stem(path)
        steps.append(Step(part, Preprocess(path, reading_from(corpus.options, **given)), "preprocess"))
    source = parts[0]
    if several:
        source = out / "corpora" / "merged"
        steps.append(Step(source, partial(_shown, partial(merge, parts)), "merge"))
    return [*steps, Step(out / "corpus", Preprocess(str(source)), "preprocess")]


def scored_step(name: str, model: Path, out: Path, executor: ExecutorSettings) -> Step:
    """The corpus with the entropies of a model, which is in the folder ``model``."""
    patching = PatchingSettings(rule="entropy", theta=PLACEHOLDER_THETA)
    scoring = Preprocess(str(out / "corpus"), patching=patching, entropy_model=model, executor=executor)
    return Step(out / "scored" / name, scoring, "preprocess")


def cutting_steps(name: str, patching: PatchingRecipe, model: Path | None, out: Path) -> list[Step]:
    """The corpus in patches or tokens; ``model``: the folder of the entropy model that the patching names."""
    source, before, tokenizer = out / "corpus", list[Step](), None
    data, target = data_folder(name, patching, out), patching.target
    if patching.rule in BY_ENTROPY:
        source = out / "scored" / str(patching.entropy_model)
        if patching.sizes is not None:  # what is stored is cut as the last phase of a run cuts it
            sizes = partial(_make_sizes, source, model, patching)
            before, target = [Step(patch_sizes_file(data), sizes, "calibrate")], patching.sizes[-1]
    elif patching.rule == "bpe":
        assert patching.vocabulary is not None, "rule bpe has a vocabulary"
        tokenizer = out / "tokenizers" / str(patching.vocabulary)
        train = partial(train_tokenizer, source / "train", patching.vocabulary)
        before = [Step(tokenizer, train, "tokenizer")]
    change = Change(
        rule=patching.rule,
        target=target,
        stride=patching.stride,
        whole_characters=patching.whole_characters or None,
        tokenizer=tokenizer,
    )
    cutting = partial(_shown, partial(recut, source, change=change))
    return [*before, Step(data, cutting, "recut")]


def _make_sizes(source: Path, model: Path | None, patching: PatchingRecipe, out: Path) -> None:
    """The table of thresholds of a patching with several sizes."""
    cut = patching.model_dump(include={"sizes", "rule", "whole_characters"})
    wanted = Wanted.model_validate(cut | {"sidecar": "float32"})
    print_sizes(calibrate_sizes(source, model, wanted, ScoringSettings(), Output(out, BEGINNING))[0])


def data_folder(name: str, patching: PatchingRecipe, out: Path) -> Path:
    """Where the text is that is cut in this way."""
    return out / "corpus" if patching.rule == "none" else out / "data" / name


@dataclass(frozen=True)
class Prepared:
    """What systems learn from."""

    data: dict[str, Path]
    """The folder of each patching, by its name."""
    entropy_models: tuple[EntropyModelMade, ...]


def prepare(request: Request, systems: Iterable[str], line: Progress) -> Prepared:
    """Make what these systems learn from. Raises TrainingError when a step fails."""
    experiment, out, jobs, executor = request.experiment, request.out, request.jobs, request.executor
    claim(out)
    patchings = [experiment.systems[name].patching for name in systems]
    wanted = {name: experiment.patchings[name] for name in dict.fromkeys(patchings)}
    for step in corpus_steps(request.corpus, out):
        _carry_out(step, line)
    models = list(dict.fromkeys(cut.entropy_model for cut in wanted.values() if cut.entropy_model is not None))
    made = make_entropy_models(experiment, models, out, jobs, line)
    for name in models:
        workers = ExecutorSettings(executor=executor, workers=jobs if executor == "ray" else None)
        _carry_out(scored_step(name, entropy_model_folder(experiment, name, out), out, workers), line)
    for name, patching in wanted.items():
        entropy_model = patching.entropy_model
        model = None if entropy_model is None else entropy_model_folder(experiment, entropy_model, out)
        for step in cutting_steps(name, patching, model, out) if patching.rule != "none" else []:
            _carry_out(step, line)
    return Prepared({name: data_folder(name, patching, out) for name, patching in wanted.items()}, made)


def cut_alike(corpus: Path, like: Path, out: Path, line: Progress) -> Path:
    """A corpus cut as the dataset ``like`` is, with its entropy model and its thresholds, in the folder ``out``."""
    dataset = open_dataset(like / TRAIN_SPLIT)
    patching, model = dataset.manifest.identity.patching, dataset.entropy_model
    _carry_out(Step(out, Preprocess(str(corpus), patching=patching, entropy_model=model), "preprocess"), line)
    return out


def _carry_out(step: Step, line: Progress) -> None:
    """Let the pipeline make something; what it says goes where this process speaks."""
    line.log(f"== {step.name} -> {step.out}")
    step.make(step.out)


def _shown(make: Callable[..., bool], out: Path) -> None:
    show_result(out, make(out=out))


def _stem(path: str) -> str:
    """The name of a file without its suffixes, of a folder as it is."""
    return Path(path).name.split(".")[0] or "corpus"
