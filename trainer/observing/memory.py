"""How much memory this rank holds."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its GPU, or resident in the host where it computes on the CPU."""

    held: int
    """By tensors now; on a CPU all that is resident."""
    reserved: int
    """By torch's allocator on a GPU, free blocks included; 0 on a CPU."""
    peak: int
    """The most that was ever held."""


def memory(device: torch.device) -> Memory:
    """What this rank holds now, and at most so far."""
    if device.type == "cuda":
        return Memory(
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
            torch.cuda.max_memory_allocated(device),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:  # not on Linux
        held = peak
    return Memory(held, 0, peak)
