"""Which thresholds text is cut with, where the subsets that a model was trained on have thresholds of their own.

The subsets of a run on several named datasets are NAME/subset; a dataset by itself calls them by their own names. Free
of torch.
"""

from typing import TYPE_CHECKING

from shared.errors import ConfigError, IdentityError
from shared.io.files.digests import in_short
from shared.patching.settings import PatchingSettings
from trainer.data.splits import TRAIN_SPLIT
from trainer.provenance.identity import ModelIdentity

if TYPE_CHECKING:  # it needs pyarrow, which generation does without
    from shared.shards.dataset import Dataset
    from trainer.data.mixture import Mixture


def one_threshold(
    recorded: PatchingSettings, subset: str | None = None, theta: float | None = None
) -> PatchingSettings:
    """The recorded rule with the one threshold of a text: ``theta``, else a subset's own, else the default.

    Raises ConfigError for a subset that is not known, and for a threshold that the rule does not have.
    """
    name = None if subset is None else known_subset(recorded, subset)
    if theta is not None:
        if not recorded.needs_entropy:
            raise ConfigError(f"theta: rule {recorded.rule!r} has no threshold")
        return recorded.with_theta(theta, grid=False)
    return recorded.for_subset(name)


def known_subset(recorded: PatchingSettings, subset: str) -> str:
    """The key of a subset among the thresholds: its name, or NAME/subset where that leaves no choice of thresholds.

    Raises ConfigError that names the known ones.
    """
    thetas = recorded.thetas
    if not thetas:
        raise ConfigError(
            f"subset {subset!r}: this model cuts all text alike, no subset has a threshold of its own; leave it out"
        )
    if subset in thetas:
        return subset
    found = sorted(name for name in thetas if name.endswith(f"/{subset}"))
    if not found:
        raise ConfigError(
            f"subset {subset!r} has no threshold of its own; those that have: {in_short(sorted(thetas), ', ')}"
        )
    if len({thetas[name] for name in found}) > 1:
        raise ConfigError(
            f"subset {subset!r} can mean {in_short(found, ' or ')}, whose thresholds differ: give one of these"
        )
    return found[0]


def default_note(recorded: PatchingSettings) -> str | None:
    """What to say where thresholds differ by subset and none is chosen; None where they do not."""
    if not recorded.thetas:
        return None
    return (
        f"note: cut with the default threshold, {recorded.theta:.4f} nats; {len(recorded.thetas)} subsets have their "
        f"own: choose one with --subset ({in_short(sorted(recorded.thetas), ', ')})"
    )


def patching_for(identity: ModelIdentity, dataset: "Dataset | Mixture", name: str | None = None) -> PatchingSettings:
    """The rule that a model was trained on, with its thresholds under the names that a dataset has for its subsets.

    A dataset of the run itself is recognised by its fingerprint. Of any other, the subsets are those of the one named
    dataset whose thresholds it was cut with, or with which it can be cut in one way only.

    Args:
        name: of the dataset in the model's recipe, where the user says which.

    Raises ConfigError for a name that the recipe does not have, IdentityError where several ways are left.
    """
    trained, names = identity.patching, dataset_names(identity)
    if name is not None and name not in names:
        known = f"these: {in_short(names, ', ')}" if names else "a single one without a name"
        raise ConfigError(f"the model was not trained on a dataset {name!r}; its datasets are {known}")
    if name is not None:
        return _of_dataset(trained, name)
    if not names or not trained.thetas:
        return trained
    manifest = dataset.manifest
    for key, fingerprint in identity.data.items():
        if list(dataset.fingerprints.values()) == [fingerprint]:
            return _of_dataset(trained, key.rpartition("/")[0])
    subsets = tuple(manifest.subsets)
    ways = {"": trained} | {name: _of_dataset(trained, name) for name in names}
    stored = thresholds(manifest.identity.patching, subsets)
    alike = [
        way for way in ways.values() if manifest.identity.patching.needs_entropy and thresholds(way, subsets) == stored
    ]
    if alike:
        return alike[0]
    naming = {name: way for name, way in ways.items() if way.thetas.keys() & set(subsets)}
    if not naming:
        return trained.for_subset(None)
    if len({thresholds(way, subsets) for way in naming.values()}) > 1:
        raise IdentityError(
            f"{dataset.where}: its subsets can be those of {in_short(sorted(naming), ' or ')}, whose thresholds "
            "differ; say which with --as NAME"
        )
    return next(iter(naming.values()))


def dataset_names(identity: ModelIdentity) -> list[str]:
    """The names of the datasets that a run read; none where it read a single one without a name."""
    return sorted(key.removesuffix(f"/{TRAIN_SPLIT}") for key in identity.data if key.endswith(f"/{TRAIN_SPLIT}"))


def thresholds(patching: PatchingSettings, subsets: tuple[str, ...]) -> tuple[float | None, ...]:
    """Nats, of each subset: its own threshold, or the default one."""
    return tuple(patching.thetas.get(subset, patching.theta) for subset in subsets)


def _of_dataset(trained: PatchingSettings, name: str) -> PatchingSettings:
    thetas = {
        subset.removeprefix(f"{name}/"): theta
        for subset, theta in trained.thetas.items()
        if subset.startswith(f"{name}/")
    }
    return trained.model_copy(update={"thetas": thetas})
