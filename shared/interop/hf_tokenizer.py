"""A tokenizer in the files that `AutoTokenizer` reads: byte b has id b + 4, and each text begins with <s>."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.bpe.folder import MOST_BYTES, TOKENIZER_FILE
from shared.bpe.vocabulary import byte_symbols, load_subwords
from shared.errors import DatasetError
from shared.io.files.json_reader import read_json
from shared.text.chat import ANSWERING, END
from shared.vocabulary import BOE, BOS, EOS, OFFSET, RESERVED, special_id

SPECIAL = {"<boe>": BOE, "<s>": BOS, "</s>": EOS, "<pad>": RESERVED}


MARK = "\ufdd0"
"""No character, and none of any text by its own right: the chat template puts it behind each < of a content, so that
nothing there looks like a special id; the tokenizer takes it away again once it has found these."""


def named_token(name: str) -> str:
    """How a named special id is written in a text that a chat template makes."""
    return f"<|{name}|>"


def tokenizer_json(specials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of tokenizer.json: bytes as symbols that are never merged, and <|name|> for each named special id."""
    named = {named_token(name): special_id(name, specials) for name in specials}
    unmarked = {"type": "Replace", "pattern": {"Regex": f"(?<=<){MARK}"}, "content": ""}
    symbols = byte_symbols()
    bytes_as_symbols = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(SPECIAL | named),
        "normalizer": unmarked if specials else None,
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
    if not load_subwords(folder).trained_here:
        raise DatasetError(f"{path} is not a tokenizer that was trained here")
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


def tokenizer_config(specials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of tokenizer_config.json; with a chat template where special ids are those of chats."""
    found = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": {"boe_token": "<boe>"},
        "add_bos_token": True,
        "add_eos_token": False,
        # "</s>" in a text is four bytes of it; but what a chat template writes is tokenized as a text.
        "split_special_tokens": not specials,
        "padding_side": "right",  # on the left padding would move patches and positions
        "clean_up_tokenization_spaces": False,
    }
    return found | {"chat_template": chat_template(specials)} if {END, ANSWERING} <= set(specials) else found


def chat_template(specials: Sequence[str]) -> str:
    """What `apply_chat_template` fills in: turns as training has them (`shared/text/chat.py`)."""
    roles = ", ".join(f"'{name}'" for name in specials if name != END)
    return (
        "{{ bos_token }}{% for message in messages %}"
        f"{{% if message['role'] not in [{roles}] %}}"
        "{{ raise_exception('no special id for role ' ~ message['role']) }}{% endif %}"
        "{% if message['content'] is not string %}"
        "{{ raise_exception('content must be a string, not a list of parts') }}{% endif %}"
        "{{ '<|' ~ message['role'] ~ '|>' }}"
        f"{{{{ message['content'] | replace('<', '<{MARK}') }}}}{named_token(END)}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{named_token(ANSWERING)}{{% else %}}{{{{ eos_token }}}}{{% endif %}}"
    )
