"""Folders of small untrained models, as finished runs leave them."""

from pathlib import Path

import torch
from tiny_runs import STACK, tiny_settings

from shared.entropy_model import EntropyModel
from shared.initialise import initialise
from shared.model_files import build_model, save_model
from shared.model_identity import model_sha256
from shared.model_settings import EntropyModelSettings
from shared.patching import PatchingSettings
from shared.shards.manifest import NumericsClass, PatcherIdentity
from trainer.identity import IDENTITY_NAME, ModelIdentity, RunNumerics, save_identity

PATCHER = EntropyModelSettings(window=64, **STACK)
STREAM = 256


def numerics(stream_length: int = STREAM) -> NumericsClass:
    """What a dataset that was scored here records."""
    common = {"device": "cpu", "dtype": "float32", "torch": torch.__version__, "attention": "", "probe": ""}
    return NumericsClass(**common, stream_length=stream_length, threads=1)  # type: ignore[arg-type]


def identity_of(patching: PatchingSettings, patcher: Path | None = None) -> ModelIdentity:
    """The identity of a model that was trained on such patches."""
    return ModelIdentity(
        config={},
        data={},
        patching=patching,
        patcher=PatcherIdentity(sha256=model_sha256(patcher), numerics=numerics()) if patcher else None,
        numerics=RunNumerics(dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=1),
    )


def entropy_folder(folder: Path, seed: int = 5) -> Path:
    """An entropy model."""
    model = EntropyModel(PATCHER)
    initialise(model, seed)
    save_model(model, PATCHER, folder)
    save_identity(identity_of(PatchingSettings(rule="none")), folder / IDENTITY_NAME)
    return folder


def blt_folder(folder: Path, patching: PatchingSettings, patcher: Path | None = None) -> Path:
    """A byte latent transformer."""
    settings = tiny_settings(Path("x"), Path("y")).model
    model = build_model(settings)
    initialise(model, 0)
    save_model(model, settings, folder, patcher)
    save_identity(identity_of(patching, patcher), folder / IDENTITY_NAME)
    return folder
