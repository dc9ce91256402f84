"""Settings of a stack of transformer blocks: its size, and what its blocks are like, each choice apart from the others.

The defaults are those of Llama: norms before, no norms of queries and keys, no biases, attention to all that came
before, rotary positions as they are. What other families do is a setting, not a class.

Shapes: D width, H heads, G key/value heads, C head width.
"""

from functools import partial
from operator import eq, not_
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from shared.settings import Settings, Unit

MOST_LAYERS, WIDEST, LONGEST_WINDOW, LONGEST_TEXT = 1024, 1 << 18, 1 << 30, 1 << 40
"""What no stack has more of: blocks; width of a layer; positions of a window; positions of a text."""

Projection = Literal["qkv", "attention_output", "gate_up", "down"]
"""The products of a block, as their parameters are named."""


class RopeScaling(Settings):
    """Rotary positions that were stretched after training, so that texts longer than those of training are read."""

    model_config = ConfigDict(allow_inf_nan=False)

    kind: Literal["linear", "llama3", "yarn"]
    """linear: all wavelengths; llama3: the long ones, as in Llama 3.1; yarn: the long ones, with a factor for what is
    turned (Peng et al. 2023, arXiv 2309.00071)."""
    factor: float = Field(gt=0, le=1e6)
    """How much longer."""
    trained_length: Annotated[int, Unit("positions")] = Field(default=8192, gt=0, le=LONGEST_TEXT)
    """Positions of a text in the training before; not used by linear."""
    low: float = Field(default=1.0, gt=0, le=1e6)
    """Wavelengths that fit fewer times into the trained length are stretched by the whole factor."""
    high: float = Field(default=4.0, gt=0, le=1e6)
    """Those that fit more often stay; between the two they go over from one to the other. yarn: 32 as a rule."""
    strength: float = Field(default=1.0, gt=0, le=1e6)
    """Queries and keys are multiplied by it as they are turned; of yarn alone, 0.1 ln(factor) + 1 as a rule."""
    rounded: bool = True
    """yarn: the pairs between which it goes over are whole ones."""
    windowed: bool = True
    """Layers with a window have it, too; false in OLMo 3."""

    @model_validator(mode="after")
    def _agree(self) -> "RopeScaling":
        if self.kind != "linear" and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be less than high {self.high:g}")
        if self.kind != "yarn" and self.strength != 1:
            raise ValueError(f"strength is of kind 'yarn', this is {self.kind!r}")
        return self


class LayerKind(NamedTuple):
    """What one layer of a stack does unlike another."""

    window: int | None
    """Positions that it sees, itself included; None: all before."""
    rotated: bool
    """Whether queries and keys are turned by their positions."""
    scaled: bool
    """Whether by stretched ones."""


class StackSettings(Settings):
    """A stack of transformer blocks."""

    model_config = ConfigDict(allow_inf_nan=False)

    width: int = Field(gt=0, le=WIDEST)
    """D, must be divisible by heads unless head_dim is given."""
    layers: Annotated[int, Unit("blocks")] = Field(gt=0, le=MOST_LAYERS)
    """Depth of the stack."""
    heads: int = Field(gt=0, le=WIDEST)
    """H, attention heads of a block."""
    kv_heads: int | None = Field(default=None, gt=0, le=WIDEST)
    """Key/value heads (grouped-query attention); None means as many as heads."""
    head_dim: int | None = Field(default=None, gt=0, le=WIDEST, exclude_if=not_)
    """C, width of a head; None: width / heads."""
    feed_forward: int | None = Field(default=None, gt=0, le=8 * WIDEST)
    """Hidden width of SwiGLU; None means 2/3 * 4 D rounded up to a multiple of 256."""
    rope_theta: float = Field(default=500_000.0, gt=0, le=1e15)
    """Base of the wavelengths of rotary positions."""
    rope_scaling: RopeScaling | None = Field(default=None, exclude_if=not_)
    """How the wavelengths are stretched; None: not at all. This and the rest below is for blocks of other families than
    Llama's (docs/byteify.md); left out where it is the default, so that identities stay what they are."""
    rotated: tuple[bool, ...] = Field(default=(), max_length=MOST_LAYERS, exclude_if=not_)
    """Which layers have rotary positions, in turn and from the beginning again; []: all. SmolLM 3 leaves every fourth
    without."""
    windows: tuple[Annotated[int, Field(ge=0, le=LONGEST_WINDOW), Unit("positions")], ...] = Field(
        default=(), max_length=MOST_LAYERS, exclude_if=not_
    )
    """How far back each layer sees, itself included, in turn and from the beginning again; 0: the whole document.
    []: all see the whole document, or as far as the model's window."""
    norm: Literal["before", "after"] = Field(default="before", exclude_if=partial(eq, "before"))
    """Where norms stand: before attention and the feed-forward part, or after them (OLMo 2 and 3)."""
    qk_norm: Literal["none", "head", "width"] = Field(default="none", exclude_if=partial(eq, "none"))
    """Norms of queries and keys before they are turned: of each head alone (Qwen 3), or of all together (OLMo)."""
    biases: tuple[Projection, ...] = Field(default=(), max_length=4, exclude_if=not_)
    """Projections with a bias: "qkv" (Qwen 2), "attention_output", "gate_up", "down"."""
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    """Added to the mean square in RMS norms."""

    @model_validator(mode="after")
    def _divisible(self) -> "StackSettings":
        if self.head_dim is not None:
            if self.head_dim % 2:
                raise ValueError(f"head_dim {self.head_dim} must be even")
        elif self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even head width")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_theta {self.rope_theta:g} must be above 1 with rope_scaling of kind 'yarn'")
        if len(set(self.biases)) < len(self.biases):
            raise ValueError(f"biases names one projection twice: {', '.join(self.biases)}")
        return self

    @property
    def key_value_heads(self) -> int:
        """G."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """C."""
        return self.head_dim or self.width // self.heads

    @property
    def attended_width(self) -> int:
        """H C, what attention gives for a position: D unless head_dim says otherwise."""
        return self.heads * self.head_width

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part."""
        return self.feed_forward or -(-(8 * self.width // 3) // 256) * 256

    @property
    def products(self) -> dict[Projection, tuple[int, int]]:
        """Inputs and outputs of each product of a block."""
        keys = self.key_value_heads * self.head_width
        return {
            "qkv": (self.width, self.attended_width + 2 * keys),
            "attention_output": (self.attended_width, self.width),
            "gate_up": (self.width, 2 * self.hidden),
            "down": (self.hidden, self.width),
        }

    @property
    def layer_kinds(self) -> list[LayerKind]:
        """What each layer does, in their order."""
        return [self._layer_kind(layer) for layer in range(self.layers)]

    def _layer_kind(self, layer: int) -> LayerKind:
        window = self.windows[layer % len(self.windows)] or None if self.windows else None
        scaled = self.rope_scaling is not None and (window is None or self.rope_scaling.windowed)
        return LayerKind(window, not self.rotated or self.rotated[layer % len(self.rotated)], scaled)

    @property
    def unlike_llama(self) -> list[str]:
        """The settings by which its blocks are not those of a Llama whose heads fill its width."""
        unlike = {
            "rope_scaling": self.rope_scaling is not None,
            "rotated": not all(self.rotated),
            "windows": any(self.windows),
            "norm": self.norm != "before",
            "qk_norm": self.qk_norm != "none",
            "biases": bool(self.biases),
            "head_dim": self.attended_width != self.width,
        }
        return [name for name, is_unlike in unlike.items() if is_unlike]
