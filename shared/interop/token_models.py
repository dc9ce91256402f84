"""The blocks of a folder of a token model as those of the global transformer (the paper's "byteify").

Models of several families are taken: what each of them does is a row of `FAMILIES`, and means settings of a stack.

All of them turn the two halves of each head against each other, ours neighbouring pairs: the rows of queries and keys,
their biases and the weights of their norms change places, so that i of a half and its partner stand side by side.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from shared.interop.described import Foreign, read_json
from shared.interop.names import HF, InteropError, block_parts
from shared.interop.transfer import check, shapes
from shared.model_folder.tensors import TensorFolder
from shared.settings import refused_as
from shared.stack_settings import LONGEST_TEXT, MOST_LAYERS, Projection, StackSettings

CONFIG_FILE = "config.json"
WANTED = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}
FULL, SLIDING = "full_attention", "sliding_attention"
T = TypeVar("T")

Count = Annotated[int, Field(gt=0, le=LONGEST_TEXT)]
Scale = Annotated[float, Field(ge=0)]


class _Rope(Foreign):
    """Of rotary positions."""

    rope_theta: float | None = None
    rope_type: str | None = None
    type: str | None = None
    """What old folders call rope_type."""
    partial_rotary_factor: float | None = None
    factor: float | None = None
    original_max_position_embeddings: Count | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: Scale | None = None
    mscale_all_dim: Scale | None = None
    truncate: bool | None = True

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"


class _Ropes(_Rope):
    """Of all layers, or of each kind of them."""

    full_attention: _Rope | None = None
    sliding_attention: _Rope | None = None


class _Config(Foreign):
    """The keys that are read, with the types that transformers gives them."""

    model_type: str | None = None
    architectures: list[str] | None = None
    hidden_size: int | None = None
    num_hidden_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float | None = None
    hidden_act: str | None = "silu"
    pretraining_tp: int | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int | None = None
    max_position_embeddings: Count | None = None
    original_max_position_embeddings: Count | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    rope_scaling: _Ropes | None = None
    rope_parameters: _Ropes | None = None
    quantization_config: Any = None


Slides = Callable[[_Config, int, bool], bool]
"""Whether a layer has the window where layer_types does not say it: config, number of the layer, whether it has rotary
positions."""


@dataclass(frozen=True)
class Family:
    """What a model_type means: which keys of config.json its class reads, and what it does without them."""

    architecture: str
    defaults: Mapping[str, Any]
    """Of keys that config.json may leave out."""
    norm: Literal["before", "after"] = "before"
    qk_norm: Literal["none", "head", "width"] = "none"
    biases: tuple[Projection, ...] = ()
    """That it has always."""
    bias_keys: Mapping[str, tuple[Projection, ...]] = field(default_factory=dict)
    """Those that a key asks for."""
    slides: Slides = lambda config, layer, rotated: False
    switch: bool = False
    """There are windows only where use_sliding_window says so."""
    typed: bool = False
    """layer_types is read."""
    unrotated: bool = False
    """no_rope_layers is read."""
    ropes_by_type: bool = False
    """Layers with a window have rotary settings of their own."""


_ATTENTION: dict[str, tuple[Projection, ...]] = {"attention_bias": ("qkv", "attention_output")}
_MLP: dict[str, tuple[Projection, ...]] = {"mlp_bias": ("gate_up", "down")}
_ALL: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
_LLAMA = _ALL | {"max_position_embeddings": 2048}
_OLMO = _LLAMA | {"rms_norm_eps": 1e-5}
_QWEN = _ALL | {
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _upper_layers(config: _Config, layer: int, rotated: bool) -> bool:
    return bool(config.use_sliding_window) and layer >= _given("max_window_layers", config.max_window_layers)


FAMILIES = {
    "llama": Family("LlamaForCausalLM", _LLAMA, bias_keys=_ATTENTION | _MLP),
    "mistral": Family(
        "MistralForCausalLM",
        _ALL | {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
        slides=lambda config, layer, rotated: config.sliding_window is not None,
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, biases=("qkv",), slides=_upper_layers, switch=True, typed=True),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN | {"head_dim": 128},
        qk_norm="head",
        bias_keys=_ATTENTION,
        slides=_upper_layers,
        switch=True,
        typed=True,
    ),
    "olmo2": Family("Olmo2ForCausalLM", _OLMO, norm="after", qk_norm="width", bias_keys=_ATTENTION),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        _OLMO | {"rope_theta": 500_000.0, "sliding_window": 4096},
        norm="after",
        qk_norm="width",
        bias_keys=_ATTENTION,
        slides=lambda config, layer, rotated: layer % 4 != 3,
        typed=True,
        ropes_by_type=True,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _ALL
        | {
            "rope_theta": 2_000_000.0,
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
        },
        bias_keys=_ATTENTION | _MLP,
        slides=lambda config, layer, rotated: not rotated and config.sliding_window is not None,
        switch=True,
        typed=True,
        unrotated=True,
    ),
}
"""By model_type. Defaults are those of transformers' configurations."""

