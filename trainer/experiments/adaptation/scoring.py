"""What the model of a run scores on held-out text that it cuts itself, document by document."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch

from shared.io.files.digests import digest
from shared.model_folder.files import load_model
from shared.shards.in_memory import whole_documents
from shared.shards.open import open_dataset
from trainer.checkpoints.model import MODEL_FOLDER
from trainer.data.splits import VALIDATION_SPLIT
from trainer.distributed.world import choose_device
from trainer.evaluation.compatibility import cut_again, packs_for
from trainer.evaluation.documents import evaluate
from trainer.experiments.adaptation.record import SCORES_NAME, RunScores, TextScore
from trainer.metrics.subset_score import total_of
from trainer.provenance.identity import IDENTITY_NAME, RunIdentity, load_identity
from trainer.provenance.json_records import keep, kept
from trainer.settings import TrainSettings

MOST_BYTES = 64 * 1024
"""Of a text that are scored, about: every run scores old text beside its own."""


def score_texts(folder: Path, settings: TrainSettings, texts: Mapping[str, Path]) -> RunScores:
    """Score the model of a finished run on the validation split of each corpus, unless that is done; scores are kept.

    The model finds the patches with the entropy model and the thresholds in its folder, as `evaluate --recut` does, so
    that a new entropy model counts on old text, too.

    Raises ConfigError, DatasetError, IdentityError, ModelFileError.
    """
    identity = load_identity(folder / IDENTITY_NAME, RunIdentity).digest
    known = kept(folder / SCORES_NAME, RunScores)
    found = RunScores(run=identity, texts={}) if known is None or known.run != identity else known
    torch.set_num_threads(settings.run.threads)
    for name, corpus in texts.items():
        if name not in found.texts:
            score = _score(folder / MODEL_FOLDER, settings, corpus)
            found = found.model_copy(update={"texts": found.texts | {name: score}})
            keep(found, folder / SCORES_NAME)
    return found


def _score(model: Path, settings: TrainSettings, corpus: Path) -> TextScore:
    dataset, device = open_dataset(corpus / VALIDATION_SPLIT), choose_device(settings.run)
    # Documents of a language lie beside one another: every k-th is of all of them.
    rows = list(islice(whole_documents(dataset), None, None, -(-dataset.totals.bytes // MOST_BYTES)))
    packs = packs_for(model, cut_again(model, rows, device, dataset.where), settings.data.tokens)
    found = evaluate(load_model(model, device, settings.run.dtype), packs, device)
    total = total_of(found.by_subset())
    return TextScore(
        documents=digest([row.id for row in rows]),
        document_bits=tuple(found.bits.tolist()),
        document_bytes=tuple(found.bytes.tolist()),
        bits_per_byte=total.bits_per_byte,
        bytes_per_patch=total.bytes_per_patch,
    )
