"""Folders of small untrained models, as finished runs leave them."""

from pathlib import Path

import numpy as np
import torch

from helpers.tiny_runs import STACK, tiny_settings
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings
from shared.shards.manifest import EntropyModelIdentity, NumericsClass
from shared.vocabulary import document_tokens
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, RunNumerics, save_identity

ENTROPY_MODEL = EntropyModelSettings(window=64, **STACK)
STREAM = 256


def entropy_model_model(seed: int = 5) -> EntropyModel:
    """The entropy model of these folders."""
    model = EntropyModel(ENTROPY_MODEL)
    initialise(model, seed)
    return model


def entropy_model_scorer() -> Scorer:
    """What the pipeline would score documents with."""
    return Scorer(entropy_model_model(), STREAM)


def entropy_model_folder(folder: Path) -> Path:
    """The entropy model's files alone."""
    save_model(entropy_model_model(), ENTROPY_MODEL, folder)
    return folder


def entropy_rule(quantile: float = 0.5, rule: str = "entropy") -> PatchingSettings:
    """A rule whose threshold is this quantile of what it compares on some text, so that both decisions are common."""
    (values,) = entropy_model_scorer().score([document_tokens(bytes(range(32, 127)) * 2)])
    values = np.diff(values) if rule == "monotonic" else values
    return PatchingSettings.model_validate(
        {"rule": rule, "theta": float(np.quantile(values, quantile)), "max_length": 16}
    )


def numerics() -> NumericsClass:
    """What a dataset that was scored here records."""
    common = {"device": "cpu", "dtype": "float32", "torch": torch.__version__, "attention": "", "probe": ""}
    return NumericsClass(**common, stream_length=STREAM, threads=1)  # type: ignore[arg-type]


def identity_of(patching: PatchingSettings, entropy_model: Path | None = None) -> ModelIdentity:
    """The identity of a model that was trained on such patches."""
    return ModelIdentity(
        config={},
        data={},
        patching=patching,
        entropy_model=EntropyModelIdentity(sha256=model_sha256(entropy_model), numerics=numerics())
        if entropy_model
        else None,
        numerics=RunNumerics(dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=1),
    )


def entropy_folder(folder: Path) -> Path:
    """What a finished run of the entropy model leaves behind."""
    entropy_model_folder(folder)
    save_identity(identity_of(PatchingSettings(rule="none")), folder / IDENTITY_NAME)
    return folder


def model_folder(
    folder: Path, patching: PatchingSettings, entropy_model: Path | None, specials: tuple[str, ...] = ()
) -> Path:
    """What a finished run of a byte latent transformer leaves behind."""
    values = tiny_settings(Path("x"), Path("y")).model.model_dump(exclude={"vocabulary"})
    settings = BltSettings.model_validate(values | {"specials": specials})
    model = build_model(settings)
    initialise(model, 0)
    save_model(model, settings, folder, entropy_model)
    save_identity(identity_of(patching, entropy_model), folder / IDENTITY_NAME)
    return folder
