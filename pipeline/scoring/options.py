"""Options of everything that runs an entropy model, and what they say."""

import argparse
from pathlib import Path

from pipeline.options import add_options, option_of
from pipeline.settings import PipelineError, ScoringSettings
from shared.counts.files import made_sha256
from shared.io.display.log import LOG
from shared.io.files.path_kinds import model_folder_at
from shared.io.programs.command_line import path_option
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, model_sha256, stored_settings
from shared.model_settings import CountsSettings, EntropyModelSettings

OPTIONS: dict[str, tuple[str | None, str]] = {
    "stream_length": ("T", "tokens of a pass"),
    "dtype": (None, "of the pass"),
    "threads": ("N", "threads of each worker"),
    "device": (None, "auto: cuda where there is one"),
}


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of everything that runs an entropy model."""
    group = parser.add_argument_group("entropy model", "one that counts has no use for the other options")
    group.add_argument(
        "--entropy-model",
        type=lambda text: model_folder_at(path_option(text)),
        metavar="MODEL",
        help="the entropy model: its folder, or the finished run that trained it",
    )
    add_options(group, ScoringSettings, OPTIONS)


def entropy_model_sha256(folder: Path | None, needed_by: str) -> str:
    """The identity of the entropy model in a folder. Raises PipelineError or ModelFileError if there is none."""
    if folder is None:
        raise PipelineError(f"{needed_by} needs --entropy-model, the folder of an entropy model")
    settings, own = stored_settings(folder), folder / ENTROPY_MODEL_FOLDER
    if not isinstance(settings, EntropyModelSettings | CountsSettings):
        inside = f"; its entropy model is in {own}" if own.is_dir() else ""
        raise PipelineError(
            f"--entropy-model {folder} holds a model of kind {settings.kind!r}, no entropy model{inside}"
        )
    return made_sha256(folder) if isinstance(settings, CountsSettings) else model_sha256(folder)


def scoring_of(folder: Path, scoring: ScoringSettings) -> ScoringSettings | None:
    """How the entropy model in a folder is run; None for one that counts, which looks up. Raises ModelFileError.

    What was asked for in vain is said.
    """
    if not isinstance(stored_settings(folder), CountsSettings):
        return scoring
    usual = ScoringSettings().model_dump()
    unused = [option_of(key) for key, value in scoring.model_dump().items() if value != usual[key]]
    if unused:
        LOG.info(f"no effect of {', '.join(unused)}: {folder} counts, and has the same entropies on every machine")
    return None
