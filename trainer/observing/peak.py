"""What this rank's device can do at best: what utilisation is a share of."""

import time

import torch

from shared.devices import find_device
from trainer.parallel.world import DTYPES

SIZE, ROUNDS = 768, 3


def device_peak(device: torch.device, dtype: str) -> float | None:
    """FLOPs a second of large products in ``dtype``: of a GPU as listed, of this process's CPU threads as measured.

    None for a GPU that is not listed.
    """
    if device.type == "cuda":
        listed = find_device(torch.cuda.get_device_name(device))
        return listed and listed.peak(dtype)
    left = torch.ones(SIZE, SIZE, dtype=DTYPES[dtype])
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(seconds)
