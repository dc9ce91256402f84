"""Model folders of runs: written at their end, or from a checkpoint of a run that has not ended."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from shared.bpe.folder import check_tokenizer
from shared.errors import ModelFileError
from shared.io.files.path_kinds import model_folder_at
from shared.io.files.scratch import scratch
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import check_model
from shared.model_settings import AnyModelSettings
from shared.models.initialise import without_values
from shared.settings import first_problem
from trainer.checkpoints.initial_weights import check_parameters, fill_from_checkpoint, index_of, unusable
from trainer.checkpoints.new_token_rows import NewIds
from trainer.checkpoints.state import read_state
from trainer.data.run_data import RunData
from trainer.provenance.checkpoint_folders import STATE_NAME
from trainer.provenance.identity import (
    IDENTITY_NAME,
    ModelIdentity,
    RunIdentity,
    RunNumerics,
    check_causal,
    save_identity,
)
from trainer.provenance.origin import origin_of
from trainer.settings import TrainSettings

MODEL_FOLDER = "model"
"""Of a finished run."""


def write_model(
    weights: Mapping[str, Tensor],
    settings: AnyModelSettings,
    identity: RunIdentity,
    numerics: RunNumerics,
    data: RunData,
    folder: Path,
) -> None:
    """fp32 weights, settings, entropy model or tokenizer and, last, the identity that marks the folder complete.

    Raises DatasetError, IdentityError when the training split carries another entropy model or tokenizer than was
    recorded.
    """
    entropy_model = tokenizer = None
    if identity.entropy_model is not None:
        entropy_model = data.train.entropy_model
        check_model(entropy_model, identity.entropy_model.sha256)
    if identity.patching.tokenizer is not None:
        tokenizer = data.train.tokenizer
        check_tokenizer(tokenizer, identity.patching.tokenizer)
    save_model(weights, settings, folder, entropy_model, tokenizer)
    made = ModelIdentity(**dict(identity), numerics=numerics, mean_patch_size=data.mean_patch_size)
    save_identity(made, folder / IDENTITY_NAME)


@contextmanager
def model_at(path: Path) -> Iterator[Path]:
    """The model at a path as a model folder: the folder itself, that of a finished run, or one made of a checkpoint.

    Of a run that has not ended it is the best checkpoint where it keeps one, else the newest; what is made of it is
    gone afterwards. Needs the run's training split where it was, for the entropy model.

    Raises ModelFileError, CheckpointError, IdentityError, DatasetError.
    """
    if (inside := model_folder_at(path)) != path:
        yield inside
        return
    origin = origin_of(path)
    if not origin.is_checkpoint:
        yield path
        return
    with scratch("model") as made:
        folder = made / MODEL_FOLDER
        _from_checkpoint(origin.folder, folder)
        yield folder


def _from_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Raises ModelFileError when the checkpoint is damaged or not of its model, IdentityError when it predicts no text,
    before there are any parameters.
    """
    if problem := unusable(checkpoint):
        raise ModelFileError(problem)
    state = read_state(checkpoint)
    check_causal(state.identity, checkpoint)  # of the folder that is made here nothing would be left to begin with
    try:
        settings = TrainSettings.model_validate(state.config)
    except ValidationError as error:
        raise ModelFileError(f"{checkpoint / STATE_NAME}: config.{first_problem(error)}") from None
    none_new = NewIds((), settings.run.seed)
    with without_values():
        planned = build_model(settings.model)
    check_parameters(index_of(checkpoint), dict(planned.named_parameters()), checkpoint, none_new)
    model = build_model(settings.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
        fill_from_checkpoint(model, checkpoint, none_new)
    numerics = RunNumerics(
        dtype=settings.run.dtype, device="cpu", torch=torch.__version__, ranks=1, threads=settings.run.threads
    )
    data = RunData.of(settings)
    write_model(model.state_dict(), settings.model, state.identity, numerics, data, folder)
