"""Model folders to and from others' (law 8), with what says how their patches are found (law 7)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shared.bpe.folder import copy_tokenizer
from shared.counts.files import write_counts
from shared.errors import ConfigError, IdentityError, ModelFileError
from shared.interop.described import Described, Record
from shared.interop.hf_config import check_one_threshold, objection
from shared.interop.model_card import CardFigures
from shared.interop.names import InteropError
from shared.interop.opening import open_foreign
from shared.interop.transfer import Contents
from shared.interop.writing import write_hf_folder
from shared.io.display.progress import Progress
from shared.io.display.quantities import quantity
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import file_sha256
from shared.io.files.outputs import whole_folder
from shared.layers.blocks import DTYPES
from shared.model_folder.identity import (
    CONFIG_FILE,
    ENTROPY_MODEL_FOLDER,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    canonical_settings,
    check_model,
    load_settings,
    model_sha256,
    stored_settings,
)
from shared.model_folder.tensors import write_tensors
from shared.model_settings import (
    AnyModelSettings,
    BltSettings,
    CountsSettings,
    EntropyModelSettings,
    HNetSettings,
)
from shared.patching.settings import LONGEST_PATCH, PatchingSettings
from shared.settings import refused_as
from shared.shards.manifest import EntropyModelIdentity, NumericsClass
from trainer.metrics.history import load_history
from trainer.provenance.identity import (
    IDENTITY_NAME,
    ModelIdentity,
    RunIdentity,
    RunNumerics,
    load_identity,
    model_identity,
    run_differences,
    save_identity,
)
from trainer.provenance.thresholds import one_threshold


@dataclass(frozen=True)
class ExportSettings:
    """What is chosen when a model folder becomes one of transformers."""

    theta: float | None = None
    """Nats, instead of the recorded thresholds."""
    subset: str | None = None
    """Whose threshold to take where subsets have their own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's weights; the entropy model's stay fp32."""
    shard_bytes: int = 5_000_000_000
    license: str | None = None
    """Of the weights, as the hub names it: for the model card."""


def export_hf(folder: Path, out: Path, chosen: ExportSettings, line: Progress) -> list[str]:
    """Write a model folder as one that transformers loads, tensor by tensor; returns what is not quite the same there.

    Raises ConfigError, IdentityError or ModelFileError; InteropError with the reason for what transformers cannot hold.
    """
    model, identity = load_settings(folder), model_identity(folder)
    patching = _one_threshold(identity.patching, chosen)
    entropy_model, entropy_model_identity = _entropy_model(folder / ENTROPY_MODEL_FOLDER, identity)
    record = Record(
        model=model, entropy_model=entropy_model, patching=patching, entropy_model_identity=entropy_model_identity
    )
    figures = CardFigures(
        bits_per_byte=_validated(folder, identity),
        mean_patch_size=identity.mean_patch_size,
        data=identity.data,
        license=chosen.license,
    )
    write_hf_folder(
        *(folder, out, record, DTYPES[chosen.dtype], chosen.shard_bytes),
        watch=lambda contents: with_progress(contents, line),
        figures=figures,
    )
    return list(_differences(record, chosen))


@dataclass(frozen=True)
class ImportSettings:
    """What is chosen when a folder of others becomes a model folder."""

    entropy_model: Path | None = None
    """Where the reference's entropy model is, if not in its folder."""
    theta: float | None = None
    """Nats, instead of the recorded threshold."""
    max_length: int | None = None
    """Bytes of the longest patch, instead of the recorded number; theirs have none, which is read as 65535."""


def import_foreign(folder: Path, out: Path, chosen: ImportSettings, line: Progress) -> Described:
    """Write a folder of transformers, or of the released reference, as a model folder; returns what is in it.

    Raises ModelFileError or OSError; InteropError with the reason for what our models cannot represent; DatasetError or
    IdentityError for the tokenizer of a model that reads tokens.
    """
    foreign = open_foreign(folder, chosen.entropy_model, chosen.theta)
    described = foreign.described
    if chosen.max_length is not None:
        with refused_as(InteropError, "--max-length: "):
            changed = described.patching.model_dump() | {"max_length": chosen.max_length}
            patching = PatchingSettings.model_validate(changed)
        if reason := _unfit(described, patching):
            raise InteropError(f"--max-length: the model {reason}")
        described = replace(described, patching=patching)
    sources = {str(path.relative_to(folder) if path.is_relative_to(folder) else path): path for path in foreign.files}
    with whole_folder(out) as made:
        _write_entropy_model(made / ENTROPY_MODEL_FOLDER, described.entropy_model, foreign.entropy_model, line)
        write_model(made, described.model, foreign.model, line)
        if foreign.tokenizer is not None:
            assert described.patching.tokenizer is not None, "of which it is the folder"
            copy_tokenizer(foreign.tokenizer, made / TOKENIZER_FOLDER, described.patching.tokenizer)
        identity = ModelIdentity(
            config={
                "imported": {
                    "layout": foreign.layout,
                    "sha256": {name: file_sha256(path) for name, path in sorted(sources.items())},
                }
            },
            data={},
            patching=described.patching,
            entropy_model=_imported_entropy_model(made / ENTROPY_MODEL_FOLDER, described),
            numerics=RunNumerics(
                dtype="float32", device="cpu", torch=torch.__version__, ranks=1, threads=torch.get_num_threads()
            ),
        )
        save_identity(identity, made / IDENTITY_NAME)
    return described


def _unfit(described: Described, patching: PatchingSettings) -> str | None:
    """Why an imported model cannot have patches of another longest length; None where it can."""
    if not patching.patched:
        return "has no patches of a rule"
    return described.model.objection(patching)


