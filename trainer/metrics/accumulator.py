"""What steps add up to between two lines of metrics."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from trainer.data.packing.packs import Pack
from trainer.optim.train_step import StepResult


@dataclass(frozen=True)
class StepRecord:
    """A step that has ended: this rank's packs, what all ranks found, and how long it took."""

    number: int
    packs: Sequence[Pack]
    result: StepResult
    lr: float
    waited: float
    """Seconds that this rank waited for packs."""
    busy: float
    """Seconds that its processor worked, or waited for packs; not those that it waited for other ranks."""


@dataclass
class RankSums:
    """What one rank has done since the last line; all numbers, since they travel as fp64."""

    tokens: float = 0.0
    patches: float = 0.0
    """All patches, as the fill rate counts them."""
    patch_room: float = 0.0
    """P_max of the packs together; 0 when unpatched."""
    own_patches: float = 0.0
    """Patches other than BOS and BOE, as the mean patch size counts them."""
    text: float = 0.0
    """Bytes of text, targets or not."""
    packs: float = 0.0
    seconds: float = 0.0
    """Of this rank's interval by its own clock; validation and saving left out."""
    waited: float = 0.0
    """Seconds of them that the rank waited for packs."""
    data: float = 0.0
    """Seconds of steps by part, as StepTimer takes them; this and the next two."""
    forward_backward: float = 0.0
    update: float = 0.0
    busy: float = 0.0
    """Seconds that the rank's processor worked on steps, or waited for packs; not those that it waited for ranks."""
    useful: float = 0.0
    """FLOPs, as Flops has them; this and the next two."""
    executed: float = 0.0
    scoring: float = 0.0
    wanted: float = 0.0
    """Boundaries that a router wanted; this and the next are 0 for models that find no patches."""
    refused: float = 0.0
    """Those of them that no credit was left for."""
    held: float = 0.0
    """Bytes, as memory_in_use has them; this and the next two."""
    reserved: float = 0.0
    peak: float = 0.0

    def add(self, step: StepRecord) -> None:
        """Add a step of this rank."""
        self.packs += len(step.packs)
        self.waited += step.waited
        self.busy += step.busy
        found = step.result.routing
        self.patches += found.patches
        self.own_patches += found.patches
        self.wanted += found.wanted
        self.refused += found.refused
        for pack in step.packs:
            self.tokens += len(pack.ids)
            self.text += int(pack.slice_text.sum())
            self.own_patches += int(pack.slice_patches.sum())
            self.patches += int(pack.in_patches.sum())
            self.patch_room += pack.limits.patches or 0

    def values(self) -> list[float]:
        """In the order of the fields."""
        return [float(value) for value in astuple(self)]


@dataclass
class Accumulator:
    """What all ranks have done since the last line, as far as every rank knows it, and this rank's own sums."""

    steps: int = 0
    nats: float = 0.0
    """Of steps that were trained on, as the next two."""
    targets: int = 0
    target_bytes: int = 0
    """Bytes."""
    skipped: int = 0
    """Steps that were not trained on."""
    lr: float = 0.0
    """Of the last step, as the gradient norms."""
    grad_norm: float = 0.0
    norms: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    """Of the loss of a model that is distilled, sums of steps that were trained on."""
    local: RankSums = field(default_factory=RankSums)

    def add(self, step: StepRecord) -> None:
        """Add a step."""
        result, whole = step.result, step.packs[0].step
        self.steps += 1
        if result.skipped is None:
            self.nats += result.nats
            self.targets += whole.targets
            self.target_bytes += whole.bytes
            self.terms = {name: self.terms.get(name, 0.0) + value for name, value in result.terms.items()}
        else:
            self.skipped += 1
        self.lr, self.grad_norm, self.norms = step.lr, result.grad_norm, result.norms
        self.local.add(step)
