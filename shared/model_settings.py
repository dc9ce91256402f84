"""Settings of all models, free of torch so that planning and identity checks stay light.

Shapes in comments: D width, H heads, K queries a patch.
"""

from collections.abc import Mapping
from functools import partial
from operator import eq
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from shared.patching.credit import PatchCredit
from shared.settings import NamesSpecials, Settings, Unit
from shared.stack_settings import LONGEST_WINDOW, StackSettings
from shared.vocabulary import VOCABULARY_SIZE

if TYPE_CHECKING:
    from shared.patching.settings import PatchingSettings


MOST_ROWS, MOST_SIZES, MOST_QUERIES, MOST_IDS = 1 << 34, 32, 1024, 1 << 24
"""What no model has more of: settings beyond are refused before anything is built from them. Rows of a table, n-gram
tables of one function, vectors of a patch, ids."""


Axis = Literal["tokens", "patches"]


class PlacedStack(NamedTuple):
    """A stack of blocks where it stands in a model."""

    name: str
    """Of its list of blocks, as in the names of parameters: "global_.blocks"."""
    settings: StackSettings
    axis: Axis
    """What its positions are."""

    @property
    def part(self) -> str:
        """As figures name it: "global"; "blocks" where there is nothing else."""
        return self.name.split(".")[0].rstrip("_")

    @property
    def units(self) -> list[str]:
        """Names of the modules whose parameters are gathered together.

        A small stack between bytes and patches is one, with all that belongs to it; of a large one each block is.
        """
        if self.axis == "tokens" and "." in self.name:
            return [self.name.rpartition(".")[0]]
        return [f"{self.name}.{layer}" for layer in range(self.settings.layers)]


class NgramSettings(Settings):
    """Hash n-gram embeddings (paper section 3.2.1): on in `blt`, in other kinds where the recipe has this table."""

    sizes: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(default=(3, 4, 5, 6, 7, 8), max_length=MOST_SIZES)
    """Lengths of n-grams, in bytes, or in tokens where the model reads those: a table for each, and for each hash
    function; [] for none."""
    rows: Annotated[int, Unit("rows")] = Field(default=500_002, gt=0, le=MOST_ROWS)
    """Size of each table."""
    functions: int = Field(default=1, ge=1, le=11)
    """Hash functions, each with its own prime and tables."""

    @property
    def count(self) -> int:
        """How many tables there are."""
        return self.functions * len(self.sizes)


NO_NGRAMS = NgramSettings(sizes=())
"""No tables."""


class WholeModel(Settings):
    """What every kind of model says about itself, so that nothing else need ask which kind it is."""

    stack_axes: ClassVar[Mapping[str, Axis]] = {}
    """What the positions of each stack are, by its field, in the order of a forward pass."""

    @property
    def reads(self) -> Literal["bytes", "patches", "tokens"]:
        """What its batches are made of: bytes alone, bytes in patches, or one subword token a patch."""
        return "patches"

    @property
    def stacks(self) -> tuple[PlacedStack, ...]:
        """All stacks of blocks, in the order of a forward pass."""
        return tuple(PlacedStack(f"{name}.blocks", getattr(self, name), axis) for name, axis in self.stack_axes.items())

    @model_validator(mode="after")
    def _one_window(self) -> "WholeModel":
        """Where the model's window bounds what a layer sees, the layer has none of its own."""
        for stack in self.stacks:
            if any(stack.settings.windows) and stack.axis == "tokens" and getattr(self, "window", None) is not None:
                raise ValueError(f"{stack.part}: windows of layers are for stacks that see whole documents")
        return self

    @property
    def context(self) -> int | None:
        """Attention between tokens stays within segments of so many, counted from where a document begins; None: it
        does not stop within a document.
        """
        return None

    @property
    def tables(self) -> NgramSettings:
        """Its n-gram tables, which learn by rows."""
        return NO_NGRAMS

    @property
    def has_tables(self) -> bool:
        """Whether it has any."""
        return bool(self.tables.sizes)

    @property
    def table_width(self) -> int:
        """D of its n-gram tables: that of the first stack over tokens, to whose inputs their rows are added."""
        return next(stack.settings.width for stack in self.stacks if stack.axis == "tokens")

    @property
    def patch_credit(self) -> PatchCredit | None:
        """Of a model that reads bytes alone and finds patches itself: what bounds their number; None for others."""
        return None

    def objection(self, patching: "PatchingSettings") -> str | None:
        """Why it cannot learn from shards that are patched so; None where it can."""
        if self.reads == "bytes" and patching.patched:
            return "trains on unpatched shards (rule 'none')"
        if self.reads == "patches" and patching.rule == "bpe":
            return (
                "cannot learn on shards of rule 'bpe': where their patches begin depends on later bytes; cut them by "
                "another rule (python -m pipeline recut or preprocess)"
            )
        if self.reads != "bytes" and not patching.patched:
            return "needs patched shards, these have rule 'none'"
        return None

    @property
    def units(self) -> list[str]:
        """Names of the modules whose parameters are gathered together, in the order of a forward pass."""
        return [unit for stack in self.stacks for unit in stack.units]


