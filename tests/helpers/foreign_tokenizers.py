"""Small tokenizers in the shapes of other models' families, as their tokenizer.json has them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, trainers

from shared.bpe.vocabulary import byte_symbols

TEXTS = [
    "",
    " ",
    "It's the tokens' text; DON'T you'll see 12345 of 1,000.5 tokens.",
    "  leading spaces\n\n\n  and lines\r\n\twith tabs  \n",
    "def add(a, b):\n    return a + b;\n\n\nprint(add(1, 23))\n// x\n/* y */\n",
    "Die größeren Straßen von Zürich sind schön, sagt er.",
    "C'est l'été à Besançon, où l'on mange des œufs.",
    "Быстрая бурая лиса перепрыгивает через ленивую собаку.",
    "大きさはどのくらいですか。天地玄黃，宇宙洪荒。",
    "هذا نص بسيط باللغة العربية. ₹१२३ शब्द",
    "family 👩‍👩‍👧 flags 🇨🇭 and ½ of ①",
]
LEARNED = [*TEXTS, "the tokens ; ;\n};\n};\n    return\n    return\n\n\n\n", "x;\n// y;\n// z;\n// x"] * 3
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = QWEN2.replace(r"+[\r\n]*", r"+[\r\n/]*")
"""A part of what Mistral's newer tokenizers have: an end of a line may be followed by slashes in one word."""


def byte_level(use_regex: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [first, byte_level(False)]}


def metaspace(split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": split}


DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PRE_TOKENIZERS = {
    "gpt2": byte_level(),
    "gpt2-split": split(GPT2),
    "smollm": DIGITS,
    "llama3": split(LLAMA3),
    "olmo2": split(LLAMA3, "Removed", True),
    "qwen2": split(QWEN2),
    "qwen3.5": split(QWEN35),
    "tekken": split(TEKKEN),
    "llama2": None,
    "mistral": metaspace(False),
    "mistral-split": metaspace(True),
}
BY_CHARACTERS = ("llama2", "mistral", "mistral-split")
FAMILIES = tuple(PRE_TOKENIZERS)


def added(number: int, content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content} | marks | {"special": special} | flags


def foreign_tokenizer(family: str) -> dict[str, Any]:
    """The content of tokenizer.json: some merges, special ids at the family's end, and <tool>, which is text."""
    found = _by_characters(family) if family in BY_CHARACTERS else _by_bytes(family)
    after = len(found["model"]["vocab"])
    tokens = [(name, name != "<tool>") for name in ("<|end|>", "<tool>", "<|pad|>")]
    found["added_tokens"] += [added(after + place, name, special) for place, (name, special) in enumerate(tokens)]
    return found


def write_foreign(folder: Path, content: dict[str, Any]) -> Path:
    """A model's folder with nothing but its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def _by_bytes(family: str) -> dict[str, Any]:
    pre_tokenizer = PRE_TOKENIZERS[family]
    model = _learned(pre_tokenizer, byte_symbols(), 420)
    normalizer = {"type": "NFC"} if family.startswith("qwen") else None
    return _file(normalizer, pre_tokenizer, model | {"ignore_merges": family == "llama3"})


def _by_characters(family: str) -> dict[str, Any]:
    """As SentencePiece orders ids: special ones, bytes, merges; newlines and rare characters are bytes."""
    learned = _learned(metaspace(True), [], 300, limit=60)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: number for number, name in enumerate([*names, *learned["vocab"]])}
    model = learned | {"vocab": vocabulary, "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    normalizer = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]} if family == "llama2" else None
    found = _file(normalizer, PRE_TOKENIZERS[family], model)
    found["added_tokens"] = [added(number, name) for number, name in enumerate(names[:3])]
    return found


def _file(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None, model: dict[str, Any]) -> Any:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(),
        "decoder": None,
        "model": model,
    }


def _learned(pre_tokenizer: dict[str, Any] | None, alphabet: list[str], size: int, limit: int = 1000) -> dict[str, Any]:
    """The library's model with vocabulary and merges of the texts."""
    tokenizer = Tokenizer.from_str(
        json.dumps(_file(None, pre_tokenizer, json.loads(Tokenizer(models.BPE()).to_str())["model"]))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, limit_alphabet=limit, min_frequency=2, show_progress=False
    )
    texts = LEARNED if alphabet else [line.strip() for text in LEARNED for line in text.splitlines()]
    tokenizer.train_from_iterator(texts, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return found | {"vocab": dict(sorted(found["vocab"].items(), key=lambda item: item[1]))}
