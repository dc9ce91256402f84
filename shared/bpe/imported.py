"""The tokenizer of another model as a folder's tokenizer.json: its tokens and ids, and nothing that changes a text.

Two kinds are taken: byte-level BPE (GPT-2, Llama 3, Qwen, OLMo, SmolLM) and BPE over characters with bytes for those
that are no tokens, as SentencePiece makes it (Llama 2, Mistral). Patches are a text's own bytes, so what the other
tokenizer does to a text before it cuts it, and puts around it, is left out, and said.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.bpe.cutting import steps_of
from shared.bpe.encoder import SubwordEncoder, import_tokenizers
from shared.bpe.folder import MADE_BY_FILE, MOST_BYTES, TOKENIZER_FILE, TokenizerMaking
from shared.bpe.vocabulary import SPACE_MARK
from shared.errors import DatasetError
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import in_short
from shared.io.files.json_reader import parse_json, read_bounded
from shared.io.files.scratch import scratch
from shared.model_settings import MOST_IDS
from shared.settings import refused_as

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
"""The normalizer that has marks for spaces; the tokens' bytes have spaces again."""
SPACES = [{"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}, {"type": "ByteFallback"}]
SHOWN = 64
"""Characters of a token that an error shows."""
Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


class _Foreign(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Step(_Foreign):
    """A normalizer or pre-tokenizer, with what is asked of several kinds of them."""

    type: str
    behavior: str | None = None
    invert: bool = False
    add_prefix_space: bool = True
    use_regex: bool = True
    split: bool = True
    replacement: str | None = None
    prepend_scheme: str | None = None


class _Model(_Foreign):
    type: str
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


class _Added(_Foreign):
    id: Id
    content: str
    special: bool
    normalized: bool
    single_word: bool
    lstrip: bool
    rstrip: bool


class _File(_Foreign):
    model: _Model
    added_tokens: list[_Added] = Field(default=[], max_length=MOST_IDS)
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


@dataclass(frozen=True)
class ImportedTokenizer:
    """What was made of another tokenizer."""

    content: dict[str, Any]
    """Of tokenizer.json. Added tokens that are special are never found in a text."""
    left_out: tuple[str, ...]
    """What the other one does to a text and this one does not, in words."""


def imported_tokenizer(source: Mapping[str, Any]) -> ImportedTokenizer:
    """The tokenizer that a model's tokenizer.json holds, without what changes texts.

    Raises ValueError with the reason when its tokens cannot be a text's own bytes, ValidationError naming the key when
    it is no such file.
    """
    file = _File.model_validate(source)
    if reason := _reason_against(file.model):
        raise ValueError(reason)
    by_characters = file.model.byte_fallback
    left_out: list[str] = []
    normalizers = list(_normalizers(file.normalizer, by_characters, left_out))
    pre_tokenizers = list(_pre_tokenizers(file.pre_tokenizer, by_characters, left_out))
    if not by_characters and [step["type"] for step in pre_tokenizers].count("ByteLevel") != 1:
        raise ValueError("it is not byte-level: its pre-tokenizer has no step ByteLevel, its model no byte_fallback")
    if by_characters and not normalizers and not pre_tokenizers:
        raise ValueError("it has byte_fallback, but neither a normalizer nor a pre-tokenizer that marks spaces")
    added = [_added(token, by_characters) for token in file.added_tokens]
    unlike = [repr(token.content) for token, made in zip(file.added_tokens, added) if made["special"] > token.special]
    if unlike:
        left_out.append(f"added tokens that take more of a text than their own: {in_short(unlike, ', ')}")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizers[0] if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*SPACES, {"type": "Fuse"}]} if by_characters else BYTE_LEVEL,
        "model": dict(source["model"]),
    }
    return ImportedTokenizer(content, tuple(left_out))


def _reason_against(model: _Model) -> str | None:
    if model.type != "BPE":
        return f"its model is {model.type}, only BPE can be taken over"
    if model.dropout:
        return f"its model has dropout {model.dropout}: the same text would have other tokens each time"
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, key):
            return f"its model has a {key}, {getattr(model, key)!r}, so its tokens are not the bytes of the text"
    return None


def _normalizers(content: dict[str, Any] | None, by_characters: bool, left_out: list[str]) -> Iterator[dict[str, Any]]:
    for values in steps_of(content, "normalizers"):
        step = _Step.model_validate(values)
        if step.type == "NFC":
            left_out.append("normalizer NFC: text in another form than NFC keeps its bytes")
        elif step.type == "Prepend" and by_characters:
            left_out.append("normalizer Prepend: no space before a text")
        elif by_characters and values == MARKS:
            yield MARKS
        else:
            raise ValueError(f"its normalizer {step.type} changes texts: tokens would not be their bytes")


