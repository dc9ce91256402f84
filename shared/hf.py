"""Weights and settings to and from ``transformers.BltForCausalLM``: names, shapes and the configuration (law 8).

A model here and its counterpart there give equal logits. What the other side cannot hold is refused with the reason.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shared.model_settings import BltSettings, EntropyModelSettings, StackSettings
from shared.vocabulary import BOS, EOS, RESERVED

State = dict[str, Tensor]


class InteropError(ValueError):
    """The model has a part that the other side cannot represent, or the weights are not those of such a model."""


def to_hf_state(
    state: Mapping[str, Tensor],
    settings: BltSettings,
    patcher_state: Mapping[str, Tensor] | None = None,
    patcher_settings: EntropyModelSettings | None = None,
) -> State:
    """The state of a BLT, and of the entropy model that finds its patches, under the names of `BltForCausalLM`.

    Fused projections are split; tensors are views where they can be. Raises InteropError.
    """
    check_representable(settings, patcher_settings)
    out: State = {}
    _split(out, state, dict(_names(settings)), _parts(settings))
    if patcher_state is not None:
        assert patcher_settings is not None, "the state of a patcher comes with its settings"
        _split(out, patcher_state, dict(_patcher_names(patcher_settings)), _patcher_parts(patcher_settings))
    return out


def from_hf_state(
    state: Mapping[str, Tensor], settings: BltSettings, patcher_settings: EntropyModelSettings | None = None
) -> tuple[State, State | None]:
    """The states of a BLT and of its entropy model (None without ``patcher_settings``) from that of `BltForCausalLM`.

    Raises InteropError when a tensor is missing, has another shape, or is left over.
    """
    names, patcher_names = dict(_names(settings)), dict(_patcher_names(patcher_settings)) if patcher_settings else {}
    known = {theirs for parts in (*names.values(), *patcher_names.values()) for theirs in parts}
    for name in sorted(state):
        if name not in known and not (patcher_settings is None and name.startswith("model.patcher.")):
            raise InteropError(f"tensor {name} has no place in these settings")
    blt = _join(state, names, _parts(settings))
    patcher = _join(state, patcher_names, _patcher_parts(patcher_settings)) if patcher_settings else None
    return blt, patcher


def check_representable(settings: BltSettings, patcher: EntropyModelSettings | None = None) -> None:
    """Raise InteropError with the reason when `BltForCausalLM` cannot compute what these settings say."""
    if settings.encoder_cross_all_layers and settings.encoder.layers > 1:
        raise InteropError(
            "encoder_cross_all_layers with several layers cannot be exported: "
            "transformers starts the patch vectors anew in each layer"
        )
    if not settings.ngrams.sizes:
        raise InteropError("a model without n-gram embeddings cannot be exported: transformers always has them")
    if patcher is not None and patcher.newline_reset:
        raise InteropError(
            "an entropy model with newline_reset cannot be exported: transformers never resets its context"
        )


def hf_config(
    settings: BltSettings,
    patcher_settings: EntropyModelSettings | None = None,
    theta: float | None = None,
) -> dict[str, Any]:
    """Keyword arguments for ``transformers.BltConfig``, every field explicit.

    Args:
        patcher_settings: None for a model whose patches are given from outside.
        theta: nats, the threshold of the global entropy rule.
    """
    check_representable(settings, patcher_settings)
    queries = settings.queries
    local = {"cross_attn_k": queries, "hidden_size_global": settings.global_.width, "vocab_size": settings.vocabulary}
    patcher: dict[str, Any] = {}
    if patcher_settings is not None:
        patcher = _stack(patcher_settings) | {
            "vocab_size": patcher_settings.vocabulary,
            "sliding_window": patcher_settings.window,
        }
    return {
        "vocab_size": settings.vocabulary,
        "patch_in_forward": patcher_settings is not None,
        "patching_mode": "entropy",
        "patching_threshold": theta,
        "max_patch_length": None,  # theirs moves the last position's logits even where it splits nothing
        "local_attention_window_len": settings.window,
        "cross_attn_k": queries,
        "encoder_hash_byte_group_size": list(settings.ngrams.sizes),
        "encoder_hash_byte_group_vocab": settings.ngrams.rows,
        "encoder_hash_byte_group_nb_functions": settings.ngrams.functions,
        "encoder_config": _stack(settings.encoder)
        | local
        | {"cross_attn_all_layers": settings.encoder_cross_all_layers, "sliding_window": settings.window},
        "decoder_config": _stack(settings.decoder)
        | local
        | {"cross_attn_all_layers": settings.decoder_cross_all_layers},
        "global_config": _stack(settings.global_),
        "patcher_config": patcher,
        "tie_word_embeddings": False,
        "use_cache": False,  # its cache gives wrong logits
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": RESERVED,
    }


def _stack(stack: StackSettings) -> dict[str, Any]:
    return {
        "hidden_size": stack.width,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.key_value_heads,
        "num_hidden_layers": stack.layers,
        "intermediate_size": stack.hidden,
        "rms_norm_eps": stack.norm_eps,
        "rope_parameters": {"rope_theta": stack.rope_theta, "rope_type": "default"},
    }


# Names. Ours -> theirs; several of theirs are the consecutive row blocks of one of ours.


def _names(settings: BltSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "ngrams.weight", ("model.encoder_hash_tok_embedding.weight",)
    yield "encoder.embedding.weight", ("model.local_encoder.embed_tokens.weight",)
    yield "encoder.patch_projection.weight", ("model.local_encoder.patch_embedding_projection.weight",)
    yield "decoder.patch_projection.weight", ("model.local_decoder.patch_embedding_projection.weight",)
    yield "decoder.norm.weight", ("model.local_decoder.norm.weight",)
    yield "decoder.head.weight", ("lm_head.weight",)
    if settings.queries * settings.encoder.width != settings.global_.width:
        yield "global_.input_projection.weight", ("model.global_transformer.token_embedding_projection.weight",)
    stacks = (
        ("encoder", "local_encoder", settings.encoder),
        ("global_", "global_transformer", settings.global_),
        ("decoder", "local_decoder", settings.decoder),
    )
    for ours, theirs, stack in stacks:
        yield from _block_names(ours, f"model.{theirs}", stack.layers)
    crosses = (
        ("encoder", "local_encoder", settings.encoder.layers if settings.encoder_cross_all_layers else 1),
        ("decoder", "local_decoder", settings.decoder.layers if settings.decoder_cross_all_layers else 1),
    )
    for ours, theirs, count in crosses:
        for layer in range(count):
            here, there = f"{ours}.cross.{layer}", f"model.{theirs}.cross_attn_layers.{layer}"
            yield f"{here}.query_norm.weight", (f"{there}.q_norm.weight",)
            yield f"{here}.key_value_norm.weight", (f"{there}.k_norm.weight",)
            yield f"{here}.query.weight", (f"{there}.q_proj.weight",)
            yield f"{here}.key_value.weight", (f"{there}.k_proj.weight", f"{there}.v_proj.weight")
            yield f"{here}.output.weight", (f"{there}.o_proj.weight",)


def _patcher_names(settings: EntropyModelSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "embedding.weight", ("model.patcher.embed_tokens.weight",)
    yield "norm.weight", ("model.patcher.norm.weight",)
    yield "head.weight", ("model.patcher.lm_head.weight",)
    yield from _block_names("", "model.patcher", settings.layers)


def _block_names(ours: str, theirs: str, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for layer in range(layers):
        here, there = f"{ours}.blocks.{layer}".lstrip("."), f"{theirs}.layers.{layer}"
        yield f"{here}.attention_norm.weight", (f"{there}.input_layernorm.weight",)
        yield f"{here}.qkv.weight", tuple(f"{there}.self_attn.{x}_proj.weight" for x in "qkv")
        yield f"{here}.attention_output.weight", (f"{there}.self_attn.o_proj.weight",)
        yield f"{here}.feed_forward_norm.weight", (f"{there}.post_attention_layernorm.weight",)
        yield f"{here}.gate_up.weight", tuple(f"{there}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        yield f"{here}.down.weight", (f"{there}.mlp.down_proj.weight",)


def _parts(settings: BltSettings) -> dict[str, list[int]]:
    """Rows of each of their tensors in our fused ones, by the beginning of our names."""
    stacks = {"encoder": settings.encoder, "global_": settings.global_, "decoder": settings.decoder}
    cross = {f"{name}.cross": _qkv_rows(stacks[name])[1:] for name in ("encoder", "decoder")}
    return cross | {f"{name}.blocks": _qkv_rows(stack) for name, stack in stacks.items()}


def _patcher_parts(settings: EntropyModelSettings) -> dict[str, list[int]]:
    return {"blocks": _qkv_rows(settings)}


def _qkv_rows(stack: StackSettings) -> list[int]:
    return [stack.width] + [stack.key_value_heads * stack.head_width] * 2


def _rows(name: str, count: int, height: int, parts: Mapping[str, list[int]]) -> list[int]:
    if name.endswith((".qkv.weight", ".key_value.weight")):
        return next(rows for start, rows in parts.items() if name.startswith(start + "."))
    return [height // count] * count


def _split(
    out: State, state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], parts: Mapping[str, list[int]]
) -> None:
    for ours, theirs in names.items():
        if ours not in state:
            raise InteropError(f"tensor {ours} is missing")
        tensor = state[ours]
        rows = _rows(ours, len(theirs), tensor.shape[0], parts)
        out.update(zip(theirs, (piece.contiguous() for piece in tensor.split(rows))))
    if extra := sorted(set(state) - set(names)):
        raise InteropError(f"tensor {extra[0]} has no counterpart")


def _join(state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], parts: Mapping[str, list[int]]) -> State:
    out: State = {}
    for ours, theirs in names.items():
        for name in theirs:
            if name not in state:
                raise InteropError(f"tensor {name} is missing")
        pieces = [state[name] for name in theirs]
        rows = _rows(ours, len(theirs), sum(piece.shape[0] for piece in pieces), parts)
        for name, piece, wanted in zip(theirs, pieces, rows):
            if piece.shape[0] != wanted:
                raise InteropError(f"tensor {name} has {piece.shape[0]} rows, the settings want {wanted}")
        out[ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return out
