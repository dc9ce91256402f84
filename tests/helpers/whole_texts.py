"""What our models make of whole texts side by side, of whatever kind they are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from helpers.model_examples import pack, routed_pack
from shared.counts.table import CountModel
from shared.layers.batch import Batch, PatchRoom, segments
from shared.layers.routing import Routing
from shared.model_folder.files import Model
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel, entropy
from shared.models.hnet import HNet
from shared.models.megabyte import MegaByte
from shared.models.spacebyte import SpaceByte
from shared.patching import PatchingSettings
from shared.vocabulary import EOS, without_named


@torch.no_grad()
def entropies_of(model: EntropyModel | CountModel, ids: Tensor) -> np.ndarray:
    """float32 [T] nats, of what follows each id of a text."""
    if isinstance(model, CountModel):
        return model.entropies(without_named(ids.numpy().astype(np.int16))[None])[0]
    found: np.ndarray = entropy(model(ids, segments([len(ids)]))).numpy()
    return found


def pack_of(
    model: Model, rule: PatchingSettings, entropy_model: EntropyModel | CountModel | None, texts: Sequence[Tensor]
) -> Batch:
    """Texts, int64 [T] from BOS on, side by side as a model reads them."""
    # A token behind each, which the pack takes off again, so that the last id of a text is in it.
    documents = [np.append(ids.numpy(), EOS).astype(np.int16) for ids in texts]
    if isinstance(model, HNet):
        return routed_pack(documents, model.settings)
    if not isinstance(model, Blt | SpaceByte | MegaByte):
        return pack(documents)
    entropies = None
    if entropy_model is not None:
        entropies = [entropies_of(entropy_model, ids) for ids in texts]
    return pack(documents, rule, entropies)


def logits_of(model: Model, batch: Batch) -> Tensor:
    """fp32 [T, V]."""
    if isinstance(model, HNet):
        return routed(model, batch)[0]
    found: Tensor
    if isinstance(model, Blt | SpaceByte | MegaByte):
        found = model(batch.ids, batch.documents, batch.patches)
    else:
        found = model(batch.ids, batch.documents)
    return found


def routed(model: HNet, batch: Batch) -> tuple[Tensor, Routing]:
    """The logits of an H-Net, and what its router decided."""
    assert isinstance(batch.patches, PatchRoom)
    found: tuple[Tensor, Routing] = model(batch.ids, batch.documents, batch.patches)
    return found