def _pre_tokenizers(
    content: Mapping[str, Any] | None, by_characters: bool, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    for values in steps_of(content, "pretokenizers"):
        step = _Step.model_validate(values)
        if by_characters and step.type == "Metaspace" and step.replacement == SPACE_MARK:
            if step.prepend_scheme != "never" and step.add_prefix_space:
                left_out.append("pre-tokenizer Metaspace: no space before a text")
            yield {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": step.split}
        elif not by_characters and step.type == "ByteLevel":
            if step.add_prefix_space:
                left_out.append("pre-tokenizer ByteLevel: no space before a text")
            yield BYTE_LEVEL | {"use_regex": step.use_regex}
        elif not by_characters and step.type == "Digits":
            yield dict(values)
        elif not by_characters and step.type == "Split" and (step.behavior != "Removed" or step.invert):
            # What is between words, which patterns leave nothing of, would be removed: it stays, as words of its own.
            kept = {"behavior": "Isolated", "invert": False} if step.behavior == "Removed" else {}
            yield dict(values) | kept
        else:
            raise ValueError(f"its pre-tokenizer {step.type} is not one of those whose words are a text's own bytes")


def _added(token: _Added, by_characters: bool) -> dict[str, Any]:
    """A token that is found in a text before it is cut; one that takes more of it than its bytes is not looked for."""
    depends = token.lstrip or token.rstrip or token.single_word
    unlike = depends or not token.content or (by_characters and SPACE_MARK in token.content)
    return {
        "id": token.id,
        "content": token.content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": token.normalized,
        "special": token.special or unlike,
    }


# ---- Its folder.


def read_tokenizer(source: Path) -> tuple[Path, bytes]:
    """The tokenizer.json of a model's folder, or the file itself: where it is, and its content. Raises DatasetError."""
    path = source / TOKENIZER_FILE if source.is_dir() else source
    try:
        return path, read_bounded(path, MOST_BYTES)
    except OSError as error:
        why = error.strerror or error
        raise DatasetError(
            f"{path} cannot be read ({why}); give the folder of a model that has a tokenizer.json"
        ) from None


def write_imported(path: Path, source: bytes, out: Path) -> TokenizerMaking:
    """Write the folder of a tokenizer of another model, what made it last; nothing where it cannot be taken over.

    ``source``: the content of its tokenizer.json at ``path``. Raises DatasetError with the reason, TokenizersMissing.
    """
    library = import_tokenizers()
    try:
        values = parse_json(source, finite=False)
        with refused_as(DatasetError, f"{path}: "):
            imported = imported_tokenizer(values)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    content = json.dumps(imported.content, ensure_ascii=False, indent=1) + "\n"
    with scratch("tokenizer") as folder:
        write_atomic(folder / TOKENIZER_FILE, content)
        try:
            encoder = SubwordEncoder(folder)
            _check_added(encoder, imported.content["added_tokens"])
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(folder / TOKENIZER_FILE), str(path))) from None
    with refused_as(DatasetError, f"{path}: "):
        making = TokenizerMaking(
            imported_from=sha256(source).hexdigest(),
            left_out=imported.left_out,
            vocabulary=encoder.subwords.vocabulary,
            longest=int(encoder.subwords.lengths.max()),
            sha256=sha256(content.encode()).hexdigest(),
            library=library.__version__,
        )
    write_atomic(out / TOKENIZER_FILE, content)
    write_atomic(out / MADE_BY_FILE, making.model_dump_json(indent=1) + "\n")
    return making


def _check_added(encoder: SubwordEncoder, added: list[dict[str, Any]]) -> None:
    """Raise DatasetError unless the library gives added tokens the ids that the file says, special ones never in texts.

    It counts these ids itself: where there are gaps, others than are said.
    """
    for token in added:
        number, name = token["id"], token["content"]
        shown = repr(name) if len(name) <= SHOWN else f"{name[:SHOWN]!r}..."
        if (found := encoder.library.token_to_id(name)) != number:
            raise DatasetError(
                f"{encoder.path}: the added token {shown} has the id {number}, the library gives {found}"
            )
        ids = encoder.ids(name.encode()).tolist()
        if not token["special"] and ids != [number]:
            raise DatasetError(f"{encoder.path}: the added token {shown} is not found in its own text")
