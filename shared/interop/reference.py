"""Settings of a model in the released reference's own layout: hyper-parameters as JSON, a consolidated state dict.

FOLDER/config.json or params.json   FOLDER/model.safetensors, consolidated.safetensors or consolidated.pth
FOLDER/entropy_model/ (or a folder elsewhere) with the same two for the entropy model

Shapes are taken from the tensors; what these do not show must be among the hyper-parameters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from shared.interop.described import Described, Foreign, read_json
from shared.interop.names import REFERENCE, InteropError
from shared.io.files.json_reader import open_regular
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE
from shared.model_folder.tensors import INDEX_FILE, TensorFolder, TensorSource
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching.settings import LONGEST_PATCH, PatchingSettings
from shared.settings import refused_as

# ---- A file of torch.save as a source of tensors: read without running what is in it, mapped where the format allows.


class TorchFile:
    """The state in a torch file, which may be the value of its key 'model' or 'state_dict'."""

    def __init__(self, path: Path) -> None:
        """Raises InteropError when the file is damaged or holds anything but tensors and plain values."""
        self.path = path
        try:
            content = _load(path)
        except FileNotFoundError:
            raise InteropError(f"{path} is missing") from None
        except Exception as error:  # torch.load of a damaged file raises whatever its zip and pickle readers meet
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InteropError(f"{path} is not a torch file of plain tensors: {reason}") from None
        for key in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
                break
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
            for name, value in content.items()
        ):
            raise InteropError(f"{path} holds no state: names with their tensors are wanted")
        self._state: dict[str, Tensor] = content

    def names(self) -> list[str]:
        return sorted(self._state)

    def files(self) -> list[Path]:
        return [self.path]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._of(name).dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._of(name) if rows is None else self._of(name)[rows]

    def _of(self, name: str) -> Tensor:
        if name not in self._state:
            raise InteropError(f"{self.path}: tensor {name} is missing")
        return self._state[name]


def _load(path: Path) -> object:
    with open_regular(path) as file:
        zipped = file.read(2) == b"PK"  # files of before torch 1.6 cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


PARAMS_FILE = "params.json"
ENTROPY_FOLDER = "entropy_model"
WINDOW = 512
"""Of the reference's entropy model, whatever its hyper-parameters say."""


class _Blt(Foreign):
    n_heads_local_encoder: int
    n_heads_global: int
    n_heads_local_decoder: int
    rope_theta: float
    norm_eps: float = 1e-5
    local_attention_window_len: int
    encoder_hash_byte_group_size: list[int] = Field(max_length=1024)
    encoder_hash_byte_group_vocab: int
    encoder_hash_byte_group_nb_functions: int
    cross_attn_nheads: int | None = None
    cross_attn_window_encoder: int | None = None
    cross_attn_window_decoder: int | None = None
    downsampling_by_pooling: str | None = None
    encoder_enable_byte_ngrams: bool | None = None
    use_rope: bool | None = None


class _EntropyModel(Foreign):
    n_heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class _Patching(Foreign):
    patching_mode: str | None = None
    threshold: float | None = None
    threshold_add: float | None = None
    monotonicity: bool | None = None
    max_patch_length: int | None = None


def is_reference(folder: Path) -> bool:
    """Whether a folder is in this layout."""
    if (folder / PARAMS_FILE).is_file():
        return True
    path = folder / CONFIG_FILE
    return path.is_file() and "args" in read_json(path)


def open_reference(
    folder: Path, entropy_model: Path | None = None, theta: float | None = None
) -> tuple[Described, tuple[TensorSource, TensorSource], tuple[Path, ...]]:
    """Both models described, their tensors, and all files; ``theta`` (nats) instead of the recorded threshold.

    Raises InteropError, ModelFileError.
    """
    entropy_folder = entropy_model or folder / ENTROPY_FOLDER
    if not entropy_folder.is_dir():
        raise InteropError(f"{entropy_folder} is missing: name the entropy model's folder with --entropy-model")
    paths = [_parameters_file(folder), _parameters_file(entropy_folder)]
    values, entropy_values = (read_json(path) for path in paths)
    sources = _weights(folder), _weights(entropy_folder)
    described = Described(
        _blt(_table(values, ("args", "model"), _Blt, paths[0]), sources[0]),
        _entropy_model(_table(entropy_values, ("entropy_model", "args", "model"), _EntropyModel, paths[1]), sources[1]),
        _patching([entropy_values, values], theta, paths[1]),
    )
    files = (*paths, *(path for source in sources for path in source.files()))
    return described, sources, files


