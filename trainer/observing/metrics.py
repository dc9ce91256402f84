"""Figures of a run, as JSON lines and for TensorBoard. Written by the first rank only."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

METRICS_NAME = "metrics.jsonl"
LN2 = math.log(2.0)


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Bits per byte of text: all targets' nats, EOS included, over ln 2 times the bytes."""
    return nats / (LN2 * text_bytes) if text_bytes else math.nan


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this rank has held on its device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class MetricsLog:
    """RUN/metrics.jsonl and RUN/tensorboard, without the lines of steps that a resumed run does again."""

    def __init__(self, out: Path, resumed_step: int) -> None:
        path = out / METRICS_NAME
        keep_lines_up_to(path, resumed_step)
        self._lines = path.open("a")
        self._board = SummaryWriter(out / "tensorboard", purge_step=resumed_step + 1 if resumed_step else None)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """One line of figures; nested tables become tags a/b."""
        self._lines.write(json.dumps({"step": step} | figures) + "\n")
        self._lines.flush()
        for tag, value in flat(figures):
            self._board.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flush both."""
        self._lines.close()
        self._board.close()


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop lines after a step: what was logged after the last checkpoint is logged again. So do half-written ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    path.write_text("".join(kept))


def flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Nested figures as (a/b/c, value)."""
    pairs: list[tuple[str, float]] = []
    for key, value in figures.items():
        pairs += flat(value, f"{prefix}{key}/") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs
