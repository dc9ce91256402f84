"""Settings of the two models, free of torch so that planning and identity checks stay light.

Shapes in comments: D width, H heads, K queries a patch.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.vocabulary import VOCABULARY_SIZE


class Settings(BaseModel):
    """Base of every settings object: immutable, and an unknown key is an error (law 7)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


SpecialName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _is_empty(names: tuple[str, ...]) -> bool:
    return not names


class NamesSpecials(Settings):
    """Settings of what may know named special ids, as chat turns need them: ids from VOCABULARY_SIZE on, in order."""

    specials: tuple[SpecialName, ...] = Field(default=(), max_length=4096, exclude_if=_is_empty)
    """Left out where there are none, so that identities without them stay what they are."""

    @model_validator(mode="after")
    def _different(self) -> "NamesSpecials":
        if len(set(self.specials)) < len(self.specials):
            raise ValueError(f"specials names one id twice: {', '.join(self.specials)}")
        return self


class StackSettings(Settings):
    """A stack of pre-norm transformer blocks."""

    width: int = Field(gt=0)
    """D, must be divisible by heads."""
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    """Key/value heads (grouped-query attention); None means as many as heads."""
    feed_forward: int | None = Field(default=None, gt=0)
    """Hidden width of SwiGLU; None means 2/3 * 4 D rounded up to a multiple of 256."""
    rope_theta: float = Field(default=500_000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _divisible(self) -> "StackSettings":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even head width")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return self.feed_forward or -(-(8 * self.width // 3) // 256) * 256


class EntropyModelSettings(StackSettings):
    """The byte model whose next-byte entropy decides where patches begin."""

    kind: Literal["entropy"] = "entropy"
    window: int = Field(default=512, gt=0)
    """Each byte sees this many bytes, itself included."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    newline_reset: bool = False
    """A newline opens a new context: it sees only itself, and nothing before it is seen after it."""
    vocabulary: Literal[260] = VOCABULARY_SIZE


class NgramSettings(Settings):
    """Hash n-gram embeddings (paper section 3.2.1)."""

    sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    rows: int = Field(default=500_002, gt=0)
    """Rows of each table."""
    functions: int = Field(default=1, ge=1, le=11)
    """Hash functions, each with its own prime and tables."""


class BltSettings(NamesSpecials):
    """The byte latent transformer: local encoder, global transformer, local decoder."""

    kind: Literal["blt"] = "blt"
    ngrams: NgramSettings = NgramSettings()
    encoder: StackSettings
    global_: StackSettings = Field(alias="global")
    decoder: StackSettings
    window: int = Field(default=512, gt=0)
    """Window of the local models' self-attention in bytes, the byte itself included."""
    queries: int = Field(default=2, ge=1)
    """K: vectors that stand for one patch between the local and the global width."""
    encoder_cross_all_layers: bool = False
    decoder_cross_all_layers: bool = True
    vocabulary: int = Field(default_factory=lambda known: VOCABULARY_SIZE + len(known.get("specials", ())))
    """V: bytes and special ids, the named ones included."""

    @model_validator(mode="after")
    def _agree(self) -> "BltSettings":
        if self.encoder.width != self.decoder.width:
            raise ValueError(f"encoder width {self.encoder.width} and decoder width {self.decoder.width} must be equal")
        if self.vocabulary != VOCABULARY_SIZE + len(self.specials):
            raise ValueError(
                f"vocabulary {self.vocabulary} must be {VOCABULARY_SIZE} and one for each of specials; leave it out"
            )
        return self


ModelSettings = Annotated[EntropyModelSettings | BltSettings, Field(discriminator="kind")]
