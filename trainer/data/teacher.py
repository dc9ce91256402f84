"""The teacher of a run that distils: its targets and tokens for the training data, and what identifies them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.bpe.folder import TOKENIZER_FILE, check_tokenizer, load_making
from shared.bpe.vocabulary import load_subwords
from shared.distillation.targets_folder import Targets, load_targets, open_targets
from shared.errors import ConfigError, IdentityError
from shared.interop.described import is_ours, read_json
from shared.interop.embedding import embedding_size
from shared.interop.token_teacher import teacher_sha256
from shared.io.files.digests import differences, digest, in_short
from shared.io.files.path_kinds import model_folder_at
from shared.io.stores.locations import Location, below
from shared.model_folder.identity import CONFIG_FILE, TOKENIZER_FOLDER
from shared.patching.settings import TokenizerIdentity
from shared.shards.cache import FileCache
from shared.shards.dataset import Dataset
from trainer.data.packing.teacher import SideBySide, TeacherReader
from trainer.data.splits import TRAIN_SPLIT, prefixed
from trainer.node import once_a_node
from trainer.settings import DistillationSettings


def open_teacher(settings: DistillationSettings, datasets: Mapping[str, Dataset], cache: FileCache) -> TeacherReader:
    """What is read of a teacher beside the training split, of one dataset (named "") or several.

    Raises DatasetError for what is missing or damaged, IdentityError for targets of other text, or another tokenizer
    than the patches are made of, ConfigError.
    """
    recorded = next(iter(datasets.values())).manifest.identity.patching.tokenizer
    tokenizer = _tokenizer(settings, recorded, next(iter(datasets.values()))) if settings.embedding else None
    if not settings.probabilities:
        return TeacherReader(None, tokenizer)
    assert settings.targets is not None
    found = [open_targets(_of(settings.targets, name), dataset, cache) for name, dataset in datasets.items()]
    _require_alike(found, recorded)
    if tokenizer is not None:
        _require_tokens_of(found[0], tokenizer)
    if len(found) == 1:
        return TeacherReader(found[0], tokenizer)
    ends = np.cumsum([dataset.shard_count for dataset in datasets.values()]).tolist()
    return TeacherReader(SideBySide(found, ends), tokenizer)


def _of(targets: Location, name: str) -> Location:
    """The folder of the targets of one dataset: that of its splits."""
    return below(targets, name) if name else targets


def _tokenizer(settings: DistillationSettings, recorded: TokenizerIdentity | None, dataset: Dataset) -> Path:
    folder = settings.tokenizer or (dataset.tokenizer if recorded is not None else None)
    if folder is None:
        raise ConfigError(
            f"{dataset.where} is not cut into tokens, so distillation.embedding needs distillation.tokenizer, the "
            "folder of the teacher's tokenizer; or set distillation.embedding = 0"
        )
    if recorded is not None:
        check_tokenizer(folder, recorded)
    else:
        load_making(folder)  # it is whole
    assert settings.teacher is not None
    _check_tokens(settings.teacher, folder)
    return folder


def _check_tokens(teacher: Path, tokenizer: Path) -> None:
    """Raise IdentityError unless each token of a tokenizer is that id of a teacher, whose embedding of it is learned.

    Special ids may differ, as those of chat models do. A folder without tokenizer.json is asked for its size alone.
    """
    folder = model_folder_at(teacher)
    own = folder / TOKENIZER_FOLDER if is_ours(read_json(folder / CONFIG_FILE)) else folder
    tokens, size = load_subwords(tokenizer).tokens, embedding_size(folder)
    known = load_subwords(own).tokens[:size] if (own / TOKENIZER_FILE).is_file() else tokens[:size]
    for number, token in enumerate(tokens):
        if token is not None and (number >= len(known) or known[number] != token):
            there = repr(known[number]) if number < len(known) else f"none of its {size:,}"
            raise IdentityError(
                f"distillation.teacher {teacher} has other tokens than {tokenizer}: id {number} is {token!r}, of the "
                f"teacher {there}; cut the data with the teacher's own (python -m pipeline tokenizer --from)"
            )


def _require_alike(found: Sequence[Targets], recorded: TokenizerIdentity | None) -> None:
    first = found[0].identity
    # Machines may differ: what they compute differs by rounding alone, and each folder is in the run's identity.
    kept = first.model_dump(mode="json", exclude={"numerics"})
    for other in found[1:]:
        if lines := differences(kept, other.identity.model_dump(mode="json", exclude={"numerics"})):
            raise IdentityError(
                f"{found[0].where} and {other.where} differ ({in_short(lines)}): all targets of a run must come from "
                "one teacher, made with the same options"
            )
    if recorded is not None and first.teacher.tokenizer != recorded.sha256:
        raise IdentityError(
            f"{found[0].where} comes from a teacher with another tokenizer ({first.teacher.tokenizer[:12]}) than the "
            f"data is cut by ({recorded.sha256[:12]})"
        )


def _require_tokens_of(targets: Targets, tokenizer: Path) -> None:
    """Ids of another tokenizer would be other rows of the embedding, without any sign of it in the loss."""
    wanted, found = targets.identity.teacher.tokenizer, load_making(tokenizer).sha256
    if found != wanted:
        raise IdentityError(
            f"distillation.tokenizer {tokenizer} is not the tokenizer ({found[:12]}) of the teacher of {targets.where} "
            f"({wanted[:12]})"
        )


def identity_of(settings: DistillationSettings, names: Sequence[str]) -> dict[str, str]:
    """sha256 of the targets of each dataset, and of the teacher whose embedding is learned.

    Raises DatasetError, and IdentityError where the targets come from another teacher.
    """
    found, sha256 = dict[str, str](), None
    if settings.embedding:
        assert settings.teacher is not None
        teacher = model_folder_at(settings.teacher)
        # It may be large, so that one rank of a node reads it for all.
        found["model"] = sha256 = once_a_node("teacher", lambda: teacher_sha256(teacher))
    if settings.probabilities:
        assert settings.targets is not None
        for name in names:
            where, manifest = load_targets(_of(settings.targets, name), TRAIN_SPLIT)
            made_by = manifest.identity.teacher.sha256
            if sha256 not in (None, made_by):
                raise IdentityError(
                    f"{where} comes from another teacher ({made_by[:12]}) than distillation.teacher {settings.teacher} "
                    f"({sha256[:12]}); make the targets with it, or set distillation.embedding = 0"
                )
            found[prefixed(name, "targets")] = digest(manifest.model_dump(mode="json"))
    return found
