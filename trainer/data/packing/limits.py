"""How large a pack may be: the budgets of tokens and patches, checked against the dataset."""

from dataclasses import dataclass

from shared.errors import ConfigError
from shared.patching.credit import PatchCredit
from trainer.data.source import PatchTotals

HEADROOM = 1.05
"""Patches of a pack over the mean, when their number is derived: packs vary."""
MULTIPLE = 64


@dataclass(frozen=True)
class PackLimits:
    """Sizes of every pack's two axes, static so that a compiled model sees one shape."""

    tokens: int
    """T_max."""
    patches: int | None
    """P_max: one more than a pack may hold, since padding has a patch of its own. None: packs without patches."""
    subwords: bool = False
    """Whether each patch is read as one token of the dataset's tokenizer."""
    credit: PatchCredit | None = None
    """What bounds the patches of a model that finds them itself: packs have room for as many as there can be."""

    @property
    def patched(self) -> bool:
        """Whether packs hold patches as the dataset has them."""
        return self.patches is not None and self.credit is None

    @property
    def read(self) -> "PackLimits":
        """Of the axes that a model reads: where patches are its tokens, theirs is the only one."""
        if not self.subwords:
            return self
        assert self.patches is not None
        return PackLimits(self.patches, None)


def pack_limits(dataset: PatchTotals, tokens: int, patches: int | None = None) -> PackLimits:
    """The budgets for a dataset; patches None takes them from its mean patch size (none if it is unpatched).

    Raises ConfigError when a pack could hold no patch of the greatest length, or patches are asked of unpatched data.
    """
    patching = dataset.patching
    if not patching.patched:
        if patches is not None:
            raise ConfigError(f"data.patches is {patches}, but the dataset is unpatched; leave it out")
        if tokens < 2:
            raise ConfigError(f"data.tokens is {tokens}; a pack needs at least 2")
        return PackLimits(tokens, None)
    if patching.max_length > tokens - 2:
        raise ConfigError(
            f"data.tokens is {tokens}, but patches of this dataset may have {patching.max_length} bytes; "
            f"a pack needs at least {patching.max_length + 2} tokens"
        )
    if patches is None:
        totals = dataset.totals
        share = (totals.patches + totals.documents) / max(totals.tokens, 1)
        patches = patches_for(tokens, share)
    if patches < 3:
        raise ConfigError(f"data.patches is {patches}; a pack needs at least 3")
    return PackLimits(tokens, patches, subwords=patching.rule == "bpe")


def credited_limits(dataset: PatchTotals, tokens: int, credit: PatchCredit, patches: int | None = None) -> PackLimits:
    """The budgets for a model that finds patches itself, however the dataset is patched.

    patches None: of documents as long as they are on average, and at least of a document as long as a pack. Raises
    ConfigError when a pack could hold no patch.
    """
    if tokens < 2:
        raise ConfigError(f"data.tokens is {tokens}; a pack needs at least 2")
    if patches is None:
        totals = dataset.totals
        inputs = max(totals.tokens // max(totals.documents, 1), 1)
        patches = max(patches_for(tokens, credit.bound(inputs) / inputs), credit.bound(tokens) + 1)
    if patches < 3:
        raise ConfigError(f"data.patches is {patches}; a pack needs at least 3")
    return PackLimits(tokens, patches, credit=credit)


def patches_for(tokens: int, share: float) -> int:
    """P_max for packs of so many tokens when there is ``share`` of a patch to a token on average."""
    return max(-(-int(tokens * share * HEADROOM) // MULTIPLE) * MULTIPLE, 3)
