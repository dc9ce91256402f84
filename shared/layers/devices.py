"""What accelerators can do at most, from their makers' data sheets; free of torch."""

import re
from typing import NamedTuple

MIB = 2**20
GIB = 2**30


class Device(NamedTuple):
    """A kind of accelerator."""

    name: str
    marks: tuple[str, ...]
    """Words that all occur in the name that its driver gives it."""
    gib: float
    """Memory that a process can have, about."""
    bfloat16: float
    """Peak of dense products of matrices with sums in fp32, in TFLOP/s."""
    float32: float
    """The same in fp32 (not TF32), in TFLOP/s."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.gib * GIB)

    def peak(self, dtype: str) -> float:
        """FLOP/s of products in "bfloat16" or "float32"."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}[dtype] * 1e12


DEVICES = (
    Device("B200", ("B200",), 178, 2250, 75),
    Device("H200", ("H200",), 139, 989, 67),
    Device("H100-NVL", ("H100", "NVL"), 93, 835, 60),
    Device("H100-PCIe", ("H100", "PCIe"), 79, 756, 51),
    Device("H100", ("H100",), 79, 989, 67),
    Device("A100-40GB", ("A100", "40GB"), 39, 312, 19.5),
    Device("A100", ("A100",), 79, 312, 19.5),
    Device("L40S", ("L40S",), 44, 362, 91.6),
    Device("L4", ("L4",), 22, 121, 30.3),
    Device("A10", ("A10",), 22, 125, 31.2),
    Device("RTX-5090", ("RTX", "5090"), 31, 209, 104.8),
    Device("RTX-4090", ("RTX", "4090"), 23.5, 165, 82.6),
    Device("RTX-3090", ("RTX", "3090"), 23.5, 71, 35.6),
)
"""Those with more marks before those with fewer."""


def find_device(name: str) -> Device | None:
    """The device that a driver or a user calls so ("NVIDIA H200", "h200"); None for one that is not known."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((device for device in DEVICES if words.issuperset(map(str.lower, device.marks))), None)
