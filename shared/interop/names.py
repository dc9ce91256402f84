"""Which of our tensors holds which of theirs: names and rows, in the spelling of transformers and of the reference.

What they keep apart is a range of rows in one of ours: query, key and value; gate and up; in the reference's layout the
n-gram tables too. Nothing is permuted: rotary positions turn neighbouring pairs in all three.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from shared.errors import ModelFileError
from shared.layers.blocks import blocks
from shared.model_folder.files import build_model
from shared.model_settings import AnyModelSettings, BltSettings, EntropyModelSettings
from shared.models.initialise import without_values
from shared.stack_settings import StackSettings


class InteropError(ModelFileError):
    """A model has a part that the other side cannot represent, or a folder is not what it should be."""


@dataclass(frozen=True)
class Part:
    """One of their tensors: consecutive rows of one of ours."""

    theirs: str
    ours: str
    start: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.shape[0])


@dataclass(frozen=True)
class Spelling:
    """How one layout names what every BLT has."""

    root: str
    patcher: str
    """What stands before the names of the entropy model."""
    head: str
    patcher_head: str
    ngrams: str
    ngram_tables_apart: bool
    embedding: str
    attention: str
    qkv: tuple[str, str, str]
    output: str
    feed_forward: str
    gate_up: tuple[str, str]
    down: str
    block_norms: tuple[str, str]
    """Before attention, before the feed-forward part."""
    norms_after: tuple[str, str] | None
    """The same where they stand after; None: there are no blocks but those of Llama."""
    qk_norms: tuple[str, str] | None
    """Of queries and keys in self-attention."""
    cross_norms: tuple[str, str]
    """Of the queries, of the keys and values."""


HF = Spelling(
    root="model.",
    patcher="model.patcher.",
    head="lm_head",
    patcher_head="lm_head",
    ngrams="model.encoder_hash_tok_embedding",
    ngram_tables_apart=False,
    embedding="embed_tokens",
    attention="self_attn",
    qkv=("q_proj", "k_proj", "v_proj"),
    output="o_proj",
    feed_forward="mlp",
    gate_up=("gate_proj", "up_proj"),
    down="down_proj",
    block_norms=("input_layernorm", "post_attention_layernorm"),
    norms_after=("post_attention_layernorm", "post_feedforward_layernorm"),
    qk_norms=("q_norm", "k_norm"),
    cross_norms=("q_norm", "k_norm"),
)
REFERENCE = Spelling(
    root="",
    patcher="",
    head="local_decoder.output",
    patcher_head="output",
    ngrams="encoder_hash_tok_embedding",
    ngram_tables_apart=True,
    embedding="tok_embeddings",
    attention="attention",
    qkv=("wq", "wk", "wv"),
    output="wo",
    feed_forward="feed_forward",
    gate_up=("w1", "w3"),
    down="w2",
    block_norms=("attention_norm", "ffn_norm"),
    norms_after=None,
    qk_norms=None,
    cross_norms=("cross_attn_norm_q", "cross_attn_norm_kv"),
)


Name = tuple[str, tuple[str, ...], tuple[int, ...] | None]
"""Ours, theirs, and how many rows each of theirs has (None: equally many)."""


def parts(settings: BltSettings | EntropyModelSettings, spelling: Spelling) -> list[Part]:
    """All of a model's tensors in their spelling; those of one of ours stand together, in the order of its rows.

    Raises InteropError where the spelling has no name for one, or the layout no such blocks.
    """
    if spelling.norms_after is None:
        check_blocks(settings, "the reference")
    with without_values():
        state = build_model(settings).state_dict()
    return _parts(state, _names(settings, spelling))


def check_blocks(settings: BltSettings | EntropyModelSettings, who: str) -> None:
    """Raise InteropError, naming stack and settings, for blocks unlike those of Llama: ``who`` has no others."""
    for stack in settings.stacks:
        if found := stack.settings.unlike_llama:
            part = "entropy model" if isinstance(settings, EntropyModelSettings) else stack.part
            raise InteropError(f"{part} with {', '.join(found)}: {who} has no blocks but those of Llama")


def folder_parts(settings: AnyModelSettings) -> list[Part]:
    """All tensors of a model that a folder of transformers has as its own, whatever kind of model it is.

    Those of a BLT have the names of transformers' own class; others begin with "model.", their blocks are named as
    those of a Llama are, and the rest as here.
    """
    if isinstance(settings, BltSettings):
        return parts(settings, HF)
    with without_values():
        state = build_model(settings).state_dict()
    return _parts(state, _names_of_others(settings, state))


_RENAMED = {"embedding": f"{HF.root}{HF.embedding}", "head": HF.head, "ngrams": f"{HF.root}ngram_embedding"}


def _names_of_others(settings: AnyModelSettings, names: Iterable[str]) -> Iterator[Name]:
    """Of a model that is no BLT, whose tensors have these names."""
    for stack in settings.stacks:
        ours = stack.name.removesuffix("blocks")
        theirs = ours.replace("global_", "global_transformer")
        yield from _blocks(ours, f"{HF.root}{theirs}", stack.settings, HF)
    in_stacks = tuple(f"{stack.name}." for stack in settings.stacks)
    for name in (name.removesuffix(".weight") for name in names if not name.startswith(in_stacks)):
        yield name, (_RENAMED.get(name, f"{HF.root}{name}"),), None


def block_parts(stack: StackSettings, root: str, spelling: Spelling) -> list[Part]:
    """The tensors of the blocks of a stack alone, which lie below ``root`` there."""
    with without_values():
        state = {f"blocks.{name}": tensor for name, tensor in blocks(stack).state_dict().items()}
    return _parts(state, _blocks("", root, stack, spelling))


def _parts(state: Mapping[str, Tensor], names: Iterable[Name]) -> list[Part]:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = []
    for ours, theirs, rows in names:
        for kind in ("weight", "bias") if f"{ours}.bias" in shapes else ("weight",):
            height, *rest = shapes.pop(f"{ours}.{kind}")
            start = 0
            for name, count in zip(theirs, rows or [height // len(theirs)] * len(theirs)):
                found.append(Part(f"{name}.{kind}", f"{ours}.{kind}", start, (count, *rest)))
                start += count
            assert start == height, ours
    if shapes:
        raise InteropError(f"a model of these settings has tensors without a name there: {', '.join(sorted(shapes))}")
    return found


def _names(settings: BltSettings | EntropyModelSettings, spelling: Spelling) -> Iterator[Name]:
    if isinstance(settings, EntropyModelSettings):
        yield "embedding", (f"{spelling.patcher}{spelling.embedding}",), None
        yield from _blocks("", spelling.patcher, settings, spelling)
        yield "norm", (f"{spelling.patcher}norm",), None
        yield "head", (f"{spelling.patcher}{spelling.patcher_head}",), None
    else:
        yield from _blt(settings, spelling)


def _blt(settings: BltSettings, spelling: Spelling) -> Iterator[Name]:
    models = ("local_encoder", "global_transformer", "local_decoder")
    encoder, larger, decoder = (f"{spelling.root}{model}." for model in models)
    tables = [f"{spelling.ngrams}.{n}" for n in range(settings.ngrams.count)]
    if tables or not spelling.ngram_tables_apart:
        yield "ngrams", tuple(tables) if spelling.ngram_tables_apart else (spelling.ngrams,), None
    yield "encoder.embedding", (f"{encoder}{spelling.embedding}",), None
    yield from _blocks("encoder.", encoder, settings.encoder, spelling)
    if settings.pooling == "attention":
        for name in ("norm", "query"):
            yield f"encoder.pooling.{name}", (f"{encoder}pooling.{name}",), None
    yield "encoder.patch_projection", (f"{encoder}patch_embedding_projection",), None
    yield from _crosses("encoder.", encoder, settings.encoder, settings.encoder_crosses, spelling)
    if settings.queries * settings.encoder.width != settings.global_.width:
        yield "global_.input_projection", (f"{larger}token_embedding_projection",), None
    yield from _blocks("global_.", larger, settings.global_, spelling)
    yield "decoder.patch_projection", (f"{decoder}patch_embedding_projection",), None
    yield from _crosses("decoder.", decoder, settings.decoder, settings.decoder_crosses, spelling)
    yield from _blocks("decoder.", decoder, settings.decoder, spelling)
    yield "decoder.norm", (f"{decoder}norm",), None
    yield "decoder.head", (spelling.head,), None


def _blocks(ours: str, theirs: str, stack: StackSettings, spelling: Spelling) -> Iterator[Name]:
    norms = spelling.norms_after if stack.norm == "after" else spelling.block_norms
    assert norms is not None, "`check_blocks` refuses them"
    for layer in range(stack.layers):
        here, there = f"{ours}blocks.{layer}", f"{theirs}layers.{layer}"
        attention, feed_forward = f"{there}.{spelling.attention}", f"{there}.{spelling.feed_forward}"
        yield f"{here}.attention_norm", (f"{there}.{norms[0]}",), None
        yield f"{here}.qkv", tuple(f"{attention}.{x}" for x in spelling.qkv), _qkv_rows(stack)
        if stack.qk_norm != "none" and spelling.qk_norms is not None:
            for name, there_norm in zip(("query", "key"), spelling.qk_norms):
                yield f"{here}.qk_norm.{name}", (f"{attention}.{there_norm}",), None
        yield f"{here}.attention_output", (f"{attention}.{spelling.output}",), None
        yield f"{here}.feed_forward_norm", (f"{there}.{norms[1]}",), None
        yield f"{here}.gate_up", tuple(f"{feed_forward}.{x}" for x in spelling.gate_up), None
        yield f"{here}.down", (f"{feed_forward}.{spelling.down}",), None


def _crosses(ours: str, theirs: str, stack: StackSettings, count: int, spelling: Spelling) -> Iterator[Name]:
    for layer in range(count):
        here, there = f"{ours}cross.{layer}", f"{theirs}cross_attn_layers.{layer}"
        yield f"{here}.query_norm", (f"{there}.{spelling.cross_norms[0]}",), None
        yield f"{here}.key_value_norm", (f"{there}.{spelling.cross_norms[1]}",), None
        yield f"{here}.query", (f"{there}.{spelling.qkv[0]}",), None
        yield f"{here}.key_value", tuple(f"{there}.{x}" for x in spelling.qkv[1:]), None
        yield f"{here}.output", (f"{there}.{spelling.output}",), None


def _qkv_rows(stack: StackSettings) -> tuple[int, ...]:
    return (stack.attended_width, *[stack.key_value_heads * stack.head_width] * 2)
