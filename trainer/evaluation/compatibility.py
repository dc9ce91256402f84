"""A model folder on documents: whether they belong together, cutting them anew, and what the model scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from shared.errors import IdentityError
from shared.io.files.digests import in_short
from shared.layers.tile_sizes import BAND
from shared.model_folder.files import load_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER, load_settings
from shared.model_settings import AnyModelSettings, specials_of
from shared.patching import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.in_memory import Documents, InMemoryDataset, whole_documents
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity
from trainer.data.packing.limits import PackLimits, credited_limits, pack_limits
from trainer.data.patch_schedule import totals_of
from trainer.data.recut_lengths import RecutLengths
from trainer.data.source import PatchTotals
from trainer.data.validation import ValidationPacks
from trainer.evaluation.documents import DocumentScores, evaluate
from trainer.evaluation.text_patcher import Patcher
from trainer.provenance.identity import model_identity
from trainer.provenance.run_checks import check_specials
from trainer.provenance.thresholds import patching_for, thresholds


def score_folder(
    folder: Path, dataset: Documents, tokens: int, device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> DocumentScores:
    """Scores of the model in a folder, in packs of so many tokens.

    Raises ModelFileError, IdentityError when the dataset is not cut as the model cuts, ConfigError.
    """
    packs = packs_for(folder, dataset, tokens)
    return evaluate(load_model(folder, device, dtype), packs, device)


def packs_for(folder: Path, dataset: Documents, tokens: int, name: str | None = None) -> ValidationPacks:
    """Documents in packs of so many tokens, for the model in a folder. One that reads bytes alone uses no patches.

    ``name``: of the dataset in the model's recipe whose thresholds these subsets have (`patching_for`).

    Raises ModelFileError, IdentityError when the dataset is not cut as the model cuts, ConfigError.
    """
    model = load_settings(folder)
    if isinstance(dataset, InMemoryDataset):
        patching = dataset.patching
        inputs = dataset.totals.tokens + dataset.totals.documents
        tokens = pack_of(inputs, patching, tokens)
    else:
        check_fits(folder, dataset, name)
        if (trained := patching_from_entropies(folder, dataset, name)) is not None:
            size = model_identity(folder).mean_patch_size or 1.0
            limits = pack_limits(totals_of(trained, dataset.totals, size), tokens)
            return ValidationPacks(dataset, limits, recut=RecutLengths(dataset, [trained]))
    return ValidationPacks(dataset, limits_for(model, dataset, tokens))


def limits_for(model: AnyModelSettings, dataset: PatchTotals, tokens: int) -> PackLimits:
    """Of packs of so many tokens as a model reads them: without the patches of the dataset where it reads bytes alone.

    Raises ConfigError when they are too small.
    """
    if model.patch_credit is not None:
        return credited_limits(dataset, tokens, model.patch_credit)
    return PackLimits(tokens, None) if model.reads == "bytes" else pack_limits(dataset, tokens)


def check_fits(folder: Path, dataset: Documents, name: str | None = None) -> None:
    """Raise ConfigError or IdentityError unless the model in a folder reads a dataset as it is; quick.

    Documents in memory were cut for their model.
    """
    model = load_settings(folder)
    if model.reads != "bytes" and not isinstance(dataset, InMemoryDataset):
        check_specials(specials_of(model), dataset.specials, dataset.where)
        if patching_from_entropies(folder, dataset, name) is None:
            check_patches(folder, dataset, name)


def patching_from_entropies(folder: Path, dataset: Documents, name: str | None = None) -> PatchingSettings | None:
    """The rule of a model whose patch size changed while it was trained, where a dataset keeps the entropies that find
    its patches; what is stored may be of any threshold. None for other models and datasets.
    """
    if load_settings(folder).reads == "bytes" or isinstance(dataset, InMemoryDataset):
        return None
    identity, found = model_identity(folder), dataset.manifest.identity
    if not identity.phases or entropy_model_differences(found, identity.entropy_model):
        return None
    trained = patching_for(identity, dataset, name)
    return trained if found.sidecar != "none" and found.decides(trained) else None


def pack_of(inputs: int, patching: PatchingSettings, most: int) -> int:
    """Tokens of a pack for texts of so many inputs together: a few short ones are not padded to a long pack."""
    return min(most, max(-(-inputs // BAND) * BAND, patching.max_length + 2))


def cut_again(
    folder: Path,
    rows: Sequence[Row],
    device: torch.device,
    where: str,
    specials: tuple[str, ...] = (),
    patching: PatchingSettings | None = None,
) -> InMemoryDataset:
    """Whole documents, cut with the model's own rule, thresholds and entropy model; in memory.

    Args:
        patching: the model's rule with thresholds under the names of these subsets (`patching_for`).

    Raises ModelFileError, IdentityError, ConfigError for special ids that the model does not know.
    """
    model = load_settings(folder)
    if model.reads == "bytes":
        patching = PatchingSettings(rule="none")
        rows = [replace(row, patch_lengths=None) for row in rows]
    else:
        check_specials(specials_of(model), specials, where)
        entropy_model = Patcher(folder, model_identity(folder), device, patching)
        patching = entropy_model.patching
        lengths = entropy_model.lengths([row.tokens(True) for row in rows], [row.subset for row in rows])
        rows = [replace(row, patch_lengths=own) for row, own in zip(rows, lengths)]
    return InMemoryDataset(rows, patching, specials, folder / TOKENIZER_FOLDER, where)


def recut_dataset(folder: Path, dataset: Dataset, device: torch.device, name: str | None = None) -> InMemoryDataset:
    """The documents of a dataset, however it is patched, cut as the model cuts.

    Raises DatasetError and what `cut_again` raises.
    """
    patching = None
    if load_settings(folder).reads != "bytes":
        patching = patching_for(model_identity(folder), dataset, name)
    specials = dataset.specials
    return cut_again(folder, list(whole_documents(dataset)), device, dataset.where, specials, patching)


def check_patches(folder: Path, dataset: Dataset, name: str | None = None) -> None:
    """Raise IdentityError unless a dataset is cut as the model in a folder cuts it (law 7), with the way out.

    Thresholds count for the subsets that the dataset has. ``name``: as for `patching_for`.
    """
    identity = model_identity(folder)
    trained, found = patching_for(identity, dataset, name), dataset.manifest.identity
    lines = rule_differences(found.patching, trained, tuple(dataset.subsets))
    lines += entropy_model_differences(found, identity.entropy_model) if trained.needs_entropy else []
    if lines:
        command = recut_command(folder, dataset, trained, identity.entropy_model)
        raise IdentityError(
            f"{dataset.where} is not cut into patches as {folder} was trained: {in_short(lines, ', ', 3)}. Score its "
            f"text cut by the model itself with --recut, or cut a dataset so: {command}"
        )


def rule_differences(found: PatchingSettings, trained: PatchingSettings, subsets: tuple[str, ...]) -> list[str]:
    """Where two rules differ for some subsets, a few words each; of another rule nothing else is listed."""
    if trained.rule != found.rule:
        return [f"rule {found.rule}, not {trained.rule}"]
    apart = {"thetas", "tokenizer", "grid", "whole_characters"}
    ours, theirs = (rule.model_dump(mode="json", exclude=apart) for rule in (trained, found))
    if subsets:
        ours["theta"], theirs["theta"] = None, None  # of these subsets below
    lines = [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]]
    if trained.whole_characters != found.whole_characters:
        lines.append(f"whole_characters {found.whole_characters}, not {trained.whole_characters}")
    if trained.tokenizer != found.tokenizer:
        lines.append("another tokenizer")
    if not lines and found.grid != trained.grid:
        lines.append("thresholds on the sidecar grid on one side only")
    pairs = zip(subsets, thresholds(found, subsets), thresholds(trained, subsets))
    lines += [f"theta of {subset} {stored}, not {own}" for subset, stored, own in pairs if stored != own]
    return lines


def entropy_model_differences(found: DatasetIdentity, trained: EntropyModelIdentity | None) -> list[str]:
    """Where the entropy models differ, a few words each."""
    theirs = found.entropy_model
    if trained is None or theirs is None:
        return [] if trained is theirs else ["an entropy model on one side only"]
    if theirs.sha256 != trained.sha256:
        return [f"entropy model {theirs.sha256[:12]}, not {trained.sha256[:12]}"]
    if trained.numerics is None or theirs.numerics is None or not trained.numerics.probe:
        return []  # it counts, or was imported and scored nothing so far
    ours, other = trained.numerics.model_dump(), theirs.numerics.model_dump()
    return [f"scored with {key} {other[key]}, not {ours[key]}" for key in ours if ours[key] != other[key]]


def recut_command(
    folder: Path, dataset: Dataset, trained: PatchingSettings, entropy_model: EntropyModelIdentity | None
) -> str:
    """The command that cuts a dataset anew as a model cuts."""
    run = "python -m pipeline"
    if trained.tokenizer is not None:
        return f"{run} recut {dataset.where} --rule bpe --tokenizer {folder / TOKENIZER_FOLDER} --out NEW"
    lengths = f" --min-length {trained.min_length} --max-length {trained.max_length}"
    if trained.whole_characters:
        lengths += " --whole-characters"
    if not trained.needs_entropy:
        stride = f" --stride {trained.stride}" if trained.stride else ""
        return f"{run} recut {dataset.where} --rule {trained.rule}{stride}{lengths} --out NEW"
    begin = f"{run} preprocess {dataset.where} --entropy-model {folder / ENTROPY_MODEL_FOLDER}"
    scored = None if entropy_model is None else entropy_model.numerics
    if scored is not None and scored.probe:
        begin += f" --stream-length {scored.stream_length} --threads {scored.threads} --dtype {scored.dtype}"
    if trained.thetas:
        return f"{begin} --patching FILE --out NEW (FILE: what calibrate wrote for the model's data)"
    rise = "" if trained.theta_rise is None else f" --theta-rise {trained.theta_rise}"
    return f"{begin} --rule {trained.rule} --theta {trained.theta}{rise}{lengths} --out NEW"
