"""What the model of a run scores on its validation split, document by document, kept beside the run as score.json."""

import json
from math import prod
from pathlib import Path

import torch

from shared.io.files.digests import digest
from shared.model_folder.files import load_model
from shared.model_folder.identity import stored_settings
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from trainer.checkpoints.model import MODEL_FOLDER
from trainer.data.splits import VALIDATION_SPLIT, split_folders
from trainer.data.validation import ValidationPacks
from trainer.distributed.world import choose_device
from trainer.evaluation.compatibility import packs_for
from trainer.evaluation.cost import forward_flops_by_subset, scored_flops_by_subset
from trainer.evaluation.documents import DocumentScores, document_ids, evaluate
from trainer.experiments.results.records import SCORE_NAME, Score, load_score
from trainer.memory.parameters import TABLES, parameter_shapes
from trainer.metrics.subset_score import total_of
from trainer.provenance.identity import IDENTITY_NAME, RESOLVED_NAME, RunIdentity, load_identity
from trainer.provenance.json_records import keep
from trainer.settings import TrainSettings


def score_run(folder: Path) -> Score:
    """Score the model of a finished run in the packs that it was trained in, unless that is done; the score is kept.

    Raises ConfigError, DatasetError, IdentityError, ModelFileError.
    """
    identity = load_identity(folder / IDENTITY_NAME, RunIdentity).digest
    known = load_score(folder)
    if known is not None and known.run == identity:
        return known
    settings = TrainSettings.model_validate(json.loads((folder / RESOLVED_NAME).read_text()))
    dataset = open_dataset(next(iter(split_folders(settings.data, VALIDATION_SPLIT).values())))
    torch.set_num_threads(settings.run.threads)
    device, model = choose_device(settings.run), folder / MODEL_FOLDER
    packs = packs_for(model, dataset, settings.data.tokens)
    found = evaluate(load_model(model, device, settings.run.dtype), packs, device)
    score = _score(identity, settings, dataset, packs, found)
    keep(score, folder / SCORE_NAME)
    return score


def _score(
    identity: str, settings: TrainSettings, dataset: Dataset, packs: ValidationPacks, found: DocumentScores
) -> Score:
    by_subset = found.by_subset()
    total = total_of(by_subset)
    sizes = {name: prod(shape) for name, shape in parameter_shapes(settings.model).items()}
    flops, entropy_flops = scored_flops_by_subset(settings.model, packs, found), {"": 0}
    if dataset.manifest.identity.entropy_model is not None:
        entropy_flops = forward_flops_by_subset(stored_settings(dataset.entropy_model), packs)
    return Score(
        run=identity,
        documents=digest(list(document_ids(dataset))),
        parameters=sum(sizes.values()),
        table_parameters=sizes.get(TABLES, 0),
        bits_per_byte=total.bits_per_byte,
        bits_by_subset={name: score.bits_per_byte for name, score in by_subset.items() if score.bytes},
        patch_size_by_subset={name: score.bytes_per_patch for name, score in by_subset.items() if score.patches},
        document_bits=tuple(found.bits.tolist()),
        document_bytes=tuple(found.bytes.tolist()),
        bytes_per_patch=total.bytes_per_patch if total.patches else None,
        flops_per_byte=sum(flops.values()) / total.text,
        entropy_flops_per_byte=sum(entropy_flops.values()) / total.text,
    )
