"""What is compared, as data: systems.toml with its schema. Free of torch.

A system is a model and how the text is cut for it; everything else of its recipe it has in common with all others, so
that a comparison is one of models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.counts.settings import CountingSettings
from shared.errors import ConfigError
from shared.model_settings import MOST_IDS
from shared.patching.settings import LONGEST_PATCH, PatchingSettings
from shared.patching.sizes import MOST_SIZES
from shared.settings import Settings
from shared.vocabulary import VOCABULARY_SIZE
from trainer.experiments.results.results import Family, System
from trainer.settings import TrainSettings
from trainer.settings.recipe import check_recipe, read_recipe, read_toml

SYSTEMS_FILE = Path(__file__).with_name("systems.toml")
RECIPES = Path(__file__).parent.parent / "recipes"
Values = dict[str, Any]
NOWHERE = Path("nowhere")
"""Data and run of a recipe that is only checked."""
SEPARATE = ("model", "optimizer", "schedule")
"""Sections in which a system may differ from the others."""
OVER_RECIPES = ("run", "data", "model", "optimizer")
"""Sections that are laid over the recipe of an entropy model."""


class EntropyModel(Settings):
    """An entropy model to make: a recipe of the house with something laid over it, or counts."""

    counts: CountingSettings | None = None
    """How it counts; None for one that is trained."""
    recipe: str | None = None
    """Name in trainer/recipes; None for one that counts."""
    run: Values = Field(default_factory=dict)
    data: Values = Field(default_factory=dict)
    model: Values = Field(default_factory=dict)
    optimizer: Values = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_kind(self) -> "EntropyModel":
        if (self.recipe is None) == (self.counts is None):
            raise ValueError("an entropy model is trained by a recipe, or counts: give one of `recipe` and `counts`")
        if self.counts is not None and (laid := [name for name in OVER_RECIPES if getattr(self, name)]):
            raise ValueError(f"what counts has no recipe to lay {', '.join(laid)} over")
        return self


class PatchingRecipe(Settings):
    """How the text is cut into patches, or into subwords."""

    rule: Literal["none", "byte", "static", "space", "entropy", "monotonic", "bpe"]
    stride: int | None = Field(default=None, ge=1, le=LONGEST_PATCH)
    """Bytes, of static."""
    target: float | None = Field(default=None, ge=1, le=LONGEST_PATCH)
    """Mean patch size in bytes, of the rules on entropy; the threshold is found on the training split."""
    sizes: tuple[Annotated[float, Field(ge=1, le=LONGEST_PATCH)], ...] | None = Field(
        default=None, min_length=2, max_length=MOST_SIZES
    )
    """Instead: several, ascending, one after the other for equal shares of a run."""
    entropy_model: str | None = None
    """Whose entropies they are."""
    vocabulary: int | None = Field(default=None, gt=VOCABULARY_SIZE, le=MOST_IDS)
    """Ids of the tokenizer of bpe, the 260 of bytes and special ids included."""
    whole_characters: bool = False
    """No patch starts inside a character of UTF-8."""

    @model_validator(mode="after")
    def _complete(self) -> "PatchingRecipe":
        on_entropy = self.rule in ("entropy", "monotonic")
        if self.sizes is not None and sorted(set(self.sizes)) != list(self.sizes):
            raise ValueError(f"sizes must ascend, not {', '.join(map('{:g}'.format, self.sizes))}")
        needed = {
            "stride": self.rule == "static",
            "target": on_entropy and self.sizes is None,
            "entropy_model": on_entropy,
            "vocabulary": self.rule == "bpe",
        }
        if self.sizes is not None and not on_entropy:
            raise ValueError(f"rule {self.rule!r} does not take sizes")
        for key, wanted in needed.items():
            if wanted != (getattr(self, key) is not None):
                takes = "needs" if wanted else "does not take"
                raise ValueError(f"rule {self.rule!r} {takes} {key}" + " beside sizes" * (self.sizes is not None))
        if self.whole_characters and self.rule in ("none", "bpe"):
            raise ValueError(f"rule {self.rule!r} does not take whole_characters")
        return self

    @property
    def in_words(self) -> str | None:
        """For the reader of a report; None where there are no patches."""
        size = f"{self.target} bytes"
        if self.sizes is not None:
            size = f"from {self.sizes[0]:g} to {self.sizes[-1]:g} bytes"
        words = {
            "none": None,
            "byte": "every byte",
            "static": f"every {self.stride} bytes",
            "space": "words",
            "entropy": f"entropy of {self.entropy_model}, {size}",
            "monotonic": f"rise of the entropy of {self.entropy_model}, {size}",
            "bpe": f"byte-pair encoding, {self.vocabulary} ids",
        }[self.rule]
        return f"{words}, characters whole" if self.whole_characters else words


class SystemRecipe(Settings):
    """One way to model text."""

    family: Family
    description: str
    """One sentence for the reader of a report."""
    patching: str
    """Name in ``patchings``."""
    like: str | None = None
    """Another system, whose model, optimizer and schedule this one has but for what it says itself."""
    ablates: str | None = None
    """The system that it differs from in one thing."""
    full: bool = False
    """Only in the full comparison."""
    model: Values = Field(default_factory=dict)
    optimizer: Values = Field(default_factory=dict)
    schedule: Values = Field(default_factory=dict)


class Expected(Settings):
    """An order that the comparison looks for."""

    better: str
    """A system, or a family: then the system of it that came out best."""
    worse: str


class Rates(Settings):
    """Learning rates to try before the runs: systems of one family, with tables or without, share the best of them."""

    lr: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=2, max_length=64)
    """Peak rates, ascending."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Of the budget of a run that each of them gets."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> "Rates":
        if sorted(set(self.lr)) != list(self.lr):
            raise ValueError(f"lr must ascend, not {', '.join(map('{:g}'.format, self.lr))}")
        return self