def _validated(folder: Path, identity: ModelIdentity) -> float | None:
    """Bits per byte of the last validation of the run that a model folder lies in; None where that is not known."""
    run = folder.parent
    try:
        recorded, history = load_identity(run / IDENTITY_NAME, RunIdentity), load_history(run)
    except (IdentityError, ConfigError, OSError):
        return None
    if run_differences(recorded, identity) or not history.validations:
        return None
    last = history.validations[-1]
    # Figures of an earlier step are not those of the model that was written at the end.
    found: float | None = last["validation"].get("bits_per_byte")
    return found if last["step"] == history.lines[-1]["step"] else None


def _one_threshold(recorded: PatchingSettings, chosen: ExportSettings) -> PatchingSettings:
    """The rule as transformers will follow it."""
    if chosen.theta is None and chosen.subset is None:
        check_one_threshold(recorded)
    return one_threshold(recorded, chosen.subset, chosen.theta)


def _entropy_model(
    folder: Path, identity: ModelIdentity
) -> tuple[EntropyModelSettings | CountsSettings | None, EntropyModelIdentity | None]:
    """The entropy model in a model folder, where its rule needs one. Raises IdentityError when it is not the recorded
    one.
    """
    recorded = identity.entropy_model
    if not identity.patching.needs_entropy or recorded is None:
        return None, None
    check_model(folder, recorded.sha256)
    settings = stored_settings(folder)
    if not isinstance(settings, EntropyModelSettings | CountsSettings):
        raise IdentityError(f"{folder} is a model of kind {settings.kind!r}, not an entropy model")
    return settings, recorded


def _differences(record: Record, chosen: ExportSettings) -> Iterable[str]:
    """What transformers will not do as we do, a line each."""
    patching, reason = record.patching, objection(record)
    if not isinstance(record.model, BltSettings):
        yield f"opens only with trust_remote_code=True: transformers has no class for {reason}"
    elif reason is not None:
        yield f"opens only with trust_remote_code=True: transformers' own class cannot be this model ({reason})"
    elif patching.max_length < LONGEST_PATCH:
        yield (
            f"transformers' own class does not cut patches longer than max_length {patching.max_length}: its cutting "
            "would change the logits of the last position. The folder's class (trust_remote_code=True) cuts them"
        )
    scored_by = record.entropy_model_identity
    if scored_by is not None and scored_by.numerics is not None and scored_by.dtype != "float32":
        yield (
            f"the data was scored in {scored_by.dtype}, the exported entropy model is float32: where the "
            "entropy is close to the threshold, patches there may begin elsewhere"
        )
    if chosen.dtype != "float32" and isinstance(record.model, HNetSettings):
        yield f"the router's weights are rounded to {chosen.dtype} like all others: some patches may end elsewhere"
    if chosen.dtype != "float32" and reason is None:
        yield (
            f"the model's weights are rounded to {chosen.dtype}, the entropy model's are not: loaded with "
            f"dtype={chosen.dtype} transformers' own class would round them, too, and patches would begin elsewhere"
        )


def _imported_entropy_model(folder: Path, described: Described) -> EntropyModelIdentity | None:
    """The recorded identity if it is this entropy model's, else one that says that nothing was scored with it yet."""
    if described.entropy_model is None:
        return None
    sha256, recorded = model_sha256(folder), described.entropy_model_identity
    if recorded is not None and recorded.sha256 == sha256:
        return recorded
    if isinstance(described.entropy_model, CountsSettings):
        return EntropyModelIdentity(sha256=sha256, numerics=None)
    return EntropyModelIdentity(
        sha256=sha256,
        numerics=NumericsClass(
            device="", dtype="float32", torch="", attention="", stream_length=4096, threads=1, probe=""
        ),
    )


def _write_entropy_model(
    folder: Path,
    settings: EntropyModelSettings | CountsSettings | None,
    contents: Contents | dict[str, np.ndarray] | None,
    line: Progress,
) -> None:
    """Its folder, where there is one."""
    if isinstance(settings, CountsSettings):
        assert isinstance(contents, dict), "a table"
        folder.mkdir(parents=True)
        write_counts(folder, settings, contents)
    elif settings is not None:
        assert isinstance(contents, tuple), "a network"
        write_model(folder, settings, contents, line)


def with_progress(contents: Contents, line: Progress) -> Contents:
    """The same, with progress shown as tensors are made."""
    plan, produce = contents
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape, dtype in plan}
    written = 0

    def shown(name: str) -> Tensor | Iterable[Tensor]:
        nonlocal written
        line.show(written / sum(sizes.values()), f"{quantity(written)}B written")
        written += sizes[name]
        return produce(name)

    return plan, shown


def finite(contents: Contents, where: str) -> Contents:
    """The same; ModelFileError, beginning ``where``, at the first tensor that has NaN or infinity in fp32."""
    plan, produce = contents

    def checked(name: str) -> Iterable[Tensor]:
        made = produce(name)
        for part in (made,) if isinstance(made, Tensor) else made:
            part = part.float() if part.dtype == torch.float64 else part  # what fp32 cannot hold becomes infinite
            if not part.isfinite().all():
                raise ModelFileError(f"{where}tensor {name} would have values that are no finite numbers")
            yield part

    return plan, checked


def write_model(folder: Path, settings: AnyModelSettings, contents: Contents, line: Progress) -> None:
    """Weights and settings of a model folder, tensor by tensor."""
    plan, produce = with_progress(contents, line)
    write_tensors(folder / WEIGHTS_FILE, plan, produce)
    write_atomic(folder / CONFIG_FILE, canonical_settings(settings))
