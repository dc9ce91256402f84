"""Random token models of several families, in folders as transformers writes them."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

WIDTH, LAYERS, HEADS = 64, 3, 4


def save_teacher(
    folder: Path, config_class: type[PreTrainedConfig], shard_size: str = "1GB", **changes: Any
) -> PreTrainedModel:
    """A random token model, large weights so that every part matters, in a folder as transformers writes it."""
    torch.manual_seed(0)
    config = config_class(
        **{
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "intermediate_size": 80,
            "vocab_size": 50,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.15,
            **changes,
        }
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def save_llama(folder: Path, shard_size: str = "1GB", **changes: Any) -> PreTrainedModel:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}}
    return save_teacher(folder, LlamaConfig, shard_size, **rope | changes)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 500.0}
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
OLMO = {"norm": "after", "qk_norm": "width"}
TEACHERS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], dict[str, Any]]] = {
    "llama 2": (LlamaConfig, {"num_key_value_heads": 4}, {"rope_theta": 10_000.0}),
    "llama 3": (
        LlamaConfig,
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "max_position_embeddings": 256},
        {
            "rope_theta": 500.0,
            "rope_scaling": {"kind": "llama3", "factor": 8.0, "trained_length": 32, "low": 1.0, "high": 4.0},
        },
    ),
    "llama with biases": (
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
        {"biases": ("qkv", "attention_output", "gate_up", "down")},
    ),
    "linear": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
        {"rope_scaling": {"kind": "linear", "factor": 3.0}},
    ),
    "yarn, all keys": (
        LlamaConfig,
        {
            "rope_parameters": YARN
            | {"beta_fast": 8.0, "beta_slow": 0.5, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False}
        },
        {"rope_scaling": {"low": 0.5, "high": 8.0, "rounded": False, "trained_length": 24}},
    ),
    "yarn, given strength": (
        LlamaConfig,
        {"rope_parameters": YARN | {"attention_factor": 1.5}, "head_dim": 32},
        {"rope_scaling": {"strength": 1.5, "low": 1.0, "high": 32.0, "rounded": True}, "head_dim": 32},
    ),
    "smollm 2": (LlamaConfig, {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}, {}),
    "mistral with a window": (MistralConfig, {"sliding_window": 5}, {"windows": (5,)}),
    "mistral with wide heads": (MistralConfig, {"sliding_window": None, "head_dim": 32}, {"head_dim": 32}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}, {"biases": ("qkv",)}),
    "qwen2 with windows": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
        {"biases": ("qkv",), "windows": (0, 0, 0, 7)},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 24}, {"head_dim": 24, "qk_norm": "head"}),
    "qwen3 with biases": (
        Qwen3Config,
        {"head_dim": 16, "attention_bias": True},
        {"qk_norm": "head", "biases": ("qkv", "attention_output")},
    ),
    "olmo2": (Olmo2Config, {}, OLMO),
    "olmo2 with biases": (Olmo2Config, {"attention_bias": True}, OLMO | {"biases": ("qkv", "attention_output")}),
    "olmo3": (
        Olmo3Config,
        {"sliding_window": 6, "rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}},
        OLMO
        | {
            "windows": (6, 6, 6, 0),
            "rope_scaling": {"kind": "yarn", "factor": 4.0, "strength": 0.1 * math.log(4) + 1, "windowed": False},
        },
    ),
    "olmo3, layers of its own": (
        Olmo3Config,
        {
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": YARN},
        },
        OLMO | {"windows": (6, 0), "rope_theta": 500.0, "rope_scaling": {"windowed": True}},
    ),
    "olmo3, defaults": (Olmo3Config, {"sliding_window": 6}, OLMO | {"windows": (6, 6, 6, 0), "rope_theta": 500_000.0}),
    "smollm3": (SmolLM3Config, {}, {"rotated": (True, True, True, False), "rope_theta": 2e6}),
    "smollm3 with windows": (
        SmolLM3Config,
        {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": 6},
        {"rotated": (True, False), "windows": (0, 6)},
    ),
}


def saved_teacher(folder: Path, name: str, **ids: Any) -> PreTrainedModel:
    config_class, changes, _ = TEACHERS[name]
    return save_teacher(folder, config_class, **{"num_hidden_layers": 4, "num_key_value_heads": 2} | changes | ids)
