"""Writing a model folder as one that transformers loads: weights tensor by tensor, configuration, tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared.files import whole_folder, write_atomic
from shared.interop.described import Record
from shared.interop.hf_config import check_rule, generation_config, hf_config
from shared.interop.names import HF, parts
from shared.interop.tokenizer import tokenizer_config, tokenizer_json
from shared.interop.transfer import Contents, both, split
from shared.model_identity import CONFIG_FILE, PATCHER_FOLDER
from shared.tensor_files import TensorFolder, write_sharded


def write_hf_folder(
    folder: Path,
    out: Path,
    record: Record,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 5_000_000_000,
    watch: Callable[[Contents], Contents] = lambda contents: contents,
) -> None:
    """Write the model in a folder, and the entropy model in its patcher/, for `AutoModelForCausalLM`.

    Args:
        out: where nothing is yet; it appears when it is complete.
        record: what the folder holds, and the rule by which transformers is to find patches.
        dtype: of the model's weights; the entropy model's stay fp32, so that its decisions do not move.
        watch: wraps what will be written, for instance to show how far it is.

    A model with named special ids finds no patches there by itself, since transformers' entropy model has no rows for
    these ids: patch lengths are given to it, and the entropy model lies beside it as ours, in patcher/.

    Raises InteropError with the reason for what transformers cannot hold.
    """
    check_rule(record.patching)
    specials = record.model.specials
    inside, theta = (None, None) if specials else (record.patcher, record.patching.theta)
    config = hf_config(record.model, inside, theta, record)
    contents = split(TensorFolder(folder), parts(record.model, HF), dtype)
    if not specials:
        patcher = split(TensorFolder(folder / PATCHER_FOLDER), parts(record.patcher, HF), torch.float32)
        contents = both(contents, patcher)
    plan, produce = watch(contents)
    with whole_folder(out) as made:
        if specials:
            shutil.copytree(folder / PATCHER_FOLDER, made / PATCHER_FOLDER)
        write_sharded(made, plan, produce, shard_bytes, {"format": "pt"})
        for name, content in (
            (CONFIG_FILE, config),
            ("generation_config.json", generation_config()),
            ("tokenizer.json", tokenizer_json(specials)),
            ("tokenizer_config.json", tokenizer_config()),
        ):
            _write_json(made / name, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
