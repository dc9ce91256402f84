"""The model card of an exported folder: README.md as the Hugging Face hub reads it, a head in YAML and a page below."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from shared.interop.described import Record
from shared.interop.transfer import Contents
from shared.model_settings import CountsSettings, EntropyModelSettings, specials_of
from shared.text.chat import ANSWERING, END

CARD_FILE = "README.md"
KINDS = {
    "blt": ("byte latent transformer", "2412.09871"),
    "entropy": ("transformer over bytes, whose entropy says where patches begin", "2412.09871"),
    "flat": ("transformer", None),
    "hnet": ("H-Net of one stage", "2507.07955"),
    "megabyte": ("MegaByte", "2305.07185"),
    "spacebyte": ("SpaceByte", "2404.14408"),
}
"""What each kind is called, and the paper that it comes from (arXiv)."""


@dataclass(frozen=True)
class CardFigures:
    """What a model folder knows of how its model was made; None and nothing for what it does not say."""

    bits_per_byte: float | None = None
    """On the validation split, when training ended."""
    mean_patch_size: float | None = None
    """Bytes a patch in the training split."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the datasets, by split."""
    license: str | None = None
    """Of the weights, as the hub names licences; nothing in a model folder says it."""


NOTHING_KNOWN = CardFigures()


@dataclass(frozen=True)
class Module:
    """The code that opens the folder."""

    file: str
    opens: str
    """The class in it."""
    size: int
    """Bytes."""
    sha256: str
    plain: str | None
    """The class of transformers that opens the folder without it; None where there is none."""


def model_card(record: Record, figures: CardFigures, module: Module, parameters: int, dtype: str) -> str:
    """The whole text. ``parameters``: of the model without its entropy model; ``dtype``: of its weights."""
    name, paper = KINDS[record.model.kind]
    about = f"A {name}" if paper is None else f"A {name} ([arXiv {paper}](https://arxiv.org/abs/{paper}))"
    table = [
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(record, figures, parameters, dtype)),
    ]
    return "\n".join(
        [
            *("---", *_head(record, figures), "---", ""),
            *(f"# {name[0].upper()}{name[1:]}", ""),
            *(f"{about} that was trained with Patchwork and exported for `transformers`.", ""),
            *(*table, ""),
            *("## Load it", "", *_loading(record), ""),
            *("## What `trust_remote_code=True` runs", "", *_trusted(module), ""),
        ]
    )


def parameters_of(contents: Contents) -> int:
    """How many numbers there are in the tensors of a plan."""
    return sum(prod(shape) for _, shape, _ in contents[0])


def _head(record: Record, figures: CardFigures) -> Iterator[str]:
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if figures.license is not None:
        yield f"license: {json.dumps(figures.license)}"  # quoted: YAML takes no for a truth value
    yield "tags:"
    reads = "byte-level" if record.patching.tokenizer is None else "byte-pair"
    for tag in ("patchwork", record.model.kind, reads, *(["conversational"] * _chats(record)), "custom_code"):
        yield f"- {tag}"


def _chats(record: Record) -> bool:
    return {ANSWERING, END} <= set(specials_of(record.model))


def _facts(record: Record, figures: CardFigures, parameters: int, dtype: str) -> Iterator[tuple[str, str]]:
    """Rows of the table."""
    patching, inner = record.patching, record.entropy_model
    yield "parameters", f"{parameters:,}, in {dtype}" + ("" if inner is None else ", and an entropy model")
    shapes = (f"{stack.part} {stack.settings.layers} x {stack.settings.width}" for stack in record.model.stacks)
    yield "blocks x width", ", ".join(shapes)
    if patching.tokenizer is not None:
        yield "reads", f"tokens of a byte-pair tokenizer with {patching.tokenizer.vocabulary:,} ids"
    else:
        yield "reads", "bytes (byte b is id b + 4)"
    if specials := specials_of(record.model):
        yield "special ids", ", ".join(f"`<|{name}|>`" for name in specials)
    if patching.patched and patching.tokenizer is None:
        yield "patches", ", ".join(_rule(record))
    if figures.mean_patch_size is not None:
        yield "mean patch", f"{figures.mean_patch_size:.2f} bytes in the training data"
    if isinstance(inner, CountsSettings):
        yield "entropy model", f"counts of what follows contexts of up to {inner.order} bytes"
    elif isinstance(inner, EntropyModelSettings):
        yield "entropy model", f"transformer of {inner.layers} x {inner.width}, window {inner.window}"
    if figures.bits_per_byte is not None:
        yield "validation", f"{figures.bits_per_byte:.4f} bits per byte"
    yield from _data(figures.data)
    yield "licence", figures.license or "not stated"


def _rule(record: Record) -> Iterator[str]:
    patching = record.patching
    yield f"rule `{patching.rule}`"
    if patching.theta is not None:
        yield f"theta {patching.theta!r} nats"
    if patching.stride is not None:
        yield f"stride {patching.stride} bytes"
    if patching.min_length > 1:
        yield f"at least {patching.min_length} bytes"
    yield f"at most {patching.max_length:,} bytes"
    if patching.whole_characters:
        yield "whole characters"


def _data(fingerprints: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for split, fingerprint in sorted(fingerprints.items()):
        yield f"data `{split}`", f"fingerprint `{fingerprint}`"


def _loading(record: Record) -> Iterable[str]:
    prompt = 'tokenizer("Once upon a time", return_tensors="pt")'
    if _chats(record):
        messages = '[{"role": "user", "content": "Once upon a time"}]'
        options = 'add_generation_prompt=True, return_tensors="pt", return_dict=True'
        prompt = f"tokenizer.apply_chat_template({messages}, {options})"
    return (
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'folder = "."  # this folder, or the name of this repository',
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        f"prompt = {prompt}",
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0], skip_special_tokens=True))",
        "```",
    )


def _trusted(module: Module) -> Iterable[str]:
    without = "the folder does not open"
    if module.plain is not None:
        without = f"`transformers` takes its own `{module.plain}`, which is slower, and right for one text at a time"
    return (
        f"`{module.file}` ({module.size:,} bytes), whose class `{module.opens}` is the model, and nothing else of this "
        "folder. It needs torch, numpy and transformers. "
        f"Read it first, as any code of others. Without that option {without}.",
        "",
        "```text",
        f"sha256 {module.sha256}",
        "```",
    )
