"""What a byte latent transformer learns from a teacher of tokens, beside the text."""

from typing import ClassVar

from pydantic import Field, model_validator

from shared.io.stores.locations import Location
from trainer.settings.section import Folder, Section


class DistillationSettings(Section):
    """The first stage of distillation: the loss is a weighted sum of three terms.

    Data of rule bpe, whose patches are the teacher's tokens, is allowed here alone.
    """

    excluded_from_identity: ClassVar[tuple[str, ...]] = ("targets", "teacher", "tokenizer")

    targets: Location | None = None
    """Folder or URL of the teacher's probabilities, which `python -m pipeline targets` writes for the data: it holds
    train/, or NAME/train/ of data.datasets. Needed for ``probabilities``."""
    teacher: Folder | None = None
    """The token model itself, a folder of transformers or one of ours of kind flat: its embedding is needed for
    ``embedding``."""
    tokenizer: Folder | None = None
    """Folder of the teacher's tokenizer; None: that of the data, of rule bpe. Of another rule's patches those learn the
    embedding that are tokens."""
    bytes: float = Field(default=1.0, ge=0, le=1e4)
    """Weight of the cross-entropy of the text, nats a target."""
    probabilities: float = Field(default=1.0, ge=0, le=1e4)
    """Weight of the divergence from the teacher's probabilities, nats a target."""
    embedding: float = Field(default=1.0, ge=0, le=1e4)
    """Weight of the square error of what the global transformer reads from the teacher's embedding of the patch, by the
    mean square of the teacher's table; a sum over patches, over the step's targets."""

    @model_validator(mode="after")
    def _has_what_it_learns(self) -> "DistillationSettings":
        if self.probabilities and self.targets is None:
            raise ValueError(
                "targets is missing, the folder of the teacher's probabilities (python -m pipeline targets); "
                "without it set probabilities = 0"
            )
        if self.embedding and self.teacher is None:
            raise ValueError("teacher is missing, the folder of the token model; without it set embedding = 0")
        if not (self.probabilities or self.embedding):
            raise ValueError("nothing is learned from a teacher: probabilities and embedding are both 0")
        return self
