"""Where the datasets of a run lie and what they are together, from their manifests alone. Free of torch and pyarrow.

A run reads one dataset, or several with names. The subsets of a named one are NAME/subset, so that everything
downstream sees one dataset with more subsets.
"""

from collections.abc import Mapping
from pathlib import Path

from shared.errors import IdentityError
from shared.io.files.digests import differences, digest, in_short
from shared.io.stores.locations import below
from shared.patching.settings import PatchingSettings
from shared.shards.manifest import DatasetIdentity, DatasetTotals, Manifest
from trainer.settings import DataSettings

TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"


def split_folders(data: DataSettings, split: str) -> dict[str, Path | str]:
    """The folder of each dataset's split, by name; one alone has the name ""."""
    folders = {"": data.path} if data.path is not None else data.datasets
    return {name: below(folder, split) for name, folder in folders.items()}


def together(
    manifests: Mapping[str, Manifest], folders: Mapping[str, Path | str], cut_anew: bool = False
) -> DatasetTotals:
    """Several datasets as one: subsets with names before them.

    One without a name is returned as it is. Raises IdentityError, naming two folders, where they do not agree in
    patches; ``cut_anew``: in the rule of these, since a run has thresholds of its own.
    """
    if "" in manifests:
        (alone,) = manifests.values()
        return alone
    (first, one), *others = manifests.items()
    for name, other in others:
        lines = differences(_of_patches(one.identity, cut_anew), _of_patches(other.identity, cut_anew))
        if lines:
            raise IdentityError(
                f"{folders[first]} and {folders[name]} cannot be mixed, their patches differ: {in_short(lines)}"
            )
    specials = _specials(manifests, folders)
    thetas = {
        prefixed(name, subset): theta
        for name, manifest in manifests.items()
        for subset, theta in manifest.identity.patching.thetas.items()
    }
    patching = PatchingSettings.model_validate(one.identity.patching.model_dump() | {"thetas": thetas})
    source = digest({name: manifest.fingerprint for name, manifest in manifests.items()})
    subsets = {
        prefixed(name, subset): totals
        for name, manifest in manifests.items()
        for subset, totals in manifest.subsets.items()
    }
    return DatasetTotals(
        identity=one.identity.model_copy(update={"patching": patching, "source": source, "specials": specials}),
        subsets=dict(sorted(subsets.items())),
    )


def _specials(manifests: Mapping[str, Manifest], folders: Mapping[str, Path | str]) -> tuple[str, ...]:
    """The special ids that the datasets name; plain text has none. Raises IdentityError where two name others."""
    named = {name: manifest.identity.specials for name, manifest in manifests.items() if manifest.identity.specials}
    for name, specials in named.items():
        first, wanted = next(iter(named.items()))
        if specials != wanted:
            raise IdentityError(
                f"{folders[first]} and {folders[name]} cannot be mixed, their special ids differ: "
                f"{', '.join(wanted)} and {', '.join(specials)}"
            )
    return next(iter(named.values()), ())


def prefixed(dataset: str, name: str) -> str:
    """A name inside a dataset as it is called outside of it."""
    return f"{dataset}/{name}" if dataset else name


def _of_patches(identity: DatasetIdentity, cut_anew: bool) -> dict[str, object]:
    """What the datasets of one run must agree in: the rule, and the entropy model with its precision."""
    thresholds = {"thetas", "theta", "grid"} if cut_anew else {"thetas"}
    entropy_model = identity.entropy_model
    return {
        "patching": identity.patching.model_dump(mode="json", exclude=thresholds),
        "entropy_model": entropy_model and {"sha256": entropy_model.sha256, "dtype": entropy_model.dtype},
    }
