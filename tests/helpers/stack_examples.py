"""Blocks of other families than Llama's: together they have every setting of a stack."""

from typing import Any

OTHER_BLOCKS: dict[str, dict[str, Any]] = {
    "as in OLMo 3": {
        "norm": "after",
        "qk_norm": "width",
        "windows": [3, 0],
        "rope_scaling": {
            "kind": "yarn",
            "factor": 4.0,
            "trained_length": 64,
            "high": 32.0,
            "strength": 1.14,
            "windowed": False,
        },
    },
    "as in Qwen 3": {"head_dim": 20, "kv_heads": 1, "qk_norm": "head"},
    "as in Qwen 2, all biases": {
        "biases": ["qkv", "attention_output", "gate_up", "down"],
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "trained_length": 64},
    },
    "as in SmolLM 3": {"rotated": [True, False], "rope_scaling": {"kind": "linear", "factor": 2.0}},
}
"""What is unlike the defaults of `StackSettings`, for stacks of two layers and two heads."""
