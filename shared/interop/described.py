"""What a folder that others can read says about the model in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.interop.names import InteropError
from shared.io.files.json_reader import read_json as read_bounded_json
from shared.io.files.path_kinds import what_is
from shared.model_settings import AnyModelSettings, CountsSettings, EntropyModelSettings, ModelSettings
from shared.patching.settings import PatchingSettings
from shared.settings import Settings
from shared.shards.manifest import EntropyModelIdentity

# ---- Configurations that others wrote.


class Foreign(BaseModel):
    """Keys of others: of those that are not read here nothing is known; what is read has the type that it says."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model folder of ours, and not one of transformers."""
    return "kind" in config and "model_type" not in config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InteropError when it is not one."""
    try:
        values = read_bounded_json(path, finite=False)  # so that a schema names the key
    except FileNotFoundError:
        if path.parent.is_dir():
            raise InteropError(f"{path} is missing: {path.parent} {what_is(path.parent)}") from None
        raise InteropError(
            f"{path.parent} does not exist; of a model on the hub make a folder first: hf download NAME --local-dir DIR"
        ) from None
    except NotADirectoryError:
        raise InteropError(f"{path.parent} is a file; give the folder that it lies in") from None
    except OSError as error:
        raise InteropError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InteropError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InteropError(f"{path} is not a JSON object")
    return values


class Record(Settings):
    """What only our own settings say: which of two equal spellings they had, and how patches were found in training."""

    model: ModelSettings
    entropy_model: Annotated[EntropyModelSettings | CountsSettings, Field(discriminator="kind")] | None
    """None where the rule needs none."""
    patching: PatchingSettings
    entropy_model_identity: EntropyModelIdentity | None


@dataclass(frozen=True)
class Described:
    """A model, its entropy model, and how patches are found, in our settings."""

    model: AnyModelSettings
    entropy_model: EntropyModelSettings | CountsSettings | None
    patching: PatchingSettings
    entropy_model_identity: EntropyModelIdentity | None = None
    """From our own record, where the folder has one that agrees with the rest."""
    tied: bool = False
    """The first embedding and the last projection are one tensor."""