@dataclass(frozen=True)
class RateGroup:
    """Systems that learn at one rate."""

    family: Family
    tables: bool
    """Whether they have n-gram tables."""
    system: str
    """The one that rates are tried on."""


class Experiment(Settings):
    """All of systems.toml."""

    recipe: Values
    """Sections of a recipe that all systems share, without where the data and the run are and how long it is."""
    entropy_models: dict[str, EntropyModel] = Field(default_factory=dict)
    patchings: dict[str, PatchingRecipe]
    systems: dict[str, SystemRecipe] = Field(min_length=1)
    rates: Rates | None = None
    """None: every system learns at the rate that its sections give it."""
    expected: tuple[Expected, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> "Experiment":
        families = {system.family for system in self.systems.values()}
        wanted: list[tuple[str, str | None, Iterable[str]]] = [
            (f"patchings.{name}.entropy_model", patching.entropy_model, self.entropy_models)
            for name, patching in self.patchings.items()
        ]
        for name, system in self.systems.items():
            wanted.append((f"systems.{name}.patching", system.patching, self.patchings))
            earlier = list(self.systems)[: list(self.systems).index(name)]
            wanted.append((f"systems.{name}.like", system.like, earlier))
            wanted.append((f"systems.{name}.ablates", system.ablates, self.systems))
        for number, pair in enumerate(self.expected):
            wanted.append((f"expected.{number}.better", pair.better, {*self.systems, *families}))
            wanted.append((f"expected.{number}.worse", pair.worse, self.systems))
        for key, name_there, known in wanted:
            if name_there is not None and name_there not in known:
                before = " before it" if key.endswith(".like") else ""
                raise ValueError(f"{key}: there is no {name_there!r}{before}; there is {', '.join(known) or 'none'}")
        return self

    def chosen(self, only: Iterable[str] = (), full: bool = False) -> list[str]:
        """Names of the systems to run, in their order: those asked for, or all of the short or the full comparison.

        Raises ConfigError for an unknown name.
        """
        asked = list(only)
        for name in asked:
            if name not in self.systems:
                raise ConfigError(f"--only {name}: there is no such system; there is {', '.join(self.systems)}")
        return [name for name, system in self.systems.items() if (name in asked if asked else full or not system.full)]

    def draft(self, name: str) -> tuple[str, TrainSettings, float]:
        """The system's name, its settings without data, and about the bytes per patch that its data will have."""
        patching = self.patchings[self.systems[name].patching]
        recipe = self.recipe_of(name, NOWHERE, NOWHERE, 0, 1, 1)
        settings = check_recipe(recipe, TrainSettings, Path(name))
        last = patching.sizes[-1] if patching.sizes else None
        return name, settings, last or patching.target or patching.stride or settings.plan.patch_size

    def system(self, name: str) -> System:
        """What a report says of it."""
        own = self.systems[name]
        return System(
            name=name,
            family=own.family,
            description=own.description,
            patching=self.patchings[own.patching].in_words,
            ablates=own.ablates,
        )

    def sections(self, name: str) -> Values:
        """The sections that decide what a system is: shared ones, then its ancestors', then its own."""
        system = self.systems[name]
        below = self.recipe if system.like is None else self.sections(system.like)
        return overlaid(below, {section: getattr(system, section) for section in SEPARATE if getattr(system, section)})

    def recipe_of(
        self, name: str, data: Path, out: Path, seed: int, validations: int, steps: int, lr: float | None = None
    ) -> Values:
        """A whole recipe: so many steps, with so many passes over the validation split; ``lr`` instead of its own."""
        sizes = self.patchings[self.systems[name].patching].sizes
        over: Values = {
            "run": {"out": str(out), "seed": seed, "steps": steps},
            "data": {"path": str(data)} | ({} if sizes is None else patch_schedule(sizes, data)),
            "metrics": {"validate_every": max(-(-steps // validations), 1)},
        }
        return overlaid(self.sections(name), over if lr is None else over | {"optimizer": {"lr": lr}})

    def rate_group(self, name: str) -> "RateGroup | None":
        """The systems that share a learning rate with this one; None where the file has no rates to try, or the system
        its own rate.

        The first of them in the file is the one to try rates on.
        """
        if self.rates is None or self._has_own_rate(name):
            return None
        family, tables = self.systems[name].family, self._has_tables(name)
        shared = (
            other
            for other, system in self.systems.items()
            if system.family == family and not self._has_own_rate(other) and self._has_tables(other) == tables
        )
        return RateGroup(family, tables, next(shared))

    def _has_own_rate(self, name: str) -> bool:
        system = self.systems[name]
        return "lr" in system.optimizer or (system.like is not None and self._has_own_rate(system.like))

    def _has_tables(self, name: str) -> bool:
        return self.draft(name)[1].model.has_tables

    def entropy_recipe(self, name: str, data: Path, out: Path) -> Values:
        """The recipe of an entropy model that is trained."""
        own = self.entropy_models[name]
        values = read_recipe(RECIPES / f"{own.recipe}.toml", (), TrainSettings)
        over = {section: getattr(own, section) for section in OVER_RECIPES}
        return overlaid(values, over | {"run": own.run | {"out": str(out)}, "data": own.data | {"path": str(data)}})


def patch_sizes_file(data: Path) -> Path:
    """The table of thresholds of a patching with several sizes, beside its dataset."""
    return data.with_name(f"{data.name}-sizes.json")


def patch_schedule(sizes: Sequence[float], data: Path) -> Values:
    """What a recipe says of patches that grow: each size for an equal share of the run."""
    first, *later = sizes
    phases = [{"size": first}, *({"size": size, "at": n / len(sizes)} for n, size in enumerate(later, 1))]
    return {"patch_schedule": phases, "patch_sizes": str(patch_sizes_file(data))}


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    """Nested tables with others laid over them; nothing of either is changed."""
    values = dict(below)
    for key, value in above.items():
        under = values.get(key)
        values[key] = overlaid(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return values


def load_experiment(path: Path = SYSTEMS_FILE) -> Experiment:
    """Read such a file and check every recipe in it. Raises ConfigError that names the file and the key."""
    experiment = check_recipe(read_toml(path, "file of systems"), Experiment, path)
    longest = PatchingSettings.model_fields["max_length"].default
    for name in experiment.systems:
        recipe = experiment.recipe_of(name, NOWHERE, NOWHERE, 0, 1, 1)
        settings = check_recipe(recipe, TrainSettings, Path(f"{path}: {name}"))
        if settings.model.reads == "patches" and settings.data.tokens < longest + 2:
            raise ConfigError(
                f"{path}: {name}: data.tokens is {settings.data.tokens}, but patches have up to {longest} bytes; a "
                f"pack needs at least {longest + 2} tokens"
            )
    for name, model in experiment.entropy_models.items():
        if model.counts is None:
            check_recipe(experiment.entropy_recipe(name, NOWHERE, NOWHERE), TrainSettings, Path(f"{path}: {name}"))
    return experiment
