"""Options of everything that runs an entropy model, and what they say."""

import argparse
from pathlib import Path

from pipeline.settings import PipelineError, ScoringSettings
from shared.io.found import model_folder_at
from shared.model_folder.identity import load_settings, model_sha256
from shared.model_settings import EntropyModelSettings


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of everything that runs an entropy model."""
    defaults = ScoringSettings()
    group = parser.add_argument_group("entropy model")
    group.add_argument(
        "--entropy-model",
        type=lambda text: model_folder_at(Path(text)),
        metavar="MODEL",
        help="the entropy model: its folder, or the finished run that trained it",
    )
    group.add_argument(
        "--stream-length", type=int, default=defaults.stream_length, metavar="T", help="tokens of a pass"
    )
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default=defaults.dtype, help="of the pass")
    group.add_argument("--threads", type=int, default=defaults.threads, metavar="N", help="threads of each worker")
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default=defaults.device, help="auto: cuda where there is one"
    )


def scoring_of(arguments: argparse.Namespace) -> ScoringSettings:
    return ScoringSettings(**{name: getattr(arguments, name) for name in ScoringSettings.model_fields})


def entropy_model_sha256(folder: Path | None, needed_by: str) -> str:
    """The identity of the entropy model in a folder. Raises PipelineError or ModelFileError if there is none."""
    if folder is None:
        raise PipelineError(f"{needed_by} needs --entropy-model, the folder of an entropy model")
    if not isinstance(load_settings(folder), EntropyModelSettings):
        raise PipelineError(
            f"--entropy-model {folder} holds a byte latent transformer; its entropy model is in {folder}/entropy_model"
        )
    return model_sha256(folder)
