"""What a folder that others can read says about the model in it."""

from dataclasses import dataclass

from shared.model_settings import BltSettings, EntropyModelSettings, Settings
from shared.patching.settings import PatchingSettings
from shared.shards.manifest import PatcherIdentity


class Record(Settings):
    """What only our own settings say: which of two equal spellings they had, and how patches were found in training."""

    model: BltSettings
    patcher: EntropyModelSettings
    patching: PatchingSettings
    patcher_identity: PatcherIdentity


@dataclass(frozen=True)
class Described:
    """A model, its entropy model, and how patches are found, in our settings."""

    model: BltSettings
    patcher: EntropyModelSettings
    patching: PatchingSettings
    patcher_identity: PatcherIdentity | None = None
    """From our own record, where the folder has one that agrees with the rest."""
    tied: bool = False
    """The first embedding and the last projection are one tensor."""
