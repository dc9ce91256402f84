"""The blocks of a `LlamaForCausalLM` folder as those of the global transformer (the paper's "byteify").

Theirs turn the two halves of each head against each other, ours neighbouring pairs: the rows of queries and keys change
places, so that row i of a half and its partner stand side by side.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.interop.described import Foreign, read_json
from shared.interop.names import HF, InteropError, block_parts
from shared.interop.transfer import check, shapes
from shared.model_folder.tensors import TensorFolder
from shared.settings import refused_as
from shared.stack_settings import StackSettings

CONFIG_FILE = "config.json"
WANTED = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}


class _Rope(Foreign):
    """Of rotary positions."""

    rope_theta: float | None = None
    rope_type: str | None = None
    type: str | None = None
    partial_rotary_factor: float | None = None


class _Config(_Rope):
    """The keys that are read, with the types that transformers gives them."""

    model_type: str | None = None
    architectures: list[str] | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float | None = None
    hidden_act: str | None = None
    pretraining_tp: int | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None


LEFT_OUT = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
"""What a byte model has no use for: tokens and their logits, and the norm before those."""


def llama_stack(folder: Path, unscaled: bool = False) -> StackSettings:
    """The shape of a Llama's blocks, from its config.json.

    Args:
        unscaled: take a Llama with scaled rotary positions as if they were not scaled.

    Raises InteropError with the reason when our blocks cannot compute the same.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    with refused_as(InteropError, f"{path}: "):
        _Config.model_validate(config)
    rope = _rope(config)
    if reason := _reason_against(config, rope, unscaled):
        raise InteropError(f"{path}: {reason}")
    with refused_as(InteropError, f"{path}: "):
        stack = StackSettings(
            **{ours: config[theirs] for ours, theirs in WANTED.items()},
            kv_heads=config.get("num_key_value_heads"),
            rope_theta=rope.get("rope_theta") or 10_000.0,
            norm_eps=config.get("rms_norm_eps") or 1e-6,
        )
    if config.get("head_dim") not in (None, stack.head_width):
        own = f"hidden_size / num_attention_heads = {stack.head_width}"
        raise InteropError(f"{path}: head_dim is {config['head_dim']}, heads here have {own}")
    return stack


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings of new folders (rope_parameters) and of old ones (rope_theta, rope_scaling)."""
    theta = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    return theta | (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})


def _reason_against(config: dict[str, Any], rope: dict[str, Any], unscaled: bool) -> str | None:
    """Why our blocks cannot compute what this Llama does; None when they can."""
    architectures = config.get("architectures") or []
    if config.get("model_type") != "llama" or architectures not in ([], ["LlamaForCausalLM"]):
        found = architectures[0] if architectures else config.get("model_type")
        return f"this is {found}, only LlamaForCausalLM can be taken over"
    if missing := [key for key in WANTED.values() if config.get(key) is None]:
        return f"{missing[0]} is missing"
    if config.get("quantization_config"):
        return "its weights are quantised; take the folder that they were made from"
    if (config.get("pretraining_tp") or 1) > 1:
        return f"pretraining_tp is {config['pretraining_tp']}, its sums are those of slices; only 1 can be taken over"
    for bias in ("attention_bias", "mlp_bias"):
        if config.get(bias):
            return f"{bias} is set, no projection here has a bias"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act is {config['hidden_act']}, blocks here have silu"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and not unscaled:
        return f"rotary positions are scaled ({kind}), ours are not; --unscaled takes it as if they were not"
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        return "only a part of each head is rotated (partial_rotary_factor), here all of it is"
    return None


class LlamaBlocks:
    """The tensors of a Llama's blocks under our names, read when they are asked for."""

    def __init__(self, folder: Path, stack: StackSettings) -> None:
        """Raises ModelFileError, naming the first tensor that is missing, left over or of another shape."""
        self._tensors = TensorFolder(folder)
        self._stack = stack
        found = block_parts(stack, "model.", HF)  # named as the blocks of `BltForCausalLM` are
        self._places: dict[str, list[str]] = {}
        for part in found:
            self._places.setdefault(part.ours, []).append(part.theirs)
        check(self._tensors, shapes(found), LEFT_OUT, f"{self._tensors.path}: ")

    def names(self) -> list[str]:
        """Our names, beginning with "blocks."."""
        return list(self._places)

    def left_out(self) -> list[str]:
        """Their tensors that have no place here."""
        return [name for name in LEFT_OUT if name in self._tensors.names()]

    def read(self, name: str) -> Iterator[Tensor]:
        """Consecutive rows of our tensor: one of theirs after another, in their dtype."""
        for theirs in self._places[name]:
            tensor = self._tensors.read(theirs)
            if theirs.endswith((".q_proj.weight", ".k_proj.weight")):
                tensor = pairs_from_halves(tensor, self._stack.head_width)
            yield tensor


def pairs_from_halves(rows: Tensor, head_width: int) -> Tensor:
    """Rows [heads * C, D] of a projection: of each head row i and row C/2 + i become rows 2i and 2i + 1."""
    neighbouring: Tensor = rows.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2).flatten(0, 2)
    return neighbouring
