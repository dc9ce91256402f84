"""Which checkpoints stay, and taking the others away so that a kill at any moment leaves a good one."""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from shared.io.files.atomic import sync
from trainer.provenance.checkpoint_folders import BEST_NAME, COMPLETE_NAME, is_complete, step_folders, step_of
from trainer.settings import CheckpointSettings


def kept(steps: Iterable[int], scores: Mapping[int, float], settings: CheckpointSettings) -> set[int]:
    """Steps whose checkpoints stay.

    ``scores`` has the validation bits per byte of those that were validated; of equal ones the earlier is better.
    """
    ordered = sorted(steps)
    stay = set(ordered[-settings.keep :]) | set(best(scores)[: settings.keep_best])
    if settings.keep_every:
        stay |= {step for step in ordered if step % settings.keep_every == 0}
    return stay


def best(scores: Mapping[int, float]) -> list[int]:
    """Steps, those with the fewest bits per byte first. NaN is no score."""
    known = {step: score for step, score in scores.items() if score == score}
    return sorted(known, key=lambda step: (known[step], step))


def tidy(folder: Path, scores: Mapping[int, float], settings: CheckpointSettings, also: Iterable[int] = ()) -> None:
    """Remove what need not stay, and what interrupted saves have left. Called when a newer checkpoint is complete.

    ``also``: steps whose checkpoints stay, whatever the settings say.
    """
    complete = [path for path in step_folders(folder) if is_complete(path)]
    stay = kept(map(step_of, complete), scores, settings) | set(also)
    for path in step_folders(folder):
        if path not in complete or step_of(path) not in stay:
            remove(path)
    if settings.keep_best and (ranked := best(scores)):
        point_to(folder / BEST_NAME, f"step-{ranked[0]:08d}")


def remove(path: Path) -> None:
    """Remove a checkpoint; at no moment does half of one look complete."""
    with suppress(FileNotFoundError):
        (path / COMPLETE_NAME).unlink()
        sync(path)
    shutil.rmtree(path)


def point_to(link: Path, name: str) -> None:
    """Make a link point to a neighbour, in one step."""
    if link.is_symlink() and os.readlink(link) == name:
        return
    temporary = link.with_name(f"{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    sync(link.parent)
