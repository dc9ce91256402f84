"""One checkpoint read with other thresholds than it was trained with: quality against cost, as one file. Free of torch.

`python -m trainer sweep` writes it; tables and pictures are made from it alone.
"""

import re
from pathlib import Path

from pydantic import Field

from shared.io.files.outputs import Output
from shared.patching.settings import PatchingSettings
from shared.settings import Settings
from trainer.provenance.json_records import Value, expected

SWEEP_NAME = "sweep.json"
SWEEP = re.compile(rb'\{\n "model": "[^\n]*",\n "sha256": "[0-9a-f]{64}",\n "data": ')
"""How the file begins, by which `shared.io.files.outputs.Output` knows it."""


class SweepPoint(Settings):
    """The whole split, cut with one threshold and scored."""

    theta: Value
    """Nats, the default threshold; where subsets have their own, all are moved by ``shift``."""
    shift: Value
    """Nats above the threshold that the model was trained with."""
    trained: bool
    """Whether this is the threshold that the model was trained with."""
    bits_per_byte: Value
    bytes_per_patch: Value
    """Text bytes over patches other than BOS."""
    flops_per_byte: Value
    """Useful FLOPs of a forward pass, a byte of text; without the entropy model."""


class ThresholdSweep(Settings):
    """Points in ascending order of theta; one of them is the trained one."""

    model: str
    """Where the model was."""
    sha256: str
    """Of the model."""
    data: str
    """Where the dataset was."""
    fingerprint: str
    """Of the dataset."""
    patching: PatchingSettings
    """As the model was trained with it."""
    documents: int
    bytes: int
    """Of text that is scored."""
    entropy_flops_per_byte: Value
    """Of the entropy model's forward pass, a byte of text: the same for every threshold."""
    points: tuple[SweepPoint, ...] = Field(min_length=1)

    @property
    def trained(self) -> SweepPoint:
        """The point of the threshold that the model was trained with."""
        return next(point for point in self.points if point.trained)


def load_sweep(path: Path) -> ThresholdSweep:
    """A sweep from its file. Raises ConfigError when it is missing, or is none."""
    return expected(path, ThresholdSweep, "python -m trainer sweep")


def save_sweep(sweep: ThresholdSweep, out: Output) -> None:
    """Write the file in one step."""
    out.write(sweep.model_dump_json(indent=1) + "\n")
