"""What reading text costs a model: useful FLOPs of its forward pass, by subset."""

import numpy as np

from shared.model_settings import AnyModelSettings, CountsSettings, HNetSettings, StoredSettings
from shared.models.flops import forward_flops
from shared.models.workload import Workload, text_workload, useful_workload
from trainer.data.validation import ValidationPacks
from trainer.evaluation.documents import DocumentScores


def scored_flops_by_subset(settings: AnyModelSettings, packs: ValidationPacks, found: DocumentScores) -> dict[str, int]:
    """Over packs that a model has scored: as below, but one that finds patches itself is counted with those it found.

    That is by document, so that one that packs have cut costs what it would in one piece.
    """
    if not isinstance(settings, HNetSettings):
        return forward_flops_by_subset(settings, packs)
    flops = {}
    for code in np.unique(found.subset).tolist():
        own = found.subset == code
        tokens = found.text[own] + 1  # BOS
        flops[found.subset_names[code]] = forward_flops(
            settings, useful_workload(settings, tokens, found.patches[own])
        ).total
    return flops


def forward_flops_by_subset(settings: StoredSettings, packs: ValidationPacks) -> dict[str, int]:
    """Over the slices of some packs, padding left out. What a document costs does not depend on its neighbours.

    Of an entropy model that found the patches of these packs it is what finding them costs. A document that packs have
    cut costs less: its slices do not see one another. A model that counts costs none: it looks up.
    """
    if isinstance(settings, CountsSettings):
        return dict.fromkeys(packs.subset_names, 0)
    work = {name: Workload() for name in packs.subset_names}
    for tokens, patches, subset in packs.slices():
        for code in np.unique(subset).tolist():
            own = subset == code
            work[packs.subset_names[code]] += text_workload(settings, tokens[own], patches[own])
    return {name: forward_flops(settings, done).total for name, done in work.items() if done.tokens}
