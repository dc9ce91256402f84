"""Model folders in the layout of the released reference."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from helpers.interop_examples import models
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching import PatchingSettings
from shared.patching.settings import LONGEST_PATCH

THETA = 1.335442066192627
RULE = PatchingSettings(rule="entropy", theta=THETA, max_length=LONGEST_PATCH)
State = dict[str, Tensor]
RENAMED = {
    ".attention_norm.": ".attention_norm.",
    ".attention_output.": ".attention.wo.",
    ".feed_forward_norm.": ".ffn_norm.",
    ".down.": ".feed_forward.w2.",
    "embedding.": "tok_embeddings.",
    ".query_norm.": ".cross_attn_norm_q.",
    ".key_value_norm.": ".cross_attn_norm_kv.",
    ".query.": ".wq.",
    ".output.": ".wo.",
    ".patch_projection.": ".patch_embedding_projection.",
    ".input_projection.": ".token_embedding_projection.",
    "head.": "output.",
    "encoder.blocks.": "local_encoder.layers.",
    "decoder.blocks.": "local_decoder.layers.",
    "global_.blocks.": "global_transformer.layers.",
    "encoder.cross.": "local_encoder.cross_attn_layers.",
    "decoder.cross.": "local_decoder.cross_attn_layers.",
}


def as_reference(state: State, settings: BltSettings | EntropyModelSettings) -> State:
    """A state as the reference has it: projections and n-gram tables apart."""
    out: State = {}
    for name, tensor in state.items():
        pieces = {name: tensor}
        if name == "ngrams.weight":
            assert isinstance(settings, BltSettings)
            tables = tensor.split(settings.ngrams.rows)
            out |= {f"encoder_hash_tok_embedding.{n}.weight": table for n, table in enumerate(tables)}
            continue
        if "qkv" in name:
            stack = getattr(settings, name.split(".")[0]) if isinstance(settings, BltSettings) else settings
            rows = [stack.width, *[stack.key_value_heads * stack.head_width] * 2]
            names = [name.replace(".qkv.", f".attention.w{x}.") for x in "qkv"]
            pieces = dict(zip(names, tensor.split(rows)))
        elif ".key_value." in name:
            pieces = dict(zip((name.replace(".key_value.", f".w{x}.") for x in "kv"), tensor.chunk(2)))
        elif "gate_up" in name:
            pieces = dict(zip((name.replace(".gate_up.", f".feed_forward.w{n}.") for n in (1, 3)), tensor.chunk(2)))
        for piece, rows_of_it in pieces.items():
            for ours, theirs in RENAMED.items():
                piece = piece.replace(ours, theirs)
            for model in ("encoder", "decoder"):
                piece = f"local_{piece}" if piece.startswith(f"{model}.") else piece
            piece = piece.replace("global_.", "global_transformer.")
            out[piece if isinstance(settings, BltSettings) else piece.replace("blocks.", "layers.")] = rows_of_it
    return {name: tensor.contiguous() for name, tensor in out.items()}


def arguments(model: BltSettings) -> dict[str, Any]:
    """The hyper-parameters that shapes do not show, and some that are not needed."""
    return {
        "n_heads_local_encoder": model.encoder.heads,
        "n_heads_global": model.global_.heads,
        "n_heads_local_decoder": model.decoder.heads,
        "rope_theta": model.encoder.rope_theta,
        "norm_eps": model.encoder.norm_eps,
        "local_attention_window_len": model.window,
        "encoder_hash_byte_group_size": list(model.ngrams.sizes),
        "encoder_hash_byte_group_vocab": model.ngrams.rows,
        "encoder_hash_byte_group_nb_functions": model.ngrams.functions,
        "downsampling_by_pooling": "max",
        "cross_attn_nheads": model.encoder.heads,
        "attn_impl": "sdpa",
    }


def uniform(model: BltSettings, small: EntropyModelSettings) -> tuple[BltSettings, EntropyModelSettings]:
    """Settings that the reference can have: one rotary base for all, and its own window for the entropy model."""
    common = {"rope_theta": 500_000.0, "norm_eps": 1e-5}
    stacks = {name: getattr(model, name).model_copy(update=common) for name in ("encoder", "global_", "decoder")}
    return model.model_copy(update=stacks), small.model_copy(
        update={"window": 512, "rope_theta": 10_000.0, "norm_eps": 1e-5}
    )


def reference_folder(
    folder: Path, settings: tuple[BltSettings, EntropyModelSettings], seed: int
) -> tuple[State, State]:
    """Write one as it was released: safetensors for the model, a torch file for the entropy model."""
    model, small = models(settings, seed)
    (folder / "entropy_model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"args": arguments(settings[0])}))
    safetensors.torch.save_file(as_reference(model.state_dict(), settings[0]), folder / "model.safetensors")
    params = {
        "entropy_model": {"n_heads": settings[1].heads, "dim": settings[1].width},
        "data": {"patcher_args": {"threshold": THETA, "threshold_add": None, "monotonicity": False}},
    }
    (folder / "entropy_model" / "params.json").write_text(json.dumps(params))
    state = as_reference(small.state_dict(), settings[1])
    torch.save({"model": state}, folder / "entropy_model" / "consolidated.pth")
    return model.state_dict(), small.state_dict()