def _without_tables(ngrams: NgramSettings) -> bool:
    return not ngrams.sizes


class MayHaveTables(WholeModel):
    """A kind of model that has n-gram tables where its settings name them."""

    ngrams: NgramSettings = Field(default=NO_NGRAMS, exclude_if=_without_tables)
    """Left out where there are none, so that identities without them stay what they are."""

    @property
    def tables(self) -> NgramSettings:
        return self.ngrams


class FlatModelSettings(StackSettings, WholeModel):
    """A transformer over flat tokens: an embedding, one stack of blocks, a head."""

    @property
    def reads(self) -> Literal["bytes", "patches", "tokens"]:
        return "bytes"

    @property
    def stacks(self) -> tuple[PlacedStack, ...]:
        return (PlacedStack("blocks", self, "tokens"),)


class EntropyModelSettings(FlatModelSettings):
    """The byte model whose next-byte entropy decides where patches begin."""

    kind: Literal["entropy"] = "entropy"
    """What kind of model it is."""
    window: Annotated[int, Unit("bytes")] = Field(default=512, gt=0, le=LONGEST_WINDOW)
    """How far back a byte sees, itself included."""
    rope_theta: float = Field(default=10_000.0, gt=0, le=1e15)
    newline_reset: bool = False
    """A newline opens a new context: it sees only itself, and nothing before it is seen after it."""
    vocabulary: Literal[260] = VOCABULARY_SIZE
    """V: the bytes and four special ids."""


class FlatSettings(FlatModelSettings, MayHaveTables):
    """A transformer of Llama's shape over flat tokens: of bytes, or of the subwords of a tokenizer."""

    kind: Literal["flat"] = "flat"
    """What kind of model it is."""
    window: Annotated[int, Unit("tokens")] | None = Field(default=None, gt=0, le=LONGEST_WINDOW)
    """How far back a token sees, itself included; None: the whole document."""
    vocabulary: int = Field(default=VOCABULARY_SIZE, ge=VOCABULARY_SIZE, le=MOST_IDS)
    """V: 260 for bytes; more for subwords, whose ids from 260 on are the merges of a tokenizer."""

    @property
    def reads(self) -> Literal["bytes", "patches", "tokens"]:
        return "bytes" if self.vocabulary == VOCABULARY_SIZE else "tokens"

    def objection(self, patching: "PatchingSettings") -> str | None:
        if self.reads == "tokens":
            tokenizer = patching.tokenizer
            if tokenizer is None:
                return f"with vocabulary {self.vocabulary} needs shards of rule 'bpe', these have {patching.rule!r}"
            if tokenizer.imported:
                return "reads tokens of tokenizers that were trained here; that of the shards is another model's"
            if tokenizer.vocabulary != self.vocabulary:
                return f"has vocabulary {self.vocabulary}, the tokenizer of the shards {tokenizer.vocabulary}"
        return super().objection(patching)


