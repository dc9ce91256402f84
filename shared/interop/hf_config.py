"""Settings as the config.json of a `BltForCausalLM` folder: plain JSON, transformers itself is not needed.

What transformers cannot represent is refused with the reason.
"""

from collections.abc import Sequence
from typing import Any

from shared.interop.custom_module import class_name, custom_model_type, module_kind
from shared.interop.described import Record
from shared.interop.names import InteropError, check_blocks
from shared.io.files.digests import in_short
from shared.model_settings import BltSettings, CountsSettings, EntropyModelSettings
from shared.patching.settings import PatchingSettings
from shared.stack_settings import StackSettings
from shared.text.chat import END
from shared.vocabulary import BOE, BOS, EOS, RESERVED, special_id

RECORD_KEY = "patchwork"
"""Where an exported config.json says what it was made from; transformers carries keys along that it does not know."""

_IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": RESERVED}


def check_representable(settings: BltSettings, patcher: EntropyModelSettings | CountsSettings | None = None) -> None:
    """Raise InteropError with the reason when `BltForCausalLM` cannot compute what these settings say."""
    check_blocks(settings, "transformers' own class")
    if settings.encoder_cross_all_layers and settings.encoder.layers > 1:
        raise InteropError(
            "encoder_cross_all_layers with several layers: transformers starts the patch vectors anew in each layer"
        )
    if settings.pooling != "cross":
        raise InteropError(f"pooling {settings.pooling!r}: transformers always has cross-attention")
    if settings.input_scale != 1.0:
        raise InteropError(f"input_scale {settings.input_scale:g}: transformers never scales patch vectors")
    if not settings.ngrams.sizes:
        raise InteropError("no n-gram embeddings: transformers always has them")
    if settings.specials:
        raise InteropError(
            f"the special ids {', '.join(settings.specials)}: transformers' entropy model has no rows for them"
        )
    if isinstance(patcher, CountsSettings):
        raise InteropError("an entropy model that counts: transformers finds patches with a transformer alone")
    if patcher is None:
        return
    check_blocks(patcher, "transformers' own class")
    if patcher.newline_reset:
        raise InteropError("an entropy model with newline_reset: transformers never resets its context")


def check_one_threshold(patching: PatchingSettings) -> None:
    """Raise InteropError where thresholds differ by subset: a folder of transformers has one for all text."""
    if patching.thetas:
        known = in_short(sorted(patching.thetas), ", ")
        raise InteropError(
            "thresholds differ by subset and transformers has one for all text: give --theta "
            f"{patching.theta} (the default one, calibrated on all bytes), or --subset with one of {known}"
        )


def check_rule(patching: PatchingSettings) -> None:
    """Raise InteropError with the reason when `BltForCausalLM` cannot find these patches by itself."""
    if patching.rule != "entropy":
        raise InteropError(
            f"patches of rule {patching.rule!r}: transformers finds patches by entropy above one threshold only"
        )
    check_one_threshold(patching)
    if patching.min_length > 1:
        raise InteropError(f"min_length {patching.min_length}: transformers has no shortest length of a patch")
    if patching.whole_characters:
        raise InteropError("whole_characters: transformers starts patches inside characters, too")


def objection(record: Record) -> str | None:
    """Why transformers has no class of its own for what a record describes; None where `BltForCausalLM` can be it."""
    if not isinstance(record.model, BltSettings):
        return f"a model of kind {record.model.kind!r}"
    try:
        check_rule(record.patching)
        check_representable(record.model, record.entropy_model)
    except InteropError as error:
        return str(error)
    return None


def custom_config(record: Record, slots: int) -> dict[str, Any]:
    """The content of config.json of a model that only the folder's own class can be.

    ``slots``: of the table of an entropy model that counts.
    """
    kind = module_kind(record.model)
    stack = max((stack.settings for stack in record.model.stacks), key=lambda stack: stack.width * stack.layers)
    patching = record.patching
    found = {"patching_threshold": patching.theta, "count_table_slots": slots} if patching.needs_entropy else {}
    return {
        "model_type": custom_model_type(kind),
        "architectures": [class_name(kind)],
        "dtype": "float32",
        "vocab_size": record.model.vocabulary,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        **found,
        "tie_word_embeddings": False,
        **_IDS,
        RECORD_KEY: record.model_dump(mode="json", by_alias=True),
    }