LEFT_OUT = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
"""What a byte model has no use for: tokens and their logits, and the norm before those."""


def block_settings(folder: Path, unscaled: bool = False) -> tuple[StackSettings, str]:
    """The settings of a token model's blocks, from its config.json, and the name of its class.

    Args:
        unscaled: take a model with scaled rotary positions as if they were not scaled.

    Raises InteropError with the reason when our blocks cannot compute the same.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    try:
        return settings_of_config(values, unscaled)
    except InteropError as error:
        raise InteropError(f"{path}: {error}") from None


def settings_of_config(values: Mapping[str, Any], unscaled: bool = False) -> tuple[StackSettings, str]:
    """The same of what a config.json holds; errors do not name the file."""
    with refused_as(InteropError):
        plain = _Config.model_validate(values)
    family = _family(plain)
    config = _Config.model_validate({**family.defaults, **values})
    if reason := _reason_against(config):
        raise InteropError(reason)
    layers = _given("num_hidden_layers", config.num_hidden_layers)
    rotated = _rotated(config, family, layers)
    windows = _windows(config, family, rotated)
    theta, scaling = _rotary(config, family, windows, unscaled)
    keys = [projections for key, projections in family.bias_keys.items() if getattr(config, key)]
    sizes = {ours: getattr(config, theirs) for ours, theirs in WANTED.items()}
    nested: dict[str, Any] = {"rope_scaling": scaling}  # validated with the rest, so that messages begin with its name
    with refused_as(InteropError):
        stack = StackSettings(
            **sizes,
            **nested,
            kv_heads=config.num_key_value_heads,
            head_dim=_head_dim(config),
            rope_theta=theta,
            rotated=() if all(rotated) else shortest(rotated),
            windows=shortest(windows) if any(windows) else (),
            norm=family.norm,
            qk_norm=family.qk_norm,
            biases=(*family.biases, *(one for projections in keys for one in projections)),
            norm_eps=_given("rms_norm_eps", config.rms_norm_eps),
        )
    return stack, family.architecture


def _family(config: _Config) -> Family:
    """Raises InteropError for models of others, and for other heads than that of a language model."""
    family, architectures = FAMILIES.get(config.model_type or ""), config.architectures or []
    if family is None or architectures not in ([], [family.architecture]):
        found = architectures[0] if architectures else config.model_type
        known = ", ".join(one.architecture for one in FAMILIES.values())
        raise InteropError(f"this is {found}, only blocks of these can be taken over: {known}")
    return family


def _given(key: str, value: T | None) -> T:
    if value is None:
        raise InteropError(f"{key} is missing")
    return value


def _reason_against(config: _Config) -> str | None:
    """Why our blocks cannot compute what the model does, whatever its family; None when they can."""
    if missing := [key for key in WANTED.values() if getattr(config, key) is None]:
        return f"{missing[0]} is missing"
    if config.quantization_config:
        return "its weights are quantised; take the folder that they were made from"
    if config.model_type == "llama" and (config.pretraining_tp or 1) > 1:  # classes of others do not read it
        return f"pretraining_tp is {config.pretraining_tp}, its sums are those of slices; only 1 can be taken over"
    if config.hidden_act not in ("silu", "swish"):
        return f"hidden_act is {config.hidden_act}, blocks here have silu"
    return None


def _head_dim(config: _Config) -> int | None:
    """The width of a head where it is not width / heads."""
    filled = config.head_dim is not None and config.head_dim * (config.num_attention_heads or 0) == config.hidden_size
    return None if filled else config.head_dim


# ---- Layers that are not alike.


def shortest(values: Sequence[T]) -> tuple[T, ...]:
    """The fewest of the first values that give all of them when they are repeated in turn."""
    for length in range(1, len(values)):
        if all(values[i] == values[i % length] for i in range(length, len(values))):
            return tuple(values[:length])
    return tuple(values)


def _rotated(config: _Config, family: Family, layers: int) -> list[bool]:
    """Which layers have rotary positions."""
    if not family.unrotated:
        return [True] * layers
    if config.no_rope_layers is not None:
        if len(config.no_rope_layers) < layers:
            raise InteropError(f"no_rope_layers is about {len(config.no_rope_layers)} layers, there are {layers}")
        return [bool(rotated) for rotated in config.no_rope_layers[:layers]]
    interval = _given("no_rope_layer_interval", config.no_rope_layer_interval)
    if interval < 1:
        raise InteropError(f"no_rope_layer_interval is {interval}, must be at least 1")
    return [(layer + 1) % interval != 0 for layer in range(layers)]


def _windows(config: _Config, family: Family, rotated: Sequence[bool]) -> list[int]:
    """How far each layer sees, itself included; 0: the whole document."""
    layers = len(rotated)
    switched_off = family.switch and not config.use_sliding_window
    by_rule = [not switched_off and family.slides(config, layer, rotated[layer]) for layer in range(layers)]
    kinds = [SLIDING if slides else FULL for slides in by_rule]
    if config.layer_types is not None:
        if unknown := set(config.layer_types) - {FULL, SLIDING}:
            raise InteropError(f"layer_types has {min(unknown)}, only {FULL} and {SLIDING} can be taken over")
        if len(config.layer_types) != layers:
            raise InteropError(f"layer_types is about {len(config.layer_types)} layers, there are {layers}")
        if not family.typed and config.layer_types != kinds:
            raise InteropError(f"layer_types is set, but all layers of {family.architecture} are alike ({kinds[0]})")
        kinds = config.layer_types
    if SLIDING not in kinds:
        return [0] * layers
    if switched_off:
        raise InteropError(f"layer_types has {SLIDING}, but use_sliding_window is not set")
    window = _given("sliding_window", config.sliding_window)
    if window < 1:
        raise InteropError(f"sliding_window is {window}, must be at least 1")
    return [window if kind == SLIDING else 0 for kind in kinds]


# ---- Rotary positions.


def _rotary(
    config: _Config, family: Family, windows: Sequence[int], unscaled: bool
) -> tuple[float, dict[str, Any] | None]:
    """The base of the wavelengths, and settings of a `RopeScaling`."""
    ropes = _ropes_by_type(config) if family.ropes_by_type else dict.fromkeys((FULL, SLIDING), _rope(config))
    used = [ropes[kind] for kind, has in ((FULL, not all(windows)), (SLIDING, any(windows))) if has]
    found = [_theta_and_scaling(rope, config, family, unscaled) for rope in used]
    if len({theta for theta, _ in found}) > 1:
        raise InteropError(f"rope_theta differs between {FULL} and {SLIDING}, all layers here have one")
    theta, scaling = found[0]
    if len(found) == 2 and scaling != found[1][1]:
        if scaling is None or found[1][1] is not None:
            raise InteropError(f"the scaling of {SLIDING} is another than that of {FULL}, layers here share it")
        scaling = scaling | {"windowed": False}
    return theta, scaling


def _rope(config: _Config) -> _Rope:
    """Of all layers: new folders have rope_parameters, old ones rope_scaling, which then counts alone."""
    old, new = config.rope_scaling, config.rope_parameters
    rope = old if old is not None and old.model_fields_set else new or _Ropes()
    if rope.full_attention or rope.sliding_attention:
        raise InteropError(f"rotary positions differ between {FULL} and {SLIDING}, which only Olmo3ForCausalLM has")
    # In old folders, and in those of models that grew, it stands beside; transformers takes that one first.
    if config.original_max_position_embeddings is not None:
        return rope.model_copy(update={"original_max_position_embeddings": config.original_max_position_embeddings})
    return rope


def _ropes_by_type(config: _Config) -> dict[str, _Rope]:
    """Of each kind of layers: new folders have both in rope_parameters; rope_scaling of old ones is of full layers."""
    ropes = config.rope_parameters or _Ropes()
    if beside := ropes.model_fields_set - {FULL, SLIDING}:
        raise InteropError(f"rope_parameters has {min(beside)} beside {FULL} and {SLIDING}, which have it each")
    full, sliding = ropes.full_attention or _Rope(), ropes.sliding_attention or _Rope()
    if (old := config.rope_scaling) is not None:
        if old.full_attention or old.sliding_attention:
            raise InteropError(f"rope_scaling has {FULL} and {SLIDING}, which are of rope_parameters")
        full = full.model_copy(update=old.model_dump(exclude_unset=True))
    if not (full.truncate and sliding.truncate):
        # transformers 5.23 looks for it one level above, where it never is.
        raise InteropError("truncate is false, which transformers disregards where rope_parameters has kinds of layers")
    return {FULL: full, SLIDING: sliding}


def _theta_and_scaling(
    rope: _Rope, config: _Config, family: Family, unscaled: bool
) -> tuple[float, dict[str, Any] | None]:
    if any(part.partial_rotary_factor not in (None, 1.0) for part in (rope, config)):
        raise InteropError("only a part of each head is rotated (partial_rotary_factor), here all of it is")
    theta = next(one for one in (rope.rope_theta, config.rope_theta, family.defaults["rope_theta"]) if one is not None)
    if rope.kind == "default" or unscaled:
        return theta, None
    if rope.kind not in ("linear", "llama3", "yarn"):
        raise InteropError(
            f"rotary positions are scaled ({rope.kind}), here by linear, llama3 and yarn alone; "
            "--unscaled takes it as if they were not"
        )
    if rope.kind == "linear":
        return theta, {"kind": "linear", "factor": _given("factor", rope.factor)}
    reach = config.max_position_embeddings
    trained = rope.original_max_position_embeddings or _given("max_position_embeddings", reach)
    if rope.kind == "llama3":
        return theta, {
            "kind": "llama3",
            "factor": _given("factor", rope.factor),
            "trained_length": trained,
            "low": _given("low_freq_factor", rope.low_freq_factor),
            "high": _given("high_freq_factor", rope.high_freq_factor),
        }
    factor = (reach or trained) / trained if rope.factor is None else rope.factor
    return theta, {
        "kind": "yarn",
        "factor": factor,
        "trained_length": trained,
        "low": rope.beta_slow or 1.0,
        "high": rope.beta_fast or 32.0,
        "strength": _strength(rope, factor),
        "rounded": bool(rope.truncate),
    }


def _strength(rope: _Rope, factor: float) -> float:
    """What yarn multiplies queries and keys by."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if factor <= 1:
        return 1.0
    if rope.mscale and rope.mscale_all_dim:
        above, below = (0.1 * scale * math.log(factor) + 1 for scale in (rope.mscale, rope.mscale_all_dim))
        return above / below
    return 0.1 * math.log(factor) + 1


