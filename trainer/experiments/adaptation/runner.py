"""Adapting a model to new text, as a whole: a base on old text, runs that begin with it, scores before and after."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.io.display.quantities import counted
from shared.shards.manifest import load_manifest
from trainer.checkpoints.model import MODEL_FOLDER
from trainer.data.splits import TRAIN_SPLIT
from trainer.errors import TrainingError
from trainer.experiments.adaptation.record import (
    ADAPTATION_NAME,
    OLD,
    Adaptation,
    AdaptedRun,
    Boundaries,
    NewText,
    TextScore,
    Trained,
    save_adaptation,
)
from trainer.experiments.adaptation.scoring import score_texts
from trainer.experiments.compare import circumstances
from trainer.experiments.folder import claim
from trainer.experiments.preparation import Corpus, Prepared, Request, cut_alike, prepare
from trainer.experiments.results.records import processors_of, spent
from trainer.experiments.results.statistics import require_scipy
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Values, overlaid
from trainer.memory.parameters import parameter_shapes, sizes_by_part, trained_size
from trainer.metrics.history import load_history
from trainer.provenance.json_records import kept
from trainer.settings import TrainSettings
from trainer.settings.recipe import check_recipe

BOUNDARIES: tuple[Boundaries, ...] = ("own", "base")


@dataclass(frozen=True)
class AdaptationRequest(Request):
    """What is asked for; ``corpus`` is old text."""

    new: Mapping[str, Corpus]
    """Texts to adapt to, by name."""
    seeds: Sequence[int]
    base_bytes: int
    """Of old text that the base is trained on."""
    bytes: int
    """Of new text that each other run is trained on."""
    only: Sequence[str] = ()
    """Methods (SYSTEM-BOUNDARIES) to run; none: all."""

    @property
    def base(self) -> str:
        """The system that is trained on old text; all others begin with it."""
        return next(iter(self.experiment.systems))

    @property
    def methods(self) -> list[tuple[str, Boundaries]]:
        """Systems that begin with the base, each with either boundaries, in their order."""
        _, *systems = self.experiment.systems
        found = list(product(systems, BOUNDARIES))
        return [one for one in found if not self.only or "-".join(one) in self.only]

    @property
    def base_folder(self) -> Path:
        return self.out / "runs" / self.base

    def text_folder(self, name: str) -> Path:
        """Of what is made of a text."""
        return self.out / "texts" / name


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Run):
    """A run that begins with the base."""

    text: str
    system: str
    boundaries: Boundaries
    seed: int


def adapt(request: AdaptationRequest, line: Progress) -> tuple[Adaptation, list[str]]:
    """Do all that is asked for; what was found, with the runs of earlier calls, and the names of the runs that failed.

    The record is written after every run; finished runs are recognised by their identity, and not done again.

    Raises ConfigError, DatasetError, TrainingError.
    """
    require_scipy()
    check_request(request)
    claim(request.out)
    texts = {OLD: request.corpus, **request.new}
    prepared = {name: _prepared(request, name, corpus, line) for name, corpus in texts.items()}
    data = {name: _data(request, made) for name, made in prepared.items()}
    base = Run(request.base, _recipe(request, request.base, request.base_folder, data[OLD], 0), score=False)
    line.log(f"== {request.base} -> {base.folder}")
    if failed := run_all([base], 1, line):
        raise TrainingError(f"no {request.base} to begin with; log: {failed[request.base]}")
    line.log(f"== scores before -> {base.folder}")
    before = _scores(request, base, texts)
    alike = {
        name: cut_alike(_corpus(request, name), data[OLD], request.text_folder(name) / "data" / "as-base", line)
        for name in request.new
    }
    at = {(name, "own"): data[name] for name in request.new} | {(name, "base"): alike[name] for name in request.new}
    runs = plan(request, at)
    found = _opened(request, base, prepared, before)
    line.log(f"== {counted(len(runs), 'run')}, {request.jobs} at a time -> {request.out / 'runs'}")

    def keep(run: PlannedRun) -> None:
        nonlocal found
        found = _with_run(found, request, _result(request, run))
        save_adaptation(found, request.out)

    failed = run_all(runs, request.jobs, line, keep)
    if not found.runs:
        raise TrainingError("no run has ended well")
    return found, list(failed)


def _opened(
    request: AdaptationRequest, base: Run, prepared: Mapping[str, Prepared], before: Mapping[str, TextScore]
) -> Adaptation:
    """What is known before any run begins with the base, and the runs that are on record."""
    known = kept(request.out / ADAPTATION_NAME, Adaptation)
    facts: dict[str, Any] = circumstances(replace(request, out=request.text_folder(OLD)))
    texts = {text.name: text for text in (known.texts if known else ())}
    for name in request.new:
        texts[name] = NewText(
            name=name,
            train_bytes=_train_bytes(_data(request, prepared[name])),
            entropy_model_seconds=prepared[name].entropy_models[0].seconds,
            before=before[name],
        )
    return Adaptation(
        **{name: facts[name] for name in ("corpus", "machine", "train_bytes")},
        base=Trained(**_trained(request, base, 0)),
        before=before[OLD],
        texts=tuple(texts.values()),
        runs=known.runs if known else (),
    )


def _with_run(found: Adaptation, request: AdaptationRequest, run: AdaptedRun) -> Adaptation:
    """The record with a run in its place: by text, then by method, then by seed."""
    texts, systems = [text.name for text in found.texts], list(request.experiment.systems)
    runs = [other for other in found.runs if other.folder != run.folder and other.system in systems]
    runs = sorted(
        [*runs, run],
        key=lambda one: (
            texts.index(one.text),
            systems.index(one.system),
            BOUNDARIES.index(one.boundaries),
            one.seed,
        ),
    )
    return found.model_copy(update={"runs": tuple(runs)})


def check_request(request: AdaptationRequest) -> None:
    """Raise ConfigError for what could not be adapted, before anything is made."""
    experiment, base = request.experiment, request.base
    if len(experiment.systems) < 2:
        raise ConfigError(f"--systems: {base} is the base; add a system that begins with it")
    if base in request.new:
        raise ConfigError(f"--new {base}=...: {base} is the name of the base; choose another")
    known = list(map("-".join, replace(request, only=()).methods))
    for name in request.only:
        if name not in known:
            raise ConfigError(f"--only {name}: there is no such method; there is {', '.join(known)}")
    for name, system in experiment.systems.items():
        patching = experiment.patchings[system.patching]
        if patching.entropy_model is None or patching.target is None:
            raise ConfigError(
                f"--systems: {name} has patching {system.patching}, which no entropy model finds; give it one with "
                "entropy_model and target"
            )
        if system.patching != experiment.systems[base].patching:
            raise ConfigError(
                f"--systems: {name} has patching {system.patching}, the base {experiment.systems[base].patching}; a "
                "model goes on with patches of the size that it knows"
            )


def plan(request: AdaptationRequest, at: Mapping[tuple[str, str], Path]) -> list[PlannedRun]:
    """The runs: each method on each text; all of a seed before the next seed.

    ``at``: the data of a text with boundaries.
    """
    runs = []
    for seed, text, (system, boundaries) in product(request.seeds, request.new, request.methods):
        name = _name(text, system, boundaries, seed)
        folder = request.out / "runs" / name
        recipe = _recipe(request, system, folder, at[text, boundaries], seed)
        runs.append(PlannedRun(name, recipe, score=False, text=text, system=system, boundaries=boundaries, seed=seed))
    return runs


def _name(text: str, system: str, boundaries: Boundaries, seed: int) -> str:
    return f"{text}/{system}-{boundaries}/seed-{seed}"


def _prepared(request: AdaptationRequest, name: str, corpus: Corpus, line: Progress) -> Prepared:
    """A text, its own entropy model, and its patches by that."""
    return prepare(replace(request, corpus=corpus, out=request.text_folder(name)), [request.base], line)


def _data(request: AdaptationRequest, prepared: Prepared) -> Path:
    return prepared.data[request.experiment.systems[request.base].patching]


def _corpus(request: AdaptationRequest, name: str) -> Path:
    return request.text_folder(name) / "corpus"


def _recipe(request: AdaptationRequest, system: str, folder: Path, data: Path, seed: int) -> Values:
    """Of the base on old text; of another system on new text, beginning with the base."""
    is_base = system == request.base
    over: Values = {
        "run": {"out": str(folder), "seed": seed, "bytes": request.base_bytes if is_base else request.bytes},
        "data": {"path": str(data)},
    }
    if not is_base:
        over["start"] = {"model": str(request.base_folder / MODEL_FOLDER)}
    return overlaid(request.experiment.sections(system), over)


def _settings(run: Run) -> TrainSettings:
    return check_recipe(dict(run.recipe), TrainSettings, run.folder)


def _scores(request: AdaptationRequest, run: Run, texts: Iterable[str]) -> Mapping[str, TextScore]:
    """What the model of a finished run scores on these texts."""
    return score_texts(run.folder, _settings(run), {name: _corpus(request, name) for name in texts}).texts


def _trained(request: AdaptationRequest, run: Run, seed: int) -> Values:
    """The fields of `Trained`."""
    settings, history = _settings(run), load_history(run.folder)
    last, shapes = spent(history)[-1], parameter_shapes(settings.model)
    assert isinstance(settings.data.path, Path)
    return {
        "folder": run.folder.relative_to(request.out),
        "seed": seed,
        "lr": settings.optimizer.lr,
        "parameters": sum(sizes_by_part(shapes).values()),
        "trained_parameters": trained_size(shapes, settings.optimizer.rates),
        "bytes": last.bytes,
        "passes": last.bytes / _train_bytes(settings.data.path),
        "useful_flops": last.useful_flops,
        "seconds": last.seconds,
        "processors": processors_of(history),
    }


def _train_bytes(data: Path) -> int:
    return load_manifest(data / TRAIN_SPLIT).totals.bytes


def _result(request: AdaptationRequest, run: PlannedRun) -> AdaptedRun:
    """What a finished run took, and what its model scores on its text and on old text."""
    scores = _scores(request, run, (run.text, OLD))
    return AdaptedRun(
        **_trained(request, run, run.seed),
        text=run.text,
        system=run.system,
        boundaries=run.boundaries,
        new=scores[run.text],
        old=scores[OLD],
    )
