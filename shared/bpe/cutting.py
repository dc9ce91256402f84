"""Which tokenizers end a token at each end of a line, so that a long text can be encoded part by part.

The place is behind a newline that stands between printing ASCII characters. Two things make it a token's end.

The pattern that splits words ends one there, whatever comes before and after, and begins anew. Of the patterns here
none has an alternative that matches a newline and what prints behind it, none looks back, and the one that looks ahead,
`\\s+(?!\\S)`, is followed by `\\s+`, which matches a single newline all the same.

Or no token of several bytes has a newline, as in vocabularies of SentencePiece: merges never cross one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
PATTERNS = frozenset(
    {
        rf"{_WORDS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
        rf"(?i:{_WORDS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}|{_SPACES}",
        rf"(?i:{_WORDS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}|{_SPACES}",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        rf"|\s*[\r\n]+|{_SPACES}",
    }
)
"""Of GPT-2, which the step ByteLevel has of its own (OLMo 1, SmolLM behind digits); of Llama 3 and OLMo 2 and 3; of
Qwen 2 and 3; of Qwen 3.5."""


def steps_of(content: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer in order, those of a Sequence (under ``key``) one by one."""
    if content is None:
        return
    if content.get("type") == "Sequence":
        for step in content.get(key) or ():
            yield from steps_of(step, key)
    else:
        yield content


def ends_at_lines(content: Mapping[str, Any], tokens: Sequence[bytes | None]) -> bool:
    """Whether what tokenizer.json holds does so; ``tokens`` are the bytes of its ids. False where it is not known."""
    model, added = content["model"], content.get("added_tokens", ())
    if any("\n" in token["content"] for token in added if not token["special"]):
        return False  # found before words are split
    steps = list(steps_of(content.get("pre_tokenizer"), "pretokenizers"))
    if model.get("byte_fallback"):
        # A whole text that is a token is one without merges, if merges are ignored then.
        crossed = any(b"\n" in token and len(token) > 1 for token in tokens if token is not None)
        return not crossed and not model.get("ignore_merges") and all(step.get("type") == "Metaspace" for step in steps)
    # Digits are split off by themselves alone, so that what is left is cut as ever.
    words = next((step for step in steps if step.get("type") != "Digits"), {})
    if words.get("type") == "ByteLevel":
        return bool(words.get("use_regex", True))
    if words.get("type") != "Split" or words.get("behavior") != "Isolated" or words.get("invert"):
        return False
    return words["pattern"].get("Regex") in PATTERNS
