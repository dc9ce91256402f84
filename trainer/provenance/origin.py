"""What a run can begin with: a model folder, a checkpoint of any run, or a run, which stands for its checkpoint.

Free of torch.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shared.errors import ModelFileError
from shared.io.files.digests import digest
from shared.model_folder.identity import load_settings, model_sha256
from shared.model_settings import AnyModelSettings, ModelSettings
from trainer.provenance.checkpoint_folders import (
    BEST_NAME,
    COMPLETE_NAME,
    STATE_NAME,
    contents_of,
    difference,
    is_complete,
    other_format,
    read_small,
    step_folders,
)

_ADAPTER: TypeAdapter[AnyModelSettings] = TypeAdapter(ModelSettings)


@dataclass(frozen=True)
class Origin:
    """A folder with parameters."""

    folder: Path
    is_checkpoint: bool
    """Otherwise a model folder."""

    @cached_property
    def settings(self) -> AnyModelSettings:
        """Of the model. Raises ModelFileError."""
        if not self.is_checkpoint:
            return load_settings(self.folder)
        state = self.folder / STATE_NAME
        with suppress(OSError, ValidationError):  # said when all files are checked
            record = contents_of(self.folder).files.get(STATE_NAME)
            if record is not None and (problem := difference(state, record)):
                raise ModelFileError(f"start.model {self.folder} is damaged ({problem})")
        try:
            return _ADAPTER.validate_python(json.loads(read_small(state))["config"]["model"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ModelFileError(f"{state} does not say what model it belongs to") from None

    @cached_property
    def sha256(self) -> str:
        """Of a model folder its sha256; of a checkpoint one of the sha256 of all its files, which are checked when it
        is read. Raises ModelFileError.
        """
        if not self.is_checkpoint:
            return model_sha256(self.folder)
        if problem := other_format(self.folder):
            raise ModelFileError(problem)
        path = self.folder / COMPLETE_NAME
        try:
            contents = contents_of(self.folder)
        except (OSError, ValidationError):
            raise ModelFileError(f"{path} is not what a save has written") from None
        return digest({name: record.sha256 for name, record in contents.files.items()})


def origin_of(path: Path) -> Origin:
    """What a folder is. Of a run the best checkpoint where it keeps one, else the newest.

    Raises ModelFileError when it is nothing to begin with.
    """
    if is_complete(path):
        return Origin(path, True)
    saved = path / "checkpoints"
    if saved.is_dir():
        best = saved / BEST_NAME
        complete = [folder for folder in step_folders(saved) if is_complete(folder)]
        if is_complete(best):
            return Origin(best.resolve(), True)
        if not complete:
            raise ModelFileError(f"{saved} has no complete checkpoint to begin with")
        return Origin(complete[-1], True)
    if (path / STATE_NAME).exists():
        raise ModelFileError(f"{path} is no complete checkpoint: {COMPLETE_NAME} is missing")
    return Origin(path, False)