def _blt(values: _Blt, source: TensorSource) -> BltSettings:
    stacks = {
        name: _stack(source, f"{prefix}.", heads, values.rope_theta, values.norm_eps)
        for name, prefix, heads in (
            ("encoder", "local_encoder", values.n_heads_local_encoder),
            ("global", "global_transformer", values.n_heads_global),
            ("decoder", "local_decoder", values.n_heads_local_decoder),
        )
    }
    for key, wanted in (
        ("cross_attn_nheads", {None, values.n_heads_local_encoder} & {None, values.n_heads_local_decoder}),
        ("cross_attn_window_encoder", {None}),
        ("cross_attn_window_decoder", {None}),
        ("downsampling_by_pooling", {None, "max"}),
        ("encoder_enable_byte_ngrams", {None, False}),
        ("use_rope", {None, True}),
    ):
        if (found := getattr(values, key)) not in wanted:
            raise InteropError(f"{key} {found!r} is not supported")
    crosses = _count(source, "local_decoder.cross_attn_layers.")
    widened = _matrix(source, "local_encoder.patch_embedding_projection.weight")
    return BltSettings.model_validate(
        {
            "ngrams": {
                "sizes": values.encoder_hash_byte_group_size,
                "rows": values.encoder_hash_byte_group_vocab,
                "functions": values.encoder_hash_byte_group_nb_functions,
            },
            "window": values.local_attention_window_len,
            "queries": widened[0] // widened[1],
            "encoder_cross_all_layers": _count(source, "local_encoder.cross_attn_layers.") > 1,
            "decoder_cross_all_layers": crosses == stacks["decoder"]["layers"],
        }
        | stacks
    )


def _entropy_model(values: _EntropyModel, source: TensorSource) -> EntropyModelSettings:
    stack = _stack(source, "", values.n_heads, values.rope_theta, values.norm_eps)
    return EntropyModelSettings.model_validate(stack | {"window": WINDOW})


def _patching(places: list[dict[str, Any]], theta: float | None, path: Path) -> PatchingSettings:
    """The rule from the first of several tables that has one, with its threshold or the given one."""
    tables = [data.get("patcher_args") for values in places if isinstance(data := values.get("data"), dict)]
    values = _validated(next((table for table in tables if table), {}), _Patching, path)
    if values.patching_mode not in (None, "entropy"):
        raise InteropError(f"{path}: patching_mode {values.patching_mode!r} is not supported, only 'entropy' is")
    theta = values.threshold if theta is None else theta
    if theta is None:
        raise InteropError(f"{path} has no data.patcher_args.threshold: give --theta")
    rule: dict[str, Any] = {"rule": "entropy"}
    if values.monotonicity:
        rule = {"rule": "monotonic", "reference_starts": True}
    elif values.threshold_add is not None:
        rule = {"rule": "entropy_rise", "theta_rise": values.threshold_add, "reference_starts": True}
    longest = min(values.max_patch_length or LONGEST_PATCH, LONGEST_PATCH)
    return PatchingSettings.model_validate(rule | {"theta": theta, "max_length": longest})


def _stack(source: TensorSource, prefix: str, heads: int, rope_theta: float, norm_eps: float) -> dict[str, Any]:
    layer = f"{prefix}layers.0."
    attention = f"{layer}{REFERENCE.attention}."
    queries = f"{attention}{REFERENCE.qkv[0]}.weight"
    query_rows, width = _matrix(source, queries)
    if query_rows != width:
        raise InteropError(f"tensor {queries} has {query_rows} rows of {width}: heads must fill the width (head_dim)")
    key_rows = _matrix(source, f"{attention}{REFERENCE.qkv[1]}.weight")[0]
    return {
        "width": width,
        "layers": _count(source, f"{prefix}layers."),
        "heads": heads,
        "kv_heads": key_rows * heads // width,
        "feed_forward": _matrix(source, f"{layer}{REFERENCE.feed_forward}.{REFERENCE.gate_up[0]}.weight")[0],
        "rope_theta": rope_theta,
        "norm_eps": norm_eps,
    }


def _matrix(source: TensorSource, name: str) -> tuple[int, int]:
    """The shape of a tensor that must be a matrix. Raises InteropError."""
    shape = source.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise InteropError(f"tensor {name} has shape {list(shape)}, a matrix is expected")
    return shape[0], shape[1]


def _count(source: TensorSource, prefix: str) -> int:
    """How many numbered layers there are behind a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in source.names() if name.startswith(prefix)})


P = TypeVar("P", bound=Foreign)


def _table(values: Mapping[str, Any], keys: tuple[str, ...], schema: type[P], path: Path) -> P:
    """The hyper-parameters under the first key that is there, or at the top."""
    return _validated(next((values[key] for key in keys if isinstance(values.get(key), dict)), values), schema, path)


def _validated(values: Mapping[str, Any], schema: type[P], path: Path) -> P:
    with refused_as(InteropError, f"{path}: "):
        return schema.model_validate(values)


def _parameters_file(folder: Path) -> Path:
    for name in (PARAMS_FILE, CONFIG_FILE):
        if (folder / name).is_file():
            return folder / name
    raise InteropError(f"{folder}: neither {PARAMS_FILE} nor {CONFIG_FILE} is there")


def _weights(folder: Path) -> TensorFolder | TorchFile:
    if (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file():
        return TensorFolder(folder)
    for name in ("consolidated.safetensors", "consolidated.pth"):
        if (folder / name).is_file():
            return TensorFolder(folder / name) if name.endswith(".safetensors") else TorchFile(folder / name)
    raise InteropError(f"{folder}: neither {WEIGHTS_FILE} nor consolidated.safetensors nor consolidated.pth is there")
