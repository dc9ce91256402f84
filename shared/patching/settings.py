"""What decides where patches begin, as one immutable value: part of what datasets and checkpoints say they are."""

from operator import not_
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from shared.patching.characters import LONGEST_CHARACTER, MOST_CLOSED
from shared.patching.grid import snap
from shared.settings import Settings

ENTROPY_RULES = ("entropy", "monotonic", "entropy_rise")
RISE_RULES = ("monotonic", "entropy_rise")
LONGEST_PATCH = 65_535  # lengths are stored as uint16


class TokenizerIdentity(Settings):
    """The tokenizer whose tokens are the patches; its folder is copied into the dataset as tokenizer/."""

    sha256: str
    vocabulary: int
    """Ids, those of bytes and special ids included."""
    imported: bool = Field(default=False, exclude_if=not_)
    """It is of another model, with its ids. Left out where it is not, so that identities stay what they are."""


class PatchingSettings(Settings):
    """A patching rule with its thresholds and length limits (paper sections 2.1 to 2.4)."""

    model_config = ConfigDict(allow_inf_nan=False)

    rule: Literal["none", "byte", "static", "space", "entropy", "monotonic", "entropy_rise", "bpe"]
    """none: no patches (what the entropy model trains on); byte: every byte; static: fixed stride (MegaByte);
    space: after the first space-like byte of a run (SpaceByte); entropy: H > theta; monotonic: rise of H > theta;
    entropy_rise: H > theta and rise > theta_rise; bpe: the tokens of a byte-pair tokenizer, for baselines. Alone among
    the rules bpe looks at later bytes, so only a model that reads tokens as such may learn on it."""
    theta: float | None = None
    """Nats. The default threshold, calibrated on all bytes."""
    thetas: dict[str, float] = Field(default_factory=dict)
    """Nats, by subset, where a subset has its own threshold."""
    theta_rise: float | None = None
    """Nats, for entropy_rise only."""
    stride: int | None = Field(default=None, ge=1, le=LONGEST_PATCH)
    """Bytes, for static only."""
    tokenizer: TokenizerIdentity | None = Field(default=None, exclude_if=not_)
    """For bpe only; left out for other rules, so that their identities stay what they are."""
    min_length: int = Field(default=1, ge=1, le=LONGEST_PATCH)
    max_length: int = Field(default=512, ge=1, le=LONGEST_PATCH)
    whole_characters: bool = Field(default=False, exclude_if=not_)
    """No patch of valid UTF-8 starts inside a character: what the rule wants there is dropped, and a patch is cut at
    the first possible place from max_length - 3 bytes on. Left out where it is off, as the tokenizer is."""
    entropy_dtype: Literal["float32", "float16"] = "float32"
    """Precision to which entropies are rounded before a rise is taken; online and offline round alike."""
    grid: bool = False
    """Thresholds on H lie on the sidecar grid, so that boundaries can be found again from a uint8 sidecar."""
    reference_starts: bool = False
    """Rules on rises begin as the released reference does: always a start at 2, and never one at 3 for entropy_rise."""

    @model_validator(mode="after")
    def _consistent(self) -> "PatchingSettings":
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is greater than max_length {self.max_length}")
        if self.whole_characters:
            self._check_characters()
        needed = {
            "theta": self.rule in ENTROPY_RULES,
            "theta_rise": self.rule == "entropy_rise",
            "stride": self.rule == "static",
            "tokenizer": self.rule == "bpe",
        }
        for key, wanted in needed.items():
            if wanted != (getattr(self, key) is not None):
                raise ValueError(f"rule {self.rule!r} {'needs' if wanted else 'does not take'} {key}")
        if self.rule == "bpe" and self.min_length > 1:
            raise ValueError("rule 'bpe' does not take min_length")
        if self.thetas and self.rule not in ENTROPY_RULES:
            raise ValueError(f"rule {self.rule!r} does not take thetas")
        if self.reference_starts and self.rule not in RISE_RULES:
            raise ValueError(f"reference_starts is for the rules {', '.join(RISE_RULES)}, not {self.rule!r}")
        if self.grid:
            if self.rule not in ("entropy", "entropy_rise"):
                raise ValueError(f"grid is for thresholds on the entropy itself, not for the rule {self.rule!r}")
            for theta in (self.theta, *self.thetas.values()):
                if theta is not None and snap(theta) != theta:
                    raise ValueError(f"theta {theta} is not on the sidecar grid; the nearest value is {snap(theta)!r}")
        return self

    def _check_characters(self) -> None:
        if self.rule in ("none", "bpe"):
            raise ValueError(f"rule {self.rule!r} does not take whole_characters")
        if self.max_length < LONGEST_CHARACTER:
            raise ValueError(
                f"whole_characters needs a max_length of at least {LONGEST_CHARACTER}, the bytes of the longest "
                f"character; it is {self.max_length}"
            )
        if self.min_length > self.cut_length:
            raise ValueError(
                f"min_length {self.min_length} is greater than {self.cut_length}, from which on patches are cut so "
                f"that whole characters fit into max_length {self.max_length}"
            )

    @property
    def cut_length(self) -> int:
        """From how many bytes on a patch is cut, wanted or not."""
        return self.max_length - MOST_CLOSED if self.whole_characters else self.max_length

    @property
    def needs_entropy(self) -> bool:
        return self.rule in ENTROPY_RULES

    @property
    def patched(self) -> bool:
        return self.rule != "none"

    @property
    def described(self) -> dict[str, object]:
        """What differs from the defaults, for readers, without the rule and the thetas of subsets."""
        found = self.model_dump(exclude_defaults=True, exclude={"rule", "thetas", "tokenizer"})
        if self.tokenizer is not None:
            found |= {"vocabulary": self.tokenizer.vocabulary, "tokenizer": self.tokenizer.sha256[:16]}
        return found

    def for_subset(self, subset: str | None) -> "PatchingSettings":
        """These settings with the threshold of one subset as the only one."""
        theta = self.theta if subset is None else self.thetas.get(subset, self.theta)
        return self.model_copy(update={"theta": theta, "thetas": {}})

    def with_theta(self, theta: float, grid: bool) -> "PatchingSettings":
        """These settings with one threshold for all subsets. ``grid``: whether it lies on the sidecar grid."""
        return PatchingSettings.model_validate(self.model_dump() | {"theta": theta, "thetas": {}, "grid": grid})

    def on_grid(self) -> "PatchingSettings":
        """These settings with thresholds moved to the nearest value of the sidecar grid."""
        if self.rule not in ("entropy", "entropy_rise"):
            return self
        assert self.theta is not None
        moved = {"theta": snap(self.theta), "thetas": {k: snap(v) for k, v in self.thetas.items()}, "grid": True}
        return PatchingSettings.model_validate(self.model_dump() | moved)
