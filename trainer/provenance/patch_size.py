"""Mean patch sizes, in bytes, of a model's training data and of other data: a word where they are far apart.

A global model that learned on patches of one size meets other distances, and each of its steps carries more or less
text; costs per byte change with it. Free of torch.
"""

import math
from pathlib import Path

from shared.patching.settings import ENTROPY_RULES
from shared.shards.dataset import Dataset
from trainer.data.mixture import Mixture
from trainer.provenance.identity import IDENTITY_NAME, recorded_identity

FAR = 0.1
"""Relative difference above which a line is logged about it."""


def patch_size_warning(model: Path, dataset: Dataset | Mixture, size: float | None = None) -> str | None:
    """A line when a dataset's patches differ in mean size from those that the model in a folder learned on.

    None when they are alike, or either is not known. ``size``: theirs in bytes, where they are cut by other thresholds
    than they are stored with. Raises IdentityError for a damaged identity.
    """
    found = dataset.manifest.totals.mean_patch_size if size is None else size
    if math.isnan(found) or not (model / IDENTITY_NAME).exists():
        return None
    trained = recorded_identity(model).mean_patch_size
    if trained is None or abs(found / trained - 1) <= FAR:
        return None
    if dataset.manifest.identity.specials:
        advice = "special ids end patches, so those of chats are shorter with the trained threshold, the one to use"
    elif dataset.manifest.identity.patching.rule in ENTROPY_RULES:
        advice = "`python -m pipeline calibrate` finds the threshold that gives such patches"
    else:
        advice = "the text is another, as this rule has no threshold to change"
    return (
        f"note: patches of {dataset.where} have {found:.2f} bytes on average, those that {model} was trained on had "
        f"{trained:.2f}; {advice}"
    )
