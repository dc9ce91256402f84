"""Small models of both kinds and packs of one length, for compiled and recomputed blocks."""

import numpy as np
import torch

from shared.layers.batch import Batch, Patches, segments
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel

STACK = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 48}
WIDE = {"width": 64, "feed_forward": 160}
BLT = {"ngrams": {"rows": 97}, "encoder": STACK, "decoder": STACK, "global": STACK | WIDE, "window": 24}
MODELS = {
    "entropy": (EntropyModel, EntropyModelSettings.model_validate(STACK | {"window": 64})),
    "blt": (Blt, BltSettings.model_validate(BLT)),
}
TOKENS, STRIDE = 256, 4
DOCUMENTS = ([100, 156], [256], [1] * 256, [3, 250, 3], [64] * 4, [5] * 50 + [6], [200, 56])


def pack(lengths: list[int]) -> Batch:
    """Documents of so many tokens in patches of four, as a loader gives them: both axes always as long."""
    patches = [-(-length // STRIDE) for length in lengths]
    of_token = np.concatenate([np.arange(n) // STRIDE + sum(patches[:i]) for i, n in enumerate(lengths)])
    patches.append(TOKENS - sum(patches) + 1)
    ids = torch.randint(4, 260, (TOKENS,), generator=torch.Generator().manual_seed(len(lengths)))
    owner = torch.from_numpy(of_token)
    return Batch(ids, ids.roll(-1), segments(lengths), Patches(owner, owner, segments(patches)))


def without_patches(batch: Batch, name: str) -> Batch:
    return batch if name == "blt" else Batch(batch.ids, batch.labels, batch.documents, None)
