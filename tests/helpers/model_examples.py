"""Small models and packs that the tests of the models share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers.batch import Batch, Patches, patch_room, segments
from shared.layers.blocks import Stack
from shared.model_folder.files import Model, build_model
from shared.model_settings import (
    AnyModelSettings,
    BltSettings,
    EntropyModelSettings,
    FlatSettings,
    HNetSettings,
    MegaByteSettings,
    NgramSettings,
    SpaceByteSettings,
)
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.patching import PatchingSettings, patch_lengths
from shared.stack_settings import StackSettings
from shared.vocabulary import IGNORED_LABEL, document_tokens

SPACE = PatchingSettings(rule="space", max_length=16)


def entropy_settings(**changes: object) -> EntropyModelSettings:
    return EntropyModelSettings.model_validate(
        {"width": 32, "layers": 2, "heads": 2, "feed_forward": 48, "window": 64} | changes
    )


def flat_settings(**changes: object) -> FlatSettings:
    return FlatSettings.model_validate({"width": 32, "layers": 2, "heads": 2, "feed_forward": 48} | changes)


LOCAL = {"width": 32, "layers": 2, "heads": 4, "feed_forward": 40}
GLOBAL = {"width": 48, "layers": 2, "heads": 2, "feed_forward": 56}

YARN = {"kind": "yarn", "factor": 8, "trained_length": 64, "high": 8, "strength": 1.2, "windowed": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "OLMo 3": {"layers": 3, "norm": "after", "qk_norm": "width", "windows": (5, 5, 0), "rope_scaling": YARN},
    "Qwen 3": {"heads": 4, "kv_heads": 2, "head_dim": 16, "qk_norm": "head"},
    "Qwen 2": {"kv_heads": 1, "biases": ("qkv",), "rope_scaling": {"kind": "linear", "factor": 4}},
    "SmolLM 3": {
        "layers": 3,
        "rotated": (True, False),
        "rope_scaling": {"kind": "llama3", "factor": 8, "trained_length": 64},
    },
}
"""What blocks of these families have unlike those of Llama, small enough that short texts show it."""
FAMILIES = {name: GLOBAL | {"rope_theta": 10_000.0} | changes for name, changes in FAMILIES.items()}


def megabyte_settings(**changes: object) -> MegaByteSettings:
    return MegaByteSettings.model_validate({"patch": 4, "global": GLOBAL, "local": LOCAL} | changes)


def spacebyte_settings(**changes: object) -> SpaceByteSettings:
    return SpaceByteSettings.model_validate(
        {"before": LOCAL | {"layers": 1}, "global": GLOBAL, "after": LOCAL, "window": 24} | changes
    )


def hnet_settings(**changes: object) -> HNetSettings:
    """A small credit, so that short texts meet its limits."""
    values = {"encoder": LOCAL, "global": GLOBAL, "decoder": LOCAL, "window": 24}
    values |= {"target": 4, "credit": 3, "credit_bytes": 2, "max_length": 9}
    return HNetSettings.model_validate(values | changes)


def blt_settings(global_width: int = 48, kv_heads: int | None = None, **changes: object) -> BltSettings:
    """K = 2 and a local width of 32, so that a global width of 64 needs no input projection and 48 does."""
    local = {"width": 32, "heads": 4, "kv_heads": kv_heads, "feed_forward": 40}
    values = {
        "ngrams": NgramSettings(sizes=(3, 4, 5), rows=503),
        "encoder": StackSettings.model_validate(local | {"layers": 1}),
        "global": StackSettings.model_validate(
            {"width": global_width, "layers": 2, "heads": 2, "kv_heads": kv_heads and 1, "feed_forward": 56}
        ),
        "decoder": StackSettings.model_validate(local | {"layers": 2}),
        "window": 24,
    }
    return BltSettings.model_validate(values | changes)


def entropy_model(settings: EntropyModelSettings | None = None, seed: int = 0) -> EntropyModel:
    model = EntropyModel(settings or entropy_settings())
    initialise(model, seed)
    return model


def blt(settings: BltSettings | None = None, seed: int = 0) -> Blt:
    model = Blt(settings or blt_settings())
    initialise(model, seed)
    return model


def any_model(settings: AnyModelSettings, seed: int = 0) -> Model:
    model = build_model(settings)
    initialise(model, seed)
    return model


def random_text(length: int, seed: int) -> bytes:
    """Words, newlines and raw bytes, so that every rule finds patches of mixed length."""
    generator = np.random.default_rng(seed)
    text = generator.integers(97, 123, length, dtype=np.uint8)
    text[generator.random(length) < 0.2] = 32
    text[generator.random(length) < 0.05] = 10
    raw = generator.random(length) < 0.05
    text[raw] = generator.integers(0, 256, raw.sum(), dtype=np.uint8)
    return text.tobytes()


def between(values: np.ndarray, share: float, near: int = 10) -> float:
    """A threshold that about ``share`` of the values are below: the middle of the widest gap near that quantile.

    A quantile itself may be one of the values, and then rounding decides on which side of it that one lies.
    """
    values = np.sort(values[np.isfinite(values)])
    at = int(share * (len(values) - 1))
    close = values[max(0, at - near) : at + near + 1]
    widest = int(np.diff(close).argmax())
    return float(close[widest] + close[widest + 1]) / 2


def chat_tokens(length: int, seed: int, names: int = 3) -> np.ndarray:
    """int16: a document with named special ids at random places, some beside one another."""
    generator = np.random.default_rng(seed)
    tokens = document_tokens(random_text(length, seed))
    places = np.sort(generator.integers(1, len(tokens), length // 12))
    return np.insert(tokens, places, generator.integers(260, 260 + names, len(places)).astype(np.int16))


def pack(
    texts: Sequence[bytes | np.ndarray],
    patching: PatchingSettings = SPACE,
    entropies: Sequence[np.ndarray | None] | None = None,
    pad: tuple[int, int] = (0, 0),
) -> Batch:
    """Whole documents (texts or tokens) side by side, then ``pad`` tokens and patches that belong to nothing."""
    ids, labels, of_token, of_decoder, tokens_in, patches_in = [], [], [], [], [], []
    for text, scores in zip(texts, entropies or [None] * len(texts)):
        tokens = document_tokens(text) if isinstance(text, bytes) else text
        lengths = patch_lengths(tokens, patching, scores)
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        first = sum(patches_in)
        ids.append(tokens[:-1])
        labels.append(tokens[1:])
        of_token.append(numbers[:-1] + first)
        of_decoder.append(numbers[1:] - 1 + first)
        tokens_in.append(len(tokens) - 1)
        patches_in.append(int(numbers[:-1].max()) + 1)
    if pad[0]:
        assert pad[1], "padded tokens need a patch"
        ids.append(np.zeros(pad[0], np.int16))
        labels.append(np.full(pad[0], IGNORED_LABEL))
        of_token.append(np.full(pad[0], sum(patches_in)))
        of_decoder.append(np.full(pad[0], sum(patches_in)))
        tokens_in.append(pad[0])
    if pad[1]:
        patches_in.append(pad[1])

    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    patches = Patches(joined(of_token), joined(of_decoder), segments(patches_in))
    return Batch(joined(ids), joined(labels), segments(tokens_in), patches)


def routed_pack(texts: Sequence[bytes | np.ndarray], settings: HNetSettings, pad: tuple[int, int] = (0, 0)) -> Batch:
    """Whole documents side by side with room for their patches, then ``pad`` tokens and patches."""
    documents = [document_tokens(text) if isinstance(text, bytes) else text for text in texts]
    lengths = [len(tokens) - 1 for tokens in documents]
    ids = np.concatenate([*(tokens[:-1] for tokens in documents), np.zeros(pad[0], np.int16)]).astype(np.int64)
    labels = np.concatenate([*(tokens[1:] for tokens in documents), np.full(pad[0], IGNORED_LABEL)]).astype(np.int64)
    patches = int(settings.patch_credit.bound(np.array(lengths)).sum()) + pad[1]
    room = patch_room(lengths, settings.patch_credit, len(ids), patches)
    in_documents = segments([*lengths, pad[0]] if pad[0] else lengths)
    batch = Batch(torch.from_numpy(ids), torch.from_numpy(labels), in_documents, room)
    return batch.to(torch.device("cpu"))


def blt_logits(model: Blt, batch: Batch) -> Tensor:
    assert batch.patches is not None
    return model(batch.ids, batch.documents, batch.patches)


def oracle_stack(stack: Stack, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
    """Blocks with a whole mask bool [N, N]; positions turn pairs by cosine and sine."""
    settings = stack.settings
    frequencies = settings.rope_theta ** -(torch.arange(0, settings.head_width, 2).double() / settings.head_width)
    angles = (positions.double()[:, None] * frequencies).float()[:, None]

    def turned(heads: Tensor) -> Tensor:
        even, odd = heads[..., ::2], heads[..., 1::2]
        pairs = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
        return torch.stack(pairs, -1).flatten(-2)

    for block in stack.blocks:
        q, k, v = block.qkv(block.attention_norm(x)).unflatten(-1, (3, settings.heads, -1)).unbind(1)
        scores = torch.einsum("qhc,khc->hqk", turned(q), turned(k)) * settings.head_width**-0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        x = x + block.attention_output(torch.einsum("hqk,khc->qhc", weights, v).flatten(1))
        gate, up = block.gate_up(block.feed_forward_norm(x)).chunk(2, -1)
        x = x + block.down(F.silu(gate) * up)
    return x


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
