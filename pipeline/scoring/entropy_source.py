"""Where the entropies of documents come from: a dataset that keeps them, or the entropy model."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.scoring.entropies import Documents, Entropies, ScoredEntropies, StoredEntropies
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import ScoringSettings
from shared.patching import PatchingSettings
from shared.shards.manifest import DatasetIdentity, NumericsClass

if TYPE_CHECKING:
    from shared.models.scoring import Scorer


class EntropySource:
    """Where entropies come from: a dataset that keeps those of the model, or the model, loaded when it is needed."""

    def __init__(self, entropy_model: Path, sha256: str, scoring: ScoringSettings, folder: Path) -> None:
        """``entropy_model``: folder of the entropy model, ``folder``: for the entropies that are scored."""
        self.sha256 = sha256
        self.numerics: NumericsClass | None = None
        """Of the entropies that were opened first."""
        self._entropy_model, self._scoring, self._folder = entropy_model, scoring, folder
        self._scorer: Scorer | None = None

    def is_kept(self, dataset: DatasetIdentity, draft: PatchingSettings) -> bool:
        """Whether a dataset's sidecar decides as the model itself would."""
        if dataset.entropy_model is None or dataset.entropy_model.sha256 != self.sha256:
            return False
        keys = {"dtype", "stream_length", "threads"}
        if dataset.entropy_model.numerics.model_dump(include=keys) != self._scoring.model_dump(include=keys):
            return False
        return dataset.decides(draft)

    def entropies(self, documents: Documents, draft: PatchingSettings) -> Entropies:
        """Those of these documents. Raises DatasetError, ModelFileError or PipelineError."""
        identity = documents.dataset.manifest.identity
        if self.is_kept(identity, draft):
            assert identity.entropy_model is not None
            self.numerics = self.numerics or identity.entropy_model.numerics
            return StoredEntropies(documents)
        if self._scorer is None:
            self._scorer, numerics = load_scorer(self._entropy_model, self._scoring)
            self.numerics = self.numerics or numerics
        return ScoredEntropies(documents, self._scorer, self._folder, draft.grid and draft.rule == "entropy")
