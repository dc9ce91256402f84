"""What steps add up to between two lines of metrics, and the figures that follow from it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from trainer.data.limits import PackLimits
from trainer.data.packs import Pack
from trainer.observing.clock import PARTS
from trainer.observing.metrics import bits_per_byte


@dataclass
class RankSums:
    """What one rank has done since the last line; all numbers, since they travel as fp64."""

    tokens: float = 0.0
    patches: float = 0.0
    """All patches, as the fill rate counts them."""
    own_patches: float = 0.0
    """Patches other than BOS and BOE, as the mean patch size counts them."""
    text: float = 0.0
    """Bytes of text, learnt or not."""
    packs: float = 0.0
    waited: float = 0.0
    """Seconds that the rank waited for packs."""
    data: float = 0.0
    """Seconds of steps by part, as StepClock takes them; this and the next two."""
    forward_backward: float = 0.0
    update: float = 0.0
    busy: float = 0.0
    """Seconds that the rank itself worked or waited for its packs, not for other ranks."""
    memory: float = 0.0
    """Bytes, the most so far."""

    def count(self, packs: Sequence[Pack]) -> None:
        """Add the packs of one step."""
        self.packs += len(packs)
        for pack in packs:
            self.tokens += len(pack.ids)
            self.text += int(pack.slice_text.sum())
            self.own_patches += int(pack.slice_patches.sum())
            if pack.patches is not None:
                self.patches += int(pack.patches.in_slice.sum())

    def values(self) -> list[float]:
        """In the order of the fields."""
        return [float(value) for value in astuple(self)]


@dataclass
class Tally:
    """What all ranks have done since the last line, as far as every rank knows it, and this rank's own sums."""

    steps: int = 0
    nats: float = 0.0
    """Of steps that were learnt from, as the next two."""
    targets: int = 0
    learnt: int = 0
    """Bytes."""
    bytes: int = 0
    """Of all steps."""
    skipped: int = 0
    """Steps that were not learnt from."""
    lr: float = 0.0
    """Of the last step, as the gradient norm."""
    grad_norm: float = 0.0
    own: RankSums = field(default_factory=RankSums)


def interval_figures(tally: Tally, ranks: Sequence[RankSums], limits: PackLimits, seconds: float) -> dict[str, Any]:
    """The figures of a line: what steps added up to in so many seconds, over all ranks."""
    together = RankSums(*(sum(values) for values in zip(*(astuple(rank) for rank in ranks))))
    per_step = 1 / (tally.steps * len(ranks))
    parts = {name: getattr(together, name) * per_step for name in PARTS}
    figures: dict[str, Any] = {
        "lr": tally.lr,
        "grad_norm": tally.grad_norm,
        "bytes_per_second": together.text / seconds,
        "token_fill": together.tokens / (together.packs * limits.tokens),
        "data_wait": together.waited / (seconds * len(ranks)),
        "step_seconds": {"whole": seconds / tally.steps} | parts,
        "memory": max(rank.memory for rank in ranks),
        "skipped": tally.skipped,
    }
    if tally.targets:
        figures |= {"loss": tally.nats / tally.targets, "bits_per_byte": bits_per_byte(tally.nats, tally.learnt)}
    if limits.patches is not None:
        figures |= {
            "patches_per_second": together.own_patches / seconds,
            "bytes_per_patch": together.text / together.own_patches,
            "patch_fill": together.patches / (together.packs * limits.patches),
        }
    return figures | slowest(ranks)


def slowest(ranks: Sequence[RankSums]) -> dict[str, Any]:
    """Which rank was busiest, and how much more than ranks in the mean; nothing when there is one."""
    mean = sum(rank.busy for rank in ranks) / len(ranks)
    if len(ranks) == 1 or not mean:
        return {}
    number = max(range(len(ranks)), key=lambda rank: ranks[rank].busy)
    return {"slowest_rank": {"rank": number, "over_mean": ranks[number].busy / mean}}