class BltSettings(NamesSpecials, WholeModel):
    """The byte latent transformer: local encoder, global transformer, local decoder."""

    stack_axes: ClassVar[Mapping[str, Axis]] = {"encoder": "tokens", "global_": "patches", "decoder": "tokens"}

    kind: Literal["blt"] = "blt"
    """What kind of model it is."""
    ngrams: NgramSettings = NgramSettings()
    encoder: StackSettings
    global_: StackSettings = Field(alias="global")
    decoder: StackSettings
    window: Annotated[int, Unit("bytes")] = Field(default=512, gt=0, le=LONGEST_WINDOW)
    """How far back a byte sees in the self-attention of the local models, itself included."""
    queries: int = Field(default=2, ge=1, le=MOST_QUERIES)
    """K: vectors that stand for one patch between the local and the global width."""
    input_scale: float = Field(default=1.0, gt=0, le=1e6, exclude_if=partial(eq, 1.0))
    """What patch vectors are multiplied by before the global transformer reads them. `byteify` sets it, so that blocks
    of a token model read numbers as large as its embedding. Left out where it is 1."""
    pooling: Literal["cross", "mean", "max", "attention"] = Field(default="cross", exclude_if=partial(eq, "cross"))
    """How bytes become a patch: by the encoder's cross-attention; or, without any, their mean, their maximum or a mean
    by learned weights. Left out where it is the default, so that identities stay what they are."""
    encoder_cross_all_layers: bool = False
    """Patches are updated by cross-attention after every block of the encoder; false: after the last one only."""
    decoder_cross_all_layers: bool = True
    """Bytes look at their patch before every block of the decoder; false: before the first one only."""
    vocabulary: int = Field(default_factory=lambda known: VOCABULARY_SIZE + len(known.get("specials", ())))
    """V: bytes and special ids, the named ones included."""

    @model_validator(mode="after")
    def _agree(self) -> "BltSettings":
        if self.encoder.width != self.decoder.width:
            raise ValueError(f"encoder width {self.encoder.width} and decoder width {self.decoder.width} must be equal")
        if self.pooling != "cross" and self.encoder_cross_all_layers:
            raise ValueError(f"pooling {self.pooling!r} has no cross-attention for encoder_cross_all_layers")
        if self.pooling == "attention" and self.encoder.width % self.encoder.heads:
            raise ValueError(
                f"pooling 'attention' needs an encoder width {self.encoder.width} of heads {self.encoder.heads} times "
                "a whole number"
            )
        if self.vocabulary != VOCABULARY_SIZE + len(self.specials):
            raise ValueError(
                f"vocabulary {self.vocabulary} must be {VOCABULARY_SIZE} and one for each of specials; leave it out"
            )
        return self

    @property
    def tables(self) -> NgramSettings:
        return self.ngrams

    @property
    def encoder_crosses(self) -> int:
        """Cross-attentions of the encoder."""
        if self.pooling != "cross":
            return 0
        return self.encoder.layers if self.encoder_cross_all_layers else 1

    @property
    def decoder_crosses(self) -> int:
        """Cross-attentions of the decoder."""
        return self.decoder.layers if self.decoder_cross_all_layers else 1


class MegaByteSettings(MayHaveTables):
    """Patches of fixed length: a global transformer over patches, a local one inside each (arXiv 2305.07185)."""

    stack_axes: ClassVar[Mapping[str, Axis]] = {"global_": "patches", "local": "tokens"}

    kind: Literal["megabyte"] = "megabyte"
    """What kind of model it is."""
    patch: Annotated[int, Unit("bytes")] = Field(default=4, ge=2, le=65_535)
    """S, length of a patch: the stride of its data."""
    global_: StackSettings = Field(alias="global")
    local: StackSettings
    vocabulary: Literal[260] = VOCABULARY_SIZE
    """V: the bytes and four special ids."""

    @model_validator(mode="after")
    def _divisible(self) -> "MegaByteSettings":
        if self.global_.width % self.patch:
            raise ValueError(f"global width {self.global_.width} must be a multiple of patch ({self.patch})")
        return self

    @property
    def piece(self) -> int:
        """Width of what a byte puts into its patch, and gets from the patch before."""
        return self.global_.width // self.patch

    @property
    def window(self) -> int:
        """No byte sees further in the local model."""
        return self.patch

    @property
    def context(self) -> int | None:
        return self.patch

    def objection(self, patching: "PatchingSettings") -> str | None:
        """Also for patches of other lengths: they would not fit into the global model."""
        whole = patching.whole_characters
        if patching.stride == self.patch and patching.min_length <= self.patch <= patching.max_length and not whole:
            return None
        found = f"rule {patching.rule!r}" + (f" of stride {patching.stride}" if patching.stride else "")
        found += " and whole_characters" if whole else ""
        return f"needs shards of rule 'static' with stride {self.patch} (model.patch), these have {found}"


class SpaceByteSettings(MayHaveTables):
    """Bytes all the way, with large blocks at the last byte of each patch only (arXiv 2404.14408)."""

    stack_axes: ClassVar[Mapping[str, Axis]] = {"before": "tokens", "global_": "patches", "after": "tokens"}

    kind: Literal["spacebyte"] = "spacebyte"
    """What kind of model it is."""
    before: StackSettings
    """Blocks over bytes before the large ones."""
    global_: StackSettings = Field(alias="global")
    after: StackSettings
    window: Annotated[int, Unit("bytes")] = Field(default=512, gt=0, le=LONGEST_WINDOW)
    """How far back a byte sees in the blocks over bytes, itself included."""
    vocabulary: Literal[260] = VOCABULARY_SIZE
    """V: the bytes and four special ids."""

    @model_validator(mode="after")
    def _widths(self) -> "SpaceByteSettings":
        if self.before.width != self.after.width:
            raise ValueError(f"before width {self.before.width} and after width {self.after.width} must be equal")
        if self.global_.width < self.width:
            raise ValueError(f"global width {self.global_.width} must be at least that of bytes, {self.width}")
        return self

    @property
    def width(self) -> int:
        """D of bytes."""
        return self.before.width


