"""Writing a model folder as one that transformers loads: weights tensor by tensor, configuration, tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared.bpe.folder import copy_tokenizer
from shared.counts.table import KEYS
from shared.interop.custom_module import auto_map, class_name, file_name, module_kind, module_text
from shared.interop.described import Record
from shared.interop.hf_config import check_one_threshold, custom_config, generation_config, hf_config, objection
from shared.interop.hf_tokenizer import subword_tokenizer_json, tokenizer_config, tokenizer_json
from shared.interop.model_card import CARD_FILE, NOTHING_KNOWN, CardFigures, Module, model_card, parameters_of
from shared.interop.names import HF, folder_parts, parts
from shared.interop.transfer import Contents, both, split, table_of_counts
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import file_sha256
from shared.io.files.outputs import whole_folder
from shared.model_folder.identity import CONFIG_FILE, ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER
from shared.model_folder.tensors import TensorFolder, write_sharded
from shared.model_settings import BltSettings, CountsSettings, EntropyModelSettings, specials_of


def write_hf_folder(
    folder: Path,
    out: Path,
    record: Record,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 5_000_000_000,
    watch: Callable[[Contents], Contents] = lambda contents: contents,
    figures: CardFigures = NOTHING_KNOWN,
) -> None:
    """Write the model in a folder, and the entropy model in its entropy_model/, for `AutoModelForCausalLM`.

    The tokenizer of a model that reads tokens, in its tokenizer/, becomes one for `AutoTokenizer`, and lies beside it.

    Args:
        out: where nothing is yet; it appears when it is complete.
        record: what the folder holds, and the rule by which transformers is to find patches.
        dtype: of the model's weights; the entropy model's stay fp32, so that its decisions do not move.
        watch: wraps what will be written, for instance to show how far it is.
        figures: what the model card says of how the model was made.

    Beside the weights lies a module whose class generates with what it keeps of the text, where trust_remote_code says
    that it may be run; without that transformers takes its own class.

    What transformers' own class cannot be (`hf_config.objection`) opens as the folder's own class alone.

    Raises InteropError where thresholds differ by subset; DatasetError or IdentityError where the tokenizer is not the
    recorded one.
    """
    specials, entropy_model = specials_of(record.model), record.entropy_model
    reason = objection(record)
    check_one_threshold(record.patching)
    contents = split(TensorFolder(folder), folder_parts(record.model), dtype)
    parameters = parameters_of(contents)
    slots = 0
    if isinstance(entropy_model, CountsSettings):
        table = TensorFolder(folder / ENTROPY_MODEL_FOLDER)
        slots = table.shape(KEYS)[0]
        contents = both(contents, table_of_counts(table))
    elif entropy_model is not None:
        within = TensorFolder(folder / ENTROPY_MODEL_FOLDER)
        contents = both(contents, split(within, parts(entropy_model, HF), torch.float32))
    if reason is None:
        assert isinstance(record.model, BltSettings), "transformers has no other"
        assert isinstance(entropy_model, EntropyModelSettings), "nor of entropy models"
        config = hf_config(record.model, entropy_model, record.patching.theta, record)
    else:
        config = custom_config(record, slots)
    tokenizer, recorded = tokenizer_json(specials), record.patching.tokenizer
    if recorded is not None:
        tokenizer = subword_tokenizer_json(folder / TOKENIZER_FOLDER)
    plan, produce = watch(contents)
    with whole_folder(out) as made:
        if recorded is not None:
            copy_tokenizer(folder / TOKENIZER_FOLDER, made / TOKENIZER_FOLDER, recorded)
        kind = module_kind(record.model)
        config["auto_map"] = auto_map(kind)
        write_atomic(made / file_name(kind), module_text(kind, config["model_type"]))
        module = Module(
            file=file_name(kind),
            opens=class_name(kind),
            size=(made / file_name(kind)).stat().st_size,
            sha256=file_sha256(made / file_name(kind)),
            plain="BltForCausalLM" if reason is None else None,
        )
        card = model_card(record, figures, module, parameters, str(dtype).removeprefix("torch."))
        write_atomic(made / CARD_FILE, card)
        write_sharded(made, plan, produce, shard_bytes, {"format": "pt"})
        for name, content in (
            (CONFIG_FILE, config),
            ("generation_config.json", generation_config(use_cache=reason is not None, specials=specials)),
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", tokenizer_config(specials)),
        ):
            _write_json(made / name, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
