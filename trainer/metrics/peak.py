"""What this rank's device can do at best: what utilisation is a share of. Listed, never measured.

Products timed on a CPU differ several-fold from start to start (other processes, clock speed, a first product that is
five times slower than later ones), so a share of them says nothing. Without a listed peak the useful FLOPs per second
are shown alone.
"""

import torch

from shared.layers.devices import find_device


def listed_peak(device: torch.device, dtype: str) -> float | None:
    """FLOPs per second of dense products in ``dtype`` as the maker lists them; None for CPUs and unlisted GPUs."""
    if device.type != "cuda":
        return None
    listed = find_device(torch.cuda.get_device_name(device))
    return listed and listed.peak(dtype)