LARGEST_CREDIT = 4096
"""B m of `HNetSettings`: finding what is paid for takes as many numbers for each token."""


class HNetSettings(MayHaveTables):
    """A model that learns where patches begin, of one stage (arXiv 2507.07955): local encoder and router, global
    transformer, local decoder.
    """

    stack_axes: ClassVar[Mapping[str, Axis]] = {"encoder": "tokens", "global_": "patches", "decoder": "tokens"}

    kind: Literal["hnet"] = "hnet"
    """What kind of model it is."""
    encoder: StackSettings
    global_: StackSettings = Field(alias="global")
    decoder: StackSettings
    window: Annotated[int, Unit("bytes")] = Field(default=512, gt=0, le=LONGEST_WINDOW)
    """How far back a byte sees in the self-attention of the local models, itself included."""
    target: Annotated[float, Unit("bytes")] = Field(default=6.0, gt=1, le=1024)
    """Bytes a patch that the ratio loss leads to (N)."""
    ratio_weight: float = Field(default=0.03, gt=0, le=100)
    """Weight of the ratio loss beside the mean loss of a target."""
    credit: Annotated[int, Unit("patches")] = Field(default=16, ge=1, le=LARGEST_CREDIT)
    """Patches that may end at once (B): where a document begins, and after long ones."""
    credit_bytes: Annotated[int, Unit("bytes")] = Field(default=3, ge=1, le=LARGEST_CREDIT)
    """Bytes that earn the credit for one more patch (m): fewer bytes a patch than these do not last. Below target."""
    max_length: Annotated[int, Unit("bytes")] = Field(default=512, ge=1, le=65_535)
    """A patch ends after so many bytes, whatever the router says."""
    vocabulary: Literal[260] = VOCABULARY_SIZE
    """V: the bytes and four special ids."""

    @model_validator(mode="after")
    def _agree(self) -> "HNetSettings":
        if self.encoder.width != self.decoder.width:
            raise ValueError(f"encoder width {self.encoder.width} and decoder width {self.decoder.width} must be equal")
        if self.credit_bytes >= self.target:
            raise ValueError(f"credit_bytes {self.credit_bytes} must be less than target {self.target:g}")
        if self.credit * self.credit_bytes > LARGEST_CREDIT:
            raise ValueError(f"credit {self.credit} times credit_bytes {self.credit_bytes} is above {LARGEST_CREDIT}")
        if self.max_length < (least := (self.credit + 1) * self.credit_bytes):
            raise ValueError(f"max_length {self.max_length} must be at least (credit + 1) * credit_bytes, {least}")
        return self

    @property
    def width(self) -> int:
        """D of bytes."""
        return self.encoder.width

    @property
    def reads(self) -> Literal["bytes", "patches", "tokens"]:
        return "bytes"

    @property
    def patch_credit(self) -> PatchCredit:
        return PatchCredit(self.credit, self.credit_bytes)


AnyModelSettings = (
    EntropyModelSettings | FlatSettings | BltSettings | MegaByteSettings | SpaceByteSettings | HNetSettings
)
"""All kinds of models."""

ModelSettings = Annotated[AnyModelSettings, Field(discriminator="kind")]
"""The same as a field, told apart by ``kind``."""


class CountsSettings(Settings):
    """The entropy model that counts what follows each context of a few bytes. It is built, not trained."""

    kind: Literal["counts"] = "counts"
    """What kind of model it is."""
    order: int = Field(default=5, ge=1, le=6)
    """Bytes of a context at most."""
    symbols: Literal[257, 258] = 257
    """What may follow a context: the bytes, EOS, and, in data that names special ids, any of these."""
    newline_reset: bool = False
    """A newline opens a new context: nothing before it is seen after it."""


StoredSettings = AnyModelSettings | CountsSettings
"""What the settings of a model folder may be: of a network, or of counts."""


def specials_of(settings: AnyModelSettings) -> tuple[str, ...]:
    """The special ids that a model names; of most kinds it names none."""
    return settings.specials if isinstance(settings, NamesSpecials) else ()
