"""What is at a path where something else was wanted, in a few words for an error, from names alone; free of torch."""

import errno
import os
from pathlib import Path

_MARKS = (
    ("COMPLETE", "a checkpoint of a run"),
    ("checkpoints", "a run"),
    ("model.safetensors.index.json", "a folder of transformers (import-hf makes a model folder of it)"),
    ("generation_config.json", "a folder of transformers (import-hf makes a model folder of it)"),
    ("manifest.json", "a dataset"),
    ("train/manifest.json", "the folder of a dataset's train/ and validation/"),
    ("validation/manifest.json", "the folder of a dataset's train/ and validation/"),
    ("run.json", "a run of preprocess that has not finished"),
    ("identity.json", "a model folder"),
)
"""What a folder is that has this in it; the first that is there counts."""
OTHERS = {f"is {kind}" for _, kind in _MARKS if kind != "a model folder"}
"""What `what_is` says of folders that are something else than a model folder."""


def what_is(path: Path | str) -> str:
    """ "does not exist", or "is a file", "is a run" and the like."""
    path = Path(path)
    try:
        path.stat()
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return "does not exist" if missing else f"cannot be read: {os.strerror(error.errno or 0)}"
    if not path.is_dir():
        return "is a file" if path.is_file() else "is not a folder"
    found = next((kind for mark, kind in _MARKS if (path / mark).exists()), None)
    return "is a folder of something else" if found is None else f"is {found}"


def model_folder_at(path: Path) -> Path:
    """The model folder that a path stands for: itself, or that of a finished run."""
    inside = path / "model"
    return inside if (inside / "config.json").is_file() and (inside / "model.safetensors").is_file() else path