# ---- Tensors.


class TokenModelBlocks:
    """The tensors of a token model's blocks under our names, read when they are asked for."""

    def __init__(self, folder: Path, unscaled: bool = False) -> None:
        """``unscaled``: take a model with scaled rotary positions as if they were not scaled.

        Raises InteropError with the reason when our blocks cannot compute the same, ModelFileError naming the first
        tensor that is missing, left over or of another shape.
        """
        self.stack, self.architecture = block_settings(folder, unscaled)
        self._tensors = TensorFolder(folder)
        found = block_parts(self.stack, "model.", HF)  # named as the blocks of `BltForCausalLM` are
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
            if theirs.rsplit(".", 2)[1] in TURNED:
                tensor = pairs_from_halves(tensor, self.stack.head_width)
            yield tensor


TURNED = ("q_proj", "k_proj", "q_norm", "k_norm")
"""What makes queries and keys, which rotary positions turn. Values are not turned."""


def pairs_from_halves(rows: Tensor, head_width: int) -> Tensor:
    """[heads * C, ...]: of each head i and C/2 + i become 2i and 2i + 1.

    Rows of a projection [H C, D], its bias [H C], or the weight of a norm of each head [C] or of all of them [H C].
    """
    neighbouring: Tensor = rows.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2).flatten(0, 2)
    return neighbouring
