"""The data of a run: every manifest is read once, and datasets are opened from what was read.

Free of torch, and of pyarrow until a dataset is opened.
"""

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shared.model_folder.identity import stored_settings
from shared.model_settings import EntropyModelSettings
from shared.patching.credit import PatchCredit
from shared.patching.settings import PatchingSettings
from shared.shards.manifest import MANIFEST_NAME, DatasetTotals, Manifest, load_manifest
from trainer.data.packing.limits import PackLimits, credited_limits, pack_limits
from trainer.data.sampling.schedule import Mixing, targets_of_one_pass
from trainer.data.splits import TRAIN_SPLIT, VALIDATION_SPLIT, prefixed, split_folders, together
from trainer.settings import DataSettings, DistillationSettings, RunSettings, TrainSettings

if TYPE_CHECKING:  # they need pyarrow, which a finished run is recognised without, or are seldom used
    from shared.shards.cache import FileCache
    from shared.shards.dataset import Dataset
    from trainer.data.mixture import Mixture
    from trainer.data.packing.teacher import TeacherReader
    from trainer.data.patch_schedule import PatchSchedule, Phase


class RunData:
    """Both splits of the datasets that a recipe names. Everything is read when it is first asked for, and kept."""

    def __init__(
        self,
        settings: DataSettings,
        credit: PatchCredit | None = None,
        distillation: DistillationSettings | None = None,
    ) -> None:
        """``credit``: of a model that finds patches itself (`WholeModel.patch_credit`)."""
        self.mixing = Mixing(settings.weights, settings.repeats)
        self._settings, self._credit, self._distillation = settings, credit, distillation
        self._manifests: dict[str, dict[str, Manifest]] = {}

    @classmethod
    def of(cls, settings: TrainSettings) -> "RunData":
        """The data of a recipe."""
        return cls(settings.data, settings.model.patch_credit, settings.distillation)

    def folders(self, split: str) -> dict[str, Path | str]:
        """The folder of each dataset's split, by name; one alone has the name ""."""
        return split_folders(self._settings, split)

    def manifests(self, split: str) -> dict[str, Manifest]:
        """The manifest of each dataset's split, by name. Raises DatasetError."""
        if split not in self._manifests:
            self._manifests[split] = {name: load_manifest(folder) for name, folder in self.folders(split).items()}
        return self._manifests[split]

    @property
    def exists(self) -> bool:
        """Whether all training data is there; URLs are not asked."""
        folders = self.folders(TRAIN_SPLIT).values()
        return all(isinstance(folder, str) or (folder / MANIFEST_NAME).exists() for folder in folders)

    @property
    def _cut_anew(self) -> bool:
        """Whether patches are those of phases, whatever the data is stored with."""
        return bool(self._settings.patch_schedule)

    @cached_property
    def train_manifest(self) -> DatasetTotals:
        """Of all training data together. Raises DatasetError, IdentityError."""
        return together(self.manifests(TRAIN_SPLIT), self.folders(TRAIN_SPLIT), self._cut_anew)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each dataset, by split; of several by NAME/split. Raises DatasetError."""
        return {
            prefixed(name, split): manifest.fingerprint
            for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
            for name, manifest in self.manifests(split).items()
        }

    @cached_property
    def phases(self) -> "tuple[Phase, ...]":
        """Of a run whose patch size changes; none of others. Raises ConfigError, DatasetError."""
        if not self._settings.patch_schedule:
            return ()
        from trainer.data.patch_schedule import phases_of

        kept = {
            str(folder): self.manifests(split)[name]
            for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
            for name, folder in self.folders(split).items()
        }
        return phases_of(self._settings, self.train_manifest, kept, lambda: self.train)

    def schedule(self, run: RunSettings) -> "PatchSchedule | None":
        """The phases over a run, whose length in passes is one in bytes already."""
        from trainer.data.patch_schedule import PatchSchedule

        return PatchSchedule(self.phases, run) if self.phases else None

    @property
    def patching(self) -> PatchingSettings:
        """How the model will have its text cut: as the last phase does, or as the training split is."""
        return self.phases[-1].patching if self.phases else self.train_manifest.identity.patching

    @property
    def mean_patch_size(self) -> float | None:
        """In bytes, of the training split cut so; None where there are no patches."""
        if self.phases:
            return self.phases[-1].size
        size = self.train_manifest.totals.mean_patch_size
        return None if math.isnan(size) else size

    @property
    def first_patch_size(self) -> float | None:
        """The same of the first phase; None where there are no phases."""
        return self.phases[0].size if self.phases else None

    @property
    def largest_limits(self) -> PackLimits:
        """Of the phase with the most patches. Raises ConfigError, DatasetError."""
        return max((phase.limits for phase in self.phases), key=lambda limits: limits.patches or 0, default=self.limits)

    @cached_property
    def limits(self) -> PackLimits:
        """Of the packs of both splits; of a run whose patch size changes those of its last phase.

        Raises ConfigError, DatasetError.
        """
        if self.phases:
            return self.phases[-1].limits
        tokens, patches = self._settings.tokens, self._settings.patches
        if self._credit is not None:
            return credited_limits(self.train_manifest, tokens, self._credit, patches)
        found = pack_limits(self.train_manifest, tokens, patches)
        # Of a student tokens are patches.
        return found if self._distillation is None else replace(found, subwords=False)

    @cached_property
    def train(self) -> "Dataset | Mixture":
        """The training split, or those of several datasets as one. Raises DatasetError, IdentityError."""
        return self._opened(TRAIN_SPLIT)

    @cached_property
    def validation(self) -> "Dataset | Mixture":
        """The validation split in the same way."""
        return self._opened(VALIDATION_SPLIT)

    @cached_property
    def entropy_model(self) -> EntropyModelSettings | None:
        """Settings of the network that found the patches; None where a rule needs none, or the model counts.

        Raises DatasetError, ModelFileError.
        """
        if not self.train_manifest.identity.patching.needs_entropy:
            return None
        settings = stored_settings(self.train.entropy_model)
        return settings if isinstance(settings, EntropyModelSettings) else None

    @cached_property
    def teacher(self) -> "TeacherReader | None":
        """What a teacher says of the training split; None where no model is distilled.

        Raises DatasetError for targets that are missing or damaged, IdentityError for those of other text or another
        tokenizer.
        """
        if self._distillation is None:
            return None
        from trainer.data.teacher import open_teacher

        return open_teacher(self._distillation, self._datasets(TRAIN_SPLIT), self._cache)

    @cached_property
    def teacher_identity(self) -> dict[str, str] | None:
        """What a run records of its teacher (law 7); None where no model is distilled. Raises as `teacher` does."""
        if self._distillation is None:
            return None
        from trainer.data.teacher import identity_of

        return identity_of(self._distillation, list(self.folders(TRAIN_SPLIT)))

    @cached_property
    def _cache(self) -> "FileCache":
        from shared.shards.cache import FileCache, default_cache

        return FileCache(self._settings.cache or default_cache(), self._settings.cache_bytes)

    def _datasets(self, split: str) -> "dict[str, Dataset]":
        """Those of a split by name; one alone has the name ""."""
        from shared.shards.open import open_dataset

        manifests = self.manifests(split)
        return {name: open_dataset(where, self._cache, manifests[name]) for name, where in self.folders(split).items()}

    def _opened(self, split: str) -> "Dataset | Mixture":
        from trainer.data.mixture import Mixture

        datasets = self._datasets(split)
        return datasets[""] if "" in datasets else Mixture(datasets, self._cut_anew)


def with_length(settings: TrainSettings, data: RunData) -> TrainSettings:
    """A recipe whose length in passes has become one in targets. Raises ConfigError, DatasetError."""
    if settings.run.passes is None:
        return settings
    length = math.ceil(settings.run.passes * targets_of_one_pass(data.train_manifest.subsets, data.mixing))
    run = settings.run.model_copy(update={"bytes": min(length, settings.run.bytes or length)})
    return settings.model_copy(update={"run": run})
