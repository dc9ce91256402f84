"""Texts in memory, scored by a model folder: patched by its own entropy model, packed, and scored as a dataset is.

What evaluating a dataset of the same texts finds is found here, so that noised texts and the choices of a task need no
shards. D texts.
"""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Literal

import torch

from shared.io.files.path_kinds import model_folder_at
from shared.model_folder.files import load_model
from shared.model_folder.identity import TOKENIZER_FOLDER, load_settings
from shared.patching import PatchingSettings
from shared.shards.document import DEFAULT_SUBSET, Row
from shared.shards.in_memory import InMemoryDataset
from shared.shards.spans import Spans, spans_of
from shared.vocabulary import document_tokens
from trainer.data.validation import ValidationPacks
from trainer.evaluation.compatibility import limits_for, pack_of
from trainer.evaluation.documents import DocumentScores, evaluate
from trainer.evaluation.text_patcher import Patcher
from trainer.metrics.subset_score import total_of
from trainer.provenance.identity import model_identity
from trainer.provenance.thresholds import known_subset


class TextScorer:
    """A model, opened to score texts. Time and memory are linear in their bytes."""

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        tokens: int = 16384,
        patching: PatchingSettings | None = None,
    ) -> None:
        """A model folder, or the finished run that it belongs to.

        Args:
            tokens: of a pack; a longer text is cut on a patch boundary.
            patching: the model's rule with its thresholds under other names of subsets.

        Raises ModelFileError, IdentityError.
        """
        folder = model_folder_at(Path(folder))
        self.folder, self.device, self._tokens = folder, torch.device(device), tokens
        self.model = load_model(folder, self.device, dtype)
        self._entropy_model = None
        if load_settings(folder).reads != "bytes":
            self._entropy_model = Patcher(folder, model_identity(folder), self.device, patching)

    def bits_per_byte(self, text: str | bytes, subset: str | None = None) -> float:
        """Of one text, its end included: what `python -m trainer evaluate` prints of a file of it. NaN for no text.

        ``subset``: whose threshold cuts it, where they differ; the default threshold without. Raises ConfigError for
        one that the model does not know.
        """
        subsets = None
        if subset is not None and self._entropy_model is not None:
            subsets = [known_subset(self._entropy_model.patching, subset)]
        encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return total_of(self.score([encoded], subsets=subsets).by_subset()).bits_per_byte

    def score(
        self,
        texts: Sequence[bytes],
        from_byte: Sequence[int] | None = None,
        end: bool = True,
        subsets: Sequence[str] | None = None,
    ) -> DocumentScores:
        """Nats of each text given what comes before, any bytes; the arguments are those of ``packs``."""
        return evaluate(self.model, self.packs(texts, from_byte, end, subsets), self.device)

    def packs(
        self,
        texts: Sequence[bytes],
        from_byte: Sequence[int] | None = None,
        end: bool = True,
        subsets: Sequence[str] | None = None,
    ) -> ValidationPacks:
        """The texts as the model reads them, each a document.

        Args:
            from_byte: of each text the first byte that counts; those before it are only read. None: all count. A
                token of a tokenizer ends there.
            end: whether EOS after the text counts too.
            subsets: of each text, where thresholds differ by subset or scores are wanted by subset.

        Raises ConfigError.
        """
        for number, (text, begin) in enumerate(zip(texts, from_byte or [])):
            assert 0 <= begin <= len(text), f"text {number} has {len(text)} bytes, and counts from byte {begin}"
        documents = [document_tokens(text) for text in texts]
        model = self._entropy_model
        patching = model.patching if model else PatchingSettings(rule="none")
        lengths = model.lengths(documents, subsets, from_byte) if model else repeat(None)
        rows = [
            Row(
                id=str(number),
                subset=subsets[number] if subsets else DEFAULT_SUBSET,
                text=text,
                patch_lengths=own,
                spans=counted_spans(len(text), from_byte[number] if from_byte else 0, end),
            )
            for number, (text, own) in enumerate(zip(texts, lengths))
        ]
        dataset = InMemoryDataset(rows, patching, tokenizer=self.folder / TOKENIZER_FOLDER)
        limits = limits_for(self.model.settings, dataset, pack_of(sum(map(len, documents)), patching, self._tokens))
        return ValidationPacks(dataset, limits)


def counted_spans(size: int, begin: int, end: bool) -> Spans | None:
    """Spans of a text of ``size`` bytes that is a target from byte ``begin`` on, and EOS after it if ``end``."""
    if begin == 0 and end:
        return None
    return spans_of([(begin, None, False), (size, None, True), *([] if end else [(size, None, False)])])
