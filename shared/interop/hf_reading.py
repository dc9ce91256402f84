"""Settings from the config.json of a `BltForCausalLM` folder, whoever wrote it.

Missing keys have the values that transformers 5.23 gives them, which are the published 1B model's. What our models
cannot represent is refused by the name of its key.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shared.interop.custom_module import class_name, custom_model_type, module_kind
from shared.interop.described import Described, Foreign, Record
from shared.interop.hf_config import RECORD_KEY, check_representable, hf_config
from shared.interop.names import InteropError
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching.settings import LONGEST_PATCH, PatchingSettings
from shared.settings import refused_as
from shared.vocabulary import VOCABULARY_SIZE

Count = Annotated[int, Field(gt=0, le=1 << 31)]  # a foreign config may say anything; our own settings limit more


class _Stack(Foreign):
    hidden_size: Count
    num_attention_heads: Count
    num_hidden_layers: Count
    num_key_value_heads: Count | None = None
    intermediate_size: Count | None = None
    rms_norm_eps: float = 1e-5
    head_dim: int | None = None
    hidden_act: str = "silu"
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    """As older files call rope_parameters."""
    rope_theta: float | None = None
    """Where older files have it."""
    partial_rotary_factor: float | None = None


class _Local(_Stack):
    vocab_size: int = VOCABULARY_SIZE
    hidden_size: Count = 1024
    num_attention_heads: Count = 16
    cross_attn_k: Count = 2


class _Encoder(_Local):
    num_hidden_layers: Count = 1
    cross_attn_all_layers: bool = False


class _Decoder(_Local):
    num_hidden_layers: Count = 9
    intermediate_size: Count | None = 2816
    cross_attn_all_layers: bool = True
    hidden_size_global: int = 2048


class _Global(_Stack):
    hidden_size: Count = 2048
    num_attention_heads: Count = 16
    num_hidden_layers: Count = 25
    intermediate_size: Count | None = 5632


class _Patcher(_Stack):
    vocab_size: int = VOCABULARY_SIZE
    hidden_size: Count = 768
    num_attention_heads: Count = 12
    num_hidden_layers: Count = 14
    intermediate_size: Count | None = 2048
    sliding_window: int | None = 512


class _Config(Foreign):
    model_type: str = ""
    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    vocab_size: int = VOCABULARY_SIZE
    patch_in_forward: bool = True
    patch_size: int | None = 4
    patching_mode: str | None = "entropy"
    patching_threshold: float | None = 1.335442066192627
    max_patch_length: Count | None = None
    local_attention_window_len: int | None = 512
    cross_attn_k: int = 2
    encoder_hash_byte_group_size: list[int] | None = Field(default=None, max_length=1024)
    encoder_hash_byte_group_vocab: int = 500_002
    encoder_hash_byte_group_nb_functions: int = 1
    encoder_config: _Encoder = _Encoder()
    decoder_config: _Decoder = _Decoder()
    global_config: _Global = _Global()
    patcher_config: _Patcher = _Patcher()
    tie_word_embeddings: bool = False


def read_hf_config(values: Mapping[str, Any], theta: float | None = None) -> Described:
    """The settings in the content of a config.json; ``theta`` (nats) instead of its threshold, if given.

    Raises InteropError, naming the key, for what is not a BLT or what our models cannot represent.
    """
    with refused_as(InteropError):
        given = {key: value for key, value in values.items() if value is not None or not key.endswith("_config")}
        config = _Config.model_validate(given)
        _check_kind(config)
        _check_agreement(config)
        model, patcher = _model(config), _patcher(config)
        check_representable(model, patcher)
        threshold = config.patching_threshold if theta is None else theta
        if threshold is None:
            raise InteropError("patching_threshold is null: the folder does not say where patches begin; give --theta")
        longest = min(config.max_patch_length or LONGEST_PATCH, LONGEST_PATCH)
        patching = PatchingSettings(rule="entropy", theta=threshold, max_length=longest)
    return _as_recorded(Described(model, patcher, patching, tied=config.tie_word_embeddings), values)


class _Custom(Foreign):
    patching_threshold: float | None = None
    quantization_config: dict[str, Any] | None = None


def read_custom_config(values: Mapping[str, Any], theta: float | None = None) -> Described:
    """The same of a folder that only its own class can open: its settings are those of the record in it."""
    with refused_as(InteropError):
        config = _Custom.model_validate(values)
    if config.quantization_config:
        raise InteropError("quantization_config: quantised weights cannot be read")
    with refused_as(InteropError, f"{RECORD_KEY}: "):
        record = Record.model_validate(values.get(RECORD_KEY))
    patching = record.patching
    if values.get("model_type") != (wanted_type := custom_model_type(module_kind(record.model))):
        raise InteropError(
            f"model_type is {values.get('model_type')!r}, a model of kind {record.model.kind!r} has {wanted_type!r}"
        )
    if reason := record.model.objection(patching):
        raise InteropError(f"{RECORD_KEY}.patching: the model {reason}")
    if patching.needs_entropy != (record.entropy_model is not None):
        raise InteropError(f"{RECORD_KEY}.entropy_model does not belong to rule {patching.rule!r}")
    wanted = config.patching_threshold if theta is None else theta
    if wanted != patching.theta:
        if wanted is None or not patching.needs_entropy:
            raise InteropError(f"patching_threshold is {wanted}, which rule {patching.rule!r} cannot have")
        with refused_as(InteropError):
            patching = patching.with_theta(wanted, grid=False)
    return Described(record.model, record.entropy_model, patching, record.entropy_model_identity)


def _model(config: _Config) -> BltSettings:
    return BltSettings.model_validate(
        {
            "ngrams": {
                "sizes": config.encoder_hash_byte_group_size or (3, 4, 5, 6, 7, 8),
                "rows": config.encoder_hash_byte_group_vocab,
                "functions": config.encoder_hash_byte_group_nb_functions,
            },
            "encoder": _stack("encoder_config", config.encoder_config),
            "global": _stack("global_config", config.global_config),
            "decoder": _stack("decoder_config", config.decoder_config),
            "window": config.local_attention_window_len,
            "queries": config.cross_attn_k,
            "encoder_cross_all_layers": config.encoder_config.cross_attn_all_layers,
            "decoder_cross_all_layers": config.decoder_config.cross_attn_all_layers,
        }
    )


def _patcher(config: _Config) -> EntropyModelSettings:
    stack = _stack("patcher_config", config.patcher_config, rope_theta=10_000.0)
    return EntropyModelSettings.model_validate(stack | {"window": config.patcher_config.sliding_window})


def _stack(where: str, stack: _Stack, rope_theta: float = 500_000.0) -> dict[str, Any]:
    """One of our stacks; InteropError for positions, activations or heads that ours do not have."""
    rope = stack.rope_scaling or stack.rope_parameters or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InteropError(f"{where}.rope_parameters: rope_type {kind!r} is not supported, only 'default' is")
    partial = rope.get("partial_rotary_factor", stack.partial_rotary_factor)
    if partial not in (None, 1):
        raise InteropError(f"{where}: partial_rotary_factor {partial} is not supported: all of a head is turned")
    if stack.hidden_act != "silu":
        raise InteropError(f"{where}.hidden_act is {stack.hidden_act!r}, only 'silu' is supported")
    if stack.head_dim not in (None, stack.hidden_size // stack.num_attention_heads):
        raise InteropError(f"{where}.head_dim is {stack.head_dim}, not hidden_size / num_attention_heads")
    return {
        "width": stack.hidden_size,
        "layers": stack.num_hidden_layers,
        "heads": stack.num_attention_heads,
        "kv_heads": stack.num_key_value_heads or stack.num_attention_heads,
        "feed_forward": stack.intermediate_size or int(8 * stack.hidden_size / 3),
        "rope_theta": rope.get("rope_theta") or stack.rope_theta or rope_theta,
        "norm_eps": stack.rms_norm_eps,
    }


def _check_kind(config: _Config) -> None:
    """Raise InteropError for a folder of something else."""
    # As written here, and as the class of the folder's own module saves it.
    known = {"BltForCausalLM", class_name("blt")}
    if config.model_type != "blt" or (config.architectures and known.isdisjoint(config.architectures)):
        found = f"model_type {config.model_type!r}, architectures {config.architectures}"
        raise InteropError(f"{found}: a folder of BltForCausalLM is wanted (model_type 'blt')")
    if not config.patch_in_forward or config.patching_mode != "entropy" or config.patch_size is None:
        raise InteropError(
            f"patch_in_forward {config.patch_in_forward}, patching_mode {config.patching_mode!r}, patch_size "
            f"{config.patch_size}: only a model that finds its patches itself, by entropy, can be imported"
        )
    if config.quantization_config:
        raise InteropError("quantization_config: quantised weights cannot be read")


def _check_agreement(config: _Config) -> None:
    """Raise InteropError where keys contradict one another, or say what our local models do not have."""
    encoder, decoder, patcher = config.encoder_config, config.decoder_config, config.patcher_config
    width = config.global_config.hidden_size
    for key, window in (
        ("local_attention_window_len", config.local_attention_window_len),
        ("patcher_config.sliding_window", patcher.sliding_window),
    ):
        if window is None:
            raise InteropError(f"{key} is null: attention to all bytes before is not supported, a window is needed")
    sizes = {
        "vocab_size": config.vocab_size,
        "encoder_config.vocab_size": encoder.vocab_size,
        "decoder_config.vocab_size": decoder.vocab_size,
        "patcher_config.vocab_size": patcher.vocab_size,
    }
    for key, size in sizes.items():
        if size != VOCABULARY_SIZE:
            raise InteropError(f"{key} is {size}; bytes and special ids are {VOCABULARY_SIZE}")
    for key, found, name, wanted in (
        ("encoder_config.cross_attn_k", encoder.cross_attn_k, "cross_attn_k", config.cross_attn_k),
        ("decoder_config.cross_attn_k", decoder.cross_attn_k, "cross_attn_k", config.cross_attn_k),
        ("decoder_config.hidden_size_global", decoder.hidden_size_global, "global_config.hidden_size", width),
    ):
        if found != wanted:
            raise InteropError(f"{key} is {found}, {name} is {wanted}: they must be equal")


def _as_recorded(found: Described, values: Mapping[str, Any]) -> Described:
    """The same in the settings that the folder was exported from, if it says so and they still mean the same."""
    try:
        record = Record.model_validate(values.get(RECORD_KEY))
        theta = record.patching.theta
        if not isinstance(record.model, BltSettings) or not isinstance(record.entropy_model, EntropyModelSettings):
            return found
        ours = hf_config(record.model, record.entropy_model, theta)
        assert isinstance(found.model, BltSettings), "transformers' own class is one"
        assert isinstance(found.entropy_model, EntropyModelSettings), "and has one"
        theirs = hf_config(found.model, found.entropy_model, theta)
    except (ValidationError, InteropError):
        return found
    # A recorded longest patch is not in their keys; whoever put one there since meant it.
    same_rule = all(getattr(record.patching, x) == getattr(found.patching, x) for x in ("rule", "theta", "thetas"))
    if ours != theirs or not same_rule or found.patching.max_length != LONGEST_PATCH:
        return found
    return replace(found, **dict(record))
