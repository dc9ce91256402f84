"""A byte tokenizer in the files that `AutoTokenizer` reads: byte b has id b + 4, and each text begins with <s>."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from shared.vocabulary import BOE, BOS, EOS, OFFSET, RESERVED, VOCABULARY_SIZE

SPECIAL = {"<boe>": BOE, "<s>": BOS, "</s>": EOS, "<pad>": RESERVED}


def tokenizer_json(specials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of tokenizer.json: bytes as symbols that are never merged, and <|name|> for each named special id."""
    named = {f"<|{name}|>": VOCABULARY_SIZE + number for number, name in enumerate(specials)}
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    symbols = byte_symbols()
    bos, sequence = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    bytes_as_symbols = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name} | marks for name, number in (SPECIAL | named).items()],
        "normalizer": None,
        "pre_tokenizer": bytes_as_symbols,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence],
            "pair": [bos, sequence, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
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


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: itself if it prints, else one past 255."""
    symbols, spare = [], 256
    for byte in range(256):
        printable = unicodedata.category(chr(byte))[0] not in "CZ"
        symbols.append(chr(byte if printable else spare))
        spare += not printable
    return symbols