def hf_config(
    settings: BltSettings,
    patcher_settings: EntropyModelSettings | None = None,
    theta: float | None = None,
    record: Record | None = None,
) -> dict[str, Any]:
    """The content of config.json, which is also the keywords of ``transformers.BltConfig``, every field explicit.

    Args:
        patcher_settings: None for a model whose patches are given from outside.
        theta: nats, the threshold of the global entropy rule.
        record: laid beside it for `read_hf_config`.
    """
    check_representable(settings, patcher_settings)
    queries = settings.queries
    local = {
        "vocab_size": settings.vocabulary,
        "cross_attn_k": queries,
        "hidden_size_global": settings.global_.width,
        "max_position_embeddings": 24_576,  # says what the published models saw; bounds nothing
        "sliding_window": settings.window,
    }
    patcher: dict[str, Any] = {}
    if patcher_settings is not None:
        patcher = _stack("blt_patcher", patcher_settings) | {
            "vocab_size": patcher_settings.vocabulary,
            "max_position_embeddings": 8192,
            "sliding_window": patcher_settings.window,
        }
    config = {
        "model_type": "blt",
        "architectures": ["BltForCausalLM"],
        "dtype": "float32",  # in bf16 the patcher's boundaries would depend on rounding
        "vocab_size": settings.vocabulary,
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "patch_in_forward": patcher_settings is not None,
        "patch_size": 4,  # read only for not being null
        "patching_mode": "entropy",
        "patching_threshold": theta,
        "patching_batch_size": 1,
        "max_patch_length": None,  # theirs moves the last position's logits even where it splits nothing
        "local_attention_window_len": settings.window,
        "cross_attn_k": queries,
        "encoder_hash_byte_group_size": list(settings.ngrams.sizes),
        "encoder_hash_byte_group_vocab": settings.ngrams.rows,
        "encoder_hash_byte_group_nb_functions": settings.ngrams.functions,
        "encoder_config": _stack("blt_local_encoder", settings.encoder)
        | local
        | {"cross_attn_all_layers": settings.encoder_cross_all_layers},
        "decoder_config": _stack("blt_local_decoder", settings.decoder)
        | local
        | {"cross_attn_all_layers": settings.decoder_cross_all_layers},
        "global_config": _stack("blt_global_transformer", settings.global_) | {"max_position_embeddings": 4096},
        "patcher_config": patcher,
        "rope_parameters": _rope(settings.global_),
        "tie_word_embeddings": False,
        "use_cache": False,  # its cache gives wrong logits
        **_IDS,
    }
    return config if record is None else config | {RECORD_KEY: record.model_dump(mode="json", by_alias=True)}


def generation_config(use_cache: bool = False, specials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of generation_config.json: ids that are not text are never chosen, as in our own generation.

    Of the named special ids the one that ends a turn ends a text as well.
    """
    ends = [EOS, *(special_id(name, specials) for name in specials if name == END)]
    others = [special_id(name, specials) for name in specials if name != END]
    found = _IDS | {"use_cache": use_cache, "suppress_tokens": [BOE, BOS, RESERVED, *others]}
    return found | {"eos_token_id": ends} if len(ends) > 1 else found


def _stack(model_type: str, stack: StackSettings) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": stack.width,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.key_value_heads,
        "num_hidden_layers": stack.layers,
        "intermediate_size": stack.hidden,
        "rms_norm_eps": stack.norm_eps,
        "rope_parameters": _rope(stack),
        "hidden_act": "silu",
        "dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def _rope(stack: StackSettings) -> dict[str, Any]:
    return {"rope_theta": stack.rope_theta, "rope_type": "default"}
