"""The grid of a scaling study as data: scaling.toml with its schema. Free of torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from shared.errors import ConfigError
from shared.settings import Settings
from trainer.experiments.systems import Experiment, SystemRecipe, Values, overlaid
from trainer.settings.recipe import check_recipe, read_toml

GRID_FILE = Path(__file__).with_name("scaling.toml")


class Size(Settings):
    """What a size lays over the sections of its family's system."""

    model: Values
    optimizer: Values = Field(default_factory=dict)


class FamilyGrid(Settings):
    """One way to model text, in several sizes."""

    system: str
    """Of systems.toml: how the text is cut, and all that sizes have in common."""
    sizes: dict[str, Size] = Field(min_length=1)
    """From small to large."""


@dataclass(frozen=True)
class Place:
    """A run to do."""

    family: str
    size: str
    budget: float
    """Useful training FLOPs."""
    seed: int

    @property
    def system(self) -> str:
        """The name of the system that it runs."""
        return f"{self.family}-{self.size}"

    @property
    def name(self) -> str:
        """As it is called in messages, and where it lies."""
        return f"scaling/{self.system}/{self.budget:g}/seed-{self.seed}"


class Grid(Settings):
    """All of scaling.toml."""

    recipe: Values = Field(default_factory=dict)
    """Laid over what all systems share."""
    budgets: tuple[float, ...] = Field(min_length=1)
    """Useful training FLOPs of a run, the entropy model's left out."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    families: dict[str, FamilyGrid] = Field(min_length=1)
    against: str
    """The family that the others' crossovers are with."""
    predict: tuple[float, ...] = (10.0, 100.0)
    """Multiples of the largest budget to predict."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of intervals and bands."""
    replicates: int = Field(default=2000, gt=0)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _sensible(self) -> "Grid":
        if sorted(set(self.budgets)) != list(self.budgets) or self.budgets[0] <= 0:
            raise ValueError(f"budgets must ascend from above 0, not {', '.join(map('{:g}'.format, self.budgets))}")
        if self.against not in self.families:
            raise ValueError(f"against: there is no family {self.against!r}; there is {', '.join(self.families)}")
        return self

    def places(self) -> Iterator[Place]:
        """All runs, those of small budgets first: fits can begin before the dear ones are done."""
        for budget in self.budgets:
            for seed in self.seeds:
                for family, grid in self.families.items():
                    for size in grid.sizes:
                        yield Place(family, size, budget, seed)

    def part(
        self,
        families: Sequence[str] = (),
        sizes: Sequence[str] = (),
        budgets: Sequence[float] = (),
        seeds: Sequence[int] = (),
    ) -> "Grid":
        """The same with these alone; nothing given: all. Raises ConfigError for a name that is not there."""
        known = {name: list(grid.sizes) for name, grid in self.families.items()}
        everywhere = list(dict.fromkeys(size for own in known.values() for size in own))
        for asked, there, what in ((families, list(known), "family"), (sizes, everywhere, "size")):
            for name in asked:
                if name not in there:
                    raise ConfigError(f"there is no {what} {name!r} in the grid; there is {', '.join(there)}")
        chosen = {}
        for name, grid in self.families.items():
            own = {size: over for size, over in grid.sizes.items() if not sizes or size in sizes}
            if own and (not families or name in families):
                chosen[name] = grid.model_copy(update={"sizes": own})
        wanted = tuple(sorted(set(budgets or self.budgets)))
        if not wanted[0] > 0:
            raise ConfigError(f"a budget of {wanted[0]:g} FLOPs is too small")
        return self.model_copy(update={"families": chosen, "budgets": wanted, "seeds": tuple(seeds or self.seeds)})


def load_grid(path: Path = GRID_FILE) -> Grid:
    """Read such a file. Raises ConfigError that names the file and the key."""
    return check_recipe(read_toml(path, "grid"), Grid, path)


def sized(experiment: Experiment, grid: Grid) -> Experiment:
    """The systems of an experiment and, like them, each size of each family of the grid, named as `Place.system` says.

    Raises ConfigError for a system that is not there.
    """
    systems = dict(experiment.systems)
    for family, own in grid.families.items():
        system = experiment.systems.get(own.system)
        if system is None:
            known = ", ".join(experiment.systems)
            raise ConfigError(f"families.{family}.system: there is no system {own.system!r}; there is {known}")
        for size, over in own.sizes.items():
            systems[f"{family}-{size}"] = SystemRecipe(
                family=system.family,
                description=f"{system.description.rstrip('.')}: size {size}.",
                patching=system.patching,
                like=own.system,
                model=over.model,
                optimizer=over.optimizer,
            )
    return experiment.model_copy(update={"systems": systems, "recipe": overlaid(experiment.recipe, grid.recipe)})
