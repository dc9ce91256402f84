"""Writing a model folder as one that transformers loads: weights tensor by tensor, configuration, tokenizer."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shared.bpe.folder import MOST_BYTES, TOKENIZER_FILE, copy_tokenizer
from shared.bpe.vocabulary import byte_symbols, load_subwords
from shared.counts.table import KEYS
from shared.errors import DatasetError
from shared.interop.custom_module import auto_map, file_name, module_kind, module_text
from shared.interop.described import Record
from shared.interop.hf_config import check_one_threshold, custom_config, generation_config, hf_config, objection
from shared.interop.names import HF, InteropError, folder_parts, parts
from shared.interop.transfer import Contents, both, split, table_of_counts
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_json
from shared.io.files.outputs import whole_folder
from shared.model_folder.identity import CONFIG_FILE, ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER
from shared.model_folder.tensors import TensorFolder, write_sharded
from shared.model_settings import BltSettings, CountsSettings, specials_of
from shared.vocabulary import BOE, BOS, EOS, OFFSET, RESERVED, VOCABULARY_SIZE

# ---- A tokenizer in the files that `AutoTokenizer` reads: byte b has id b + 4, and each text begins with <s>.


SPECIAL = {"<boe>": BOE, "<s>": BOS, "</s>": EOS, "<pad>": RESERVED}


def tokenizer_json(specials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of tokenizer.json: bytes as symbols that are never merged, and <|name|> for each named special id."""
    named = {f"<|{name}|>": VOCABULARY_SIZE + number for number, name in enumerate(specials)}
    symbols = byte_symbols()
    bytes_as_symbols = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(SPECIAL | named),
        "normalizer": None,
        "pre_tokenizer": bytes_as_symbols,
        "post_processor": _beginning_with_bos(),
        "decoder": bytes_as_symbols,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": SPECIAL | {symbol: byte + OFFSET for byte, symbol in enumerate(symbols)} | named,
            "merges": [],
        },
    }


def subword_tokenizer_json(folder: Path) -> dict[str, Any]:
    """The same with the tokens of the tokenizer in a folder, which knows no special ids itself. Raises DatasetError."""
    path = folder / TOKENIZER_FILE
    load_subwords(folder)  # refused where its file is none of ours
    try:
        content: dict[str, Any] = read_json(path, MOST_BYTES)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    vocabulary = SPECIAL | content["model"]["vocab"]
    return content | {
        "added_tokens": _added(SPECIAL),
        "post_processor": _beginning_with_bos(),
        "model": content["model"] | {"vocab": vocabulary},
    }


def _added(ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Tokens that are no text, by name."""
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": name} | marks for name, number in ids.items()]


def _beginning_with_bos() -> dict[str, Any]:
    """What puts <s> before a text."""
    bos, sequence = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, sequence],
        "pair": [bos, sequence, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    }


def tokenizer_config() -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": {"boe_token": "<boe>"},
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,  # "</s>" in a text is four bytes of it
        "padding_side": "right",  # on the left padding would move patches and positions
        "clean_up_tokenization_spaces": False,
    }


def write_hf_folder(
    folder: Path,
    out: Path,
    record: Record,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 5_000_000_000,
    watch: Callable[[Contents], Contents] = lambda contents: contents,
) -> None:
    """Write the model in a folder, and the entropy model in its entropy_model/, for `AutoModelForCausalLM`.

    The tokenizer of a model that reads tokens, in its tokenizer/, becomes one for `AutoTokenizer`, and lies beside it.

    Args:
        out: where nothing is yet; it appears when it is complete.
        record: what the folder holds, and the rule by which transformers is to find patches.
        dtype: of the model's weights; the entropy model's stay fp32, so that its decisions do not move.
        watch: wraps what will be written, for instance to show how far it is.

    Beside the weights lies a module whose class generates with what it keeps of the text, where trust_remote_code says
    that it may be run; without that transformers takes its own class.

    A model with named special ids finds no patches there by itself, since transformers' entropy model has no rows for
    these ids: patch lengths are given to it, and the entropy model lies beside it as ours, in entropy_model/.

    What transformers' own class cannot be (`hf_config.objection`) opens as the folder's own class alone.

    Raises InteropError where thresholds differ by subset, or for special ids with what transformers cannot hold;
    DatasetError or IdentityError where the tokenizer is not the recorded one.
    """
    specials, entropy_model = specials_of(record.model), record.entropy_model
    reason = objection(record)
    if specials and reason is not None:
        raise InteropError(
            f"a model with special ids opens as transformers' own class alone, which cannot be: {reason}"
        )
    check_one_threshold(record.patching)
    contents = split(TensorFolder(folder), folder_parts(record.model), dtype)
    slots = 0
    if isinstance(entropy_model, CountsSettings):
        table = TensorFolder(folder / ENTROPY_MODEL_FOLDER)
        slots = table.shape(KEYS)[0]
        contents = both(contents, table_of_counts(table))
    elif entropy_model is not None and not specials:
        within = TensorFolder(folder / ENTROPY_MODEL_FOLDER)
        contents = both(contents, split(within, parts(entropy_model, HF), torch.float32))
    if reason is None:
        assert isinstance(record.model, BltSettings), "transformers has no other"
        assert not isinstance(entropy_model, CountsSettings), "nor of entropy models"
        inside, theta = (None, None) if specials else (entropy_model, record.patching.theta)
        config = hf_config(record.model, inside, theta, record)
    else:
        config = custom_config(record, slots)
    tokenizer, recorded = tokenizer_json(specials), record.patching.tokenizer
    if recorded is not None:
        tokenizer = subword_tokenizer_json(folder / TOKENIZER_FOLDER)
    plan, produce = watch(contents)
    with whole_folder(out) as made:
        if recorded is not None:
            copy_tokenizer(folder / TOKENIZER_FOLDER, made / TOKENIZER_FOLDER, recorded)
        if specials:
            shutil.copytree(folder / ENTROPY_MODEL_FOLDER, made / ENTROPY_MODEL_FOLDER)
        else:
            kind = module_kind(record.model)
            config["auto_map"] = auto_map(kind)
            write_atomic(made / file_name(kind), module_text(kind, config["model_type"]))
        write_sharded(made, plan, produce, shard_bytes, {"format": "pt"})
        for name, content in (
            (CONFIG_FILE, config),
            ("generation_config.json", generation_config(use_cache=reason is not None)),
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", tokenizer_config()),
        ):
            _write_json(made / name, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
