"""The models and batches of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.batch import Batch, Patches, segments
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.patching import PatchingSettings, patch_lengths
from shared.vocabulary import IGNORED_LABEL, document_tokens

torch.set_float32_matmul_precision("highest")  # no TF32: fp32 means fp32

SPACE = PatchingSettings(rule="space", max_length=16)
LENGTHS = (1, 700, 64, 129, 300)


def text(length: int, seed: int) -> bytes:
    """Words, newlines and raw bytes."""
    draws = np.random.default_rng(seed)
    found = draws.integers(97, 123, length, dtype=np.uint8)
    found[draws.random(length) < 0.2] = 32
    found[draws.random(length) < 0.05] = 10
    raw = draws.random(length) < 0.05
    found[raw] = draws.integers(0, 256, raw.sum(), dtype=np.uint8)
    return found.tobytes()


OTHER_BLOCKS: dict[str, dict[str, Any]] = {
    "norms after, windows, yarn": {
        "norm": "after",
        "qk_norm": "width",
        "windows": [20, 0],
        "rope_scaling": {"kind": "yarn", "factor": 4.0, "high": 32.0, "strength": 1.14, "windowed": False},
    },
    "head norms, biases": {"qk_norm": "head", "biases": ["qkv", "down"], "head_dim": 32, "kv_heads": 2},
}
"""Global blocks unlike those of Llama: together they have what kernels and masks meet."""


def small_blt(kv_heads: int | None = None, blocks: Mapping[str, Any] | None = None) -> Blt:
    """A model of every part, with heads of the sizes that kernels take; ``blocks``: what is other in the global."""
    local = {"width": 128, "heads": 4, "kv_heads": kv_heads, "feed_forward": 256}
    settings = BltSettings.model_validate(
        {
            "ngrams": {"sizes": (3, 4, 5), "rows": 503},
            "encoder": local | {"layers": 1},
            "global": {"width": 256, "layers": 2, "heads": 4, "kv_heads": kv_heads, "feed_forward": 512}
            | dict(blocks or {}),
            "decoder": local | {"layers": 2},
            "window": 64,
        }
    )
    model = Blt(settings)
    initialise(model, 0)
    return model


def small_entropy_model(newline_reset: bool = False) -> EntropyModel:
    """Two layers with heads of 32."""
    settings = EntropyModelSettings.model_validate(
        {"width": 128, "layers": 2, "heads": 4, "feed_forward": 256, "window": 64, "newline_reset": newline_reset}
    )
    model = EntropyModel(settings)
    initialise(model, 0)
    return model


def pack(texts: Sequence[bytes], tokens: int | None = None, patches: int | None = None) -> Batch:
    """Whole documents side by side, cut at spaces; filled up to so many tokens and patches as a loader does."""
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    readers: list[np.ndarray] = []
    tokens_in: list[int] = []
    patches_in: list[int] = []
    for each in texts:
        document = document_tokens(each)
        lengths = patch_lengths(document, SPACE)
        numbers, first = np.repeat(np.arange(len(lengths)), lengths), sum(patches_in)
        ids.append(document[:-1])
        labels.append(document[1:])
        owners.append(numbers[:-1] + first)
        readers.append(numbers[1:] - 1 + first)
        tokens_in.append(len(document) - 1)
        patches_in.append(int(numbers[:-1].max()) + 1)
    if tokens is not None and patches is not None:
        rest, last = tokens - sum(tokens_in), sum(patches_in)
        assert rest > 0 and patches > last, "the texts leave no room"  # noqa: PT018
        ids.append(np.zeros(rest, np.int16))
        labels.append(np.full(rest, IGNORED_LABEL))
        owners.append(np.full(rest, last))
        readers.append(np.full(rest, last))
        tokens_in.append(rest)
        patches_in.append(patches - last)

    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    found = Patches(joined(owners), joined(readers), segments(patches_in))
    return Batch(joined(ids), joined(labels), segments(tokens_in), found)


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """fp32 [T, V]."""
    logits: Tensor = model(batch.ids, batch.documents, batch.patches)
    return logits


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of the mean loss, fp32 on the processor."""
    model.zero_grad()
    F.cross_entropy(logits_of(model, batch), batch.labels, ignore_index=IGNORED_LABEL).backward()
    return {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
