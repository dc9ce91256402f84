"""Opening a folder that others wrote: what it holds, and where each of our tensors comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from shared.bpe.folder import MADE_BY_FILE, TOKENIZER_FILE, check_tokenizer
from shared.counts.table import CountModel
from shared.interop.custom_module import PARTS, custom_model_type
from shared.interop.described import Described, read_json
from shared.interop.hf_reading import read_custom_config, read_hf_config
from shared.interop.names import HF, REFERENCE, InteropError, Part, folder_parts, parts
from shared.interop.reference import is_reference, open_reference
from shared.interop.transfer import COUNT_TENSORS, Contents, check, counts_of_table, join, shapes
from shared.model_folder.files import check_layers
from shared.model_folder.identity import CONFIG_FILE, TOKENIZER_FOLDER
from shared.model_folder.tensors import TensorFolder, TensorSource
from shared.model_settings import BltSettings, CountsSettings, EntropyModelSettings
from shared.settings import refused_as


@dataclass(frozen=True)
class ForeignFolder:
    """A model and its entropy model, ready to be written as ours, tensor by tensor."""

    layout: Literal["transformers", "reference"]
    described: Described
    model: Contents
    entropy_model: Contents | dict[str, np.ndarray] | None
    """A network's; the table of one that counts; None where the rule needs none."""
    files: tuple[Path, ...]
    """Everything that was read."""
    tokenizer: Path | None = None
    """The folder of the tokenizer of a model that reads tokens; it is the recorded one."""


def open_foreign(folder: Path, entropy_model: Path | None = None, theta: float | None = None) -> ForeignFolder:
    """A folder of transformers or of the reference, whichever it is; every tensor's name and shape is checked.

    Args:
        entropy_model: where the reference's entropy model is, if not in the folder.
        theta: nats, a threshold instead of the recorded one.

    Raises InteropError or ModelFileError, naming the folder or file; DatasetError or IdentityError for a tokenizer that
    is missing or another one than was recorded.
    """
    try:
        if is_reference(folder):
            return _open_reference(folder, entropy_model, theta)
        if entropy_model is not None:
            raise InteropError("the entropy model is in this folder: it is of transformers' layout")
        return _open_hf(folder, theta)
    except InteropError as error:
        shown = str(error)
        raise InteropError(shown if shown.startswith(str(folder)) else f"{folder}: {shown}") from None


def _open_hf(folder: Path, theta: float | None) -> ForeignFolder:
    path = folder / CONFIG_FILE
    values, source = read_json(path), TensorFolder(folder)
    files = (path, *source.files())
    own = values.get("model_type") in [custom_model_type(kind) for kind in PARTS]
    described = read_custom_config(values, theta) if own else read_hf_config(values, theta)
    entropy_model = described.entropy_model
    check_layers(described.model, len(source.names()), str(folder))
    model = folder_parts(described.model)
    if described.tied:
        model = _untied(model, source)
    if isinstance(entropy_model, CountsSettings):
        table = counts_of_table(source)
        CountModel(entropy_model, table, str(folder))  # refused by this folder's name where it is none
        check(source, shapes(model), COUNT_TENSORS)
        return ForeignFolder("transformers", described, join(source, model), table, files)
    if entropy_model is None:
        check(source, shapes(model))
        tokenizer = None
        if (recorded := described.patching.tokenizer) is not None:
            tokenizer = folder / TOKENIZER_FOLDER
            check_tokenizer(tokenizer, recorded)
            files = (*files, tokenizer / TOKENIZER_FILE, tokenizer / MADE_BY_FILE)
        return ForeignFolder("transformers", described, join(source, model), None, files, tokenizer)
    check_layers(entropy_model, len(source.names()), str(folder))
    within = parts(entropy_model, HF)
    check(source, shapes(model) | shapes(within))
    return ForeignFolder("transformers", described, join(source, model), join(source, within), files)


def _untied(model: Sequence[Part], source: TensorSource) -> list[Part]:
    """The same, where only one of the two tied tensors is in the file."""
    names = set(source.names())
    twins = {f"{HF.head}.weight", f"{HF.root}local_encoder.{HF.embedding}.weight"}
    there = twins & names
    return [replace(x, theirs=min(there)) if x.theirs in twins - names and there else x for x in model]


def _open_reference(folder: Path, entropy_model: Path | None, theta: float | None) -> ForeignFolder:
    with refused_as(InteropError):
        described, (blt, patcher), files = open_reference(folder, entropy_model, theta)
    assert isinstance(described.model, BltSettings), "the reference has no other"
    assert isinstance(described.entropy_model, EntropyModelSettings), "nor of entropy models"
    model, entropy_parts = parts(described.model, REFERENCE), parts(described.entropy_model, REFERENCE)
    check(blt, shapes(model))
    check(patcher, shapes(entropy_parts))
    return ForeignFolder("reference", described, join(blt, model), join(patcher, entropy_parts), files)
