"""Model folders of others with absurd settings and headers: refused in one line before anything is built or read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.interop_examples import written
from helpers.model_examples import blt, blt_settings, entropy_model, entropy_settings

from shared.errors import ModelFileError
from shared.interop.hf_config import hf_config
from shared.interop.hf_reading import read_hf_config
from shared.interop.names import InteropError
from shared.interop.opening import open_foreign
from shared.interop.reference import open_reference
from shared.interop.token_models import settings_of_config
from shared.interop.writing import write_hf_folder
from shared.model_folder.files import load_model
from shared.model_folder.identity import load_settings, model_sha256, pack_model
from shared.model_folder.tensor_header import MOST_HEADER_BYTES, file_header
from shared.model_folder.tensors import TensorFolder
from shared.patching import PatchingSettings

NO_NUMBERS: list[Any] = ["16", -1, 0, 10**9, 2**70, 1.5, None, True, [2], {}, float("nan")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    patching = PatchingSettings(rule="entropy", theta=1.5)
    record = written(folder, blt(blt_settings()), entropy_model(entropy_settings()), patching)
    write_hf_folder(folder, folder.with_name("hf"), record)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model folder to damage; its weights are a link, until a test replaces it."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_bytes((whole / "config.json").read_bytes())
    os.link(whole / "model.safetensors", made / "model.safetensors")
    return made


def set_at(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        values = values[table]
    values[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global.layers", 10**8),
        ("global.layers", 1000),
        ("global.width", 2**40),
        ("global.width", 2**62),
        ("global.heads", "2"),
        ("ngrams.rows", 2**62),
        ("ngrams.sizes", list(range(3, 200_000))),
        ("ngrams.sizes", [-1, 0]),
        ("window", 2**62),
        ("queries", 10**9),
        ("encoder.rope_theta", 1e308),
        ("encoder.norm_eps", float("nan")),
        ("kind", "../../x"),
        ("kind", ["blt"]),
        ("evil\x1b[31m\n", 1),
    ],
)
def test_absurd_settings_are_refused_before_a_model_is_built(folder: Path, key: str, value: Any) -> None:
    config = folder / "config.json"
    values = json.loads(config.read_text())
    set_at(values, key, value)
    config.write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=str(folder)) as caught:
        load_model(folder)
    assert len(str(caught.value)) < 1000


def test_more_layers_than_tensors_are_refused_before_a_model_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["global"]["layers"] = 1000
    (folder / "config.json").write_text(json.dumps(values))
    monkeypatch.delattr("shared.model_folder.files.build_model")
    for opened in (folder, pack_model(folder)):
        with pytest.raises(ModelFileError, match="layers"):
            load_model(opened)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"kind":' * 100_000, b"", b"\xff", b" " * (5 << 20), b"9" * 10**5],
    ids=["lists", "objects", "empty", "bytes", "large", "digits"],
)
def test_a_config_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_settings(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_fifo_in_a_folder_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for read in (load_model, model_sha256, pack_model):
        with pytest.raises(ModelFileError, match="not a regular file"):
            read(folder)


def test_a_device_in_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    from shared.interop.reference import TorchFile
    from shared.io.files.digests import file_sha256

    (tmp_path / "link").symlink_to("/dev/null")  # /dev/zero would not end
    with pytest.raises(OSError, match="not a regular file"):
        file_sha256(tmp_path / "link")
    with pytest.raises(InteropError, match="not a regular file"):
        TorchFile(tmp_path / "link")


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path: Path, header: bytes | dict[str, Any], data: bytes, length: int | None = None) -> None:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.unlink()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def _changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        next(entry for name, entry in header.items() if name != "__metadata__").update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed(dtype="F4"),
        _changed(dtype=5),
        _changed(shape=[2**40, 2**40]),
        _changed(shape=[-1]),
        _changed(shape=[1] * 100),
        _changed(shape="1"),
        _changed(data_offsets=[0, 2**62]),
        _changed(data_offsets=[-4, 0]),
        _changed(data_offsets=[4, 8]),
        _changed(data_offsets=[1]),
        _changed(more=1),
        lambda header: header.update(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),  # over another
        lambda header: header.update({"\x1b[31m": 1}),
        lambda header: header.clear(),
    ],
)
def test_a_header_that_does_not_fit_is_refused(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    change(header)
    put(path, header, data)
    for read in (file_header, TensorFolder):
        with pytest.raises(ModelFileError, match=str(folder)) as caught:
            read(path)
        assert "Error while" not in str(caught.value), "the library was not asked"
    with pytest.raises(ModelFileError, match=str(folder)):
        load_model(folder)
    with pytest.raises(ModelFileError, match=str(folder)):
        load_model(pack_model(folder))


@pytest.mark.parametrize("length", [0, 3, MOST_HEADER_BYTES + 1, 2**40, 2**63])
def test_a_header_of_absurd_length_is_refused(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    put(path, b"{}", b"", length)
    for read in (file_header, TensorFolder):
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            read(path)
    os.truncate(path, 2 << 30)  # a hole: it takes no room
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        file_header(path)


def test_weights_of_integers_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = {name: tensor.to(torch.int32) for name, tensor in safetensors.torch.load_file(path).items()}
    path.unlink()
    safetensors.torch.save_file(state, path)
    with pytest.raises(ModelFileError, match=r"I32.*floating-point"):
        load_model(folder)


def all_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += all_keys(value, f"{prefix}{key}.")
    return found


def test_no_value_of_a_hf_config_is_a_traceback() -> None:
    """Every key with every kind of value: it is refused as an InteropError, or means something."""
    config = hf_config(blt_settings(), entropy_settings(), 1.5)
    for key in all_keys(config):
        for value in NO_NUMBERS:
            values = json.loads(json.dumps(config))
            set_at(values, key, value)
            try:
                found = read_hf_config(values)
            except InteropError:
                continue
            assert found.model.queries <= 1024
            assert found.patching.theta == found.patching.theta


def test_a_hf_config_without_finite_threshold_is_refused_by_its_key(whole: Path, tmp_path: Path) -> None:
    values = json.loads((whole.with_name("hf") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"patching_threshold": float("nan")}))
    os.link(whole.with_name("hf") / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(InteropError, match="patching_threshold"):
        open_foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"patching_threshold": 1.0, "max_patch_length": -3}))
    with pytest.raises(InteropError, match="max_patch_length"):
        open_foreign(tmp_path)


def test_a_hf_config_of_more_layers_than_tensors_builds_nothing(whole: Path, tmp_path: Path) -> None:
    values = json.loads((whole.with_name("hf") / "config.json").read_text())
    values["global_config"]["num_hidden_layers"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(values))
    os.link(whole.with_name("hf") / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="layers"):
        open_foreign(tmp_path)


YARN = {
    "rope_theta": 10_000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "attention_factor": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "truncate": True,
    "partial_rotary_factor": 1.0,
}
TOKEN_MODEL = {
    "model_type": "llama",
    "architectures": None,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": 8,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "max_position_embeddings": 2048,
    "original_max_position_embeddings": None,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "rope_parameters": YARN,
    "rope_scaling": None,
    "quantization_config": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": YARN | {"rope_type": "llama3"}},
        {"model_type": "mistral", "rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "qwen3"},
        {"model_type": "olmo3", "rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}},
        {"model_type": "olmo3", "rope_parameters": None, "rope_scaling": YARN},
        {"model_type": "smollm3", "no_rope_layers": [1, 0], "layer_types": ["full_attention", "sliding_attention"]},
    ],
    ids=["llama", "llama3", "mistral", "qwen3", "olmo3", "old olmo3", "smollm3"],
)
def test_no_value_of_a_token_models_config_is_a_traceback(changes: dict[str, Any]) -> None:
    config = TOKEN_MODEL | changes
    assert settings_of_config(config)[0].layers == 2
    for key in all_keys(config):
        for value in [*NO_NUMBERS, 2.0**1023, 2.0**-1070]:
            values = json.loads(json.dumps(config))
            set_at(values, key, value)
            try:
                stack, _ = settings_of_config(values)
            except InteropError:
                continue
            assert stack.layers == 2


REFERENCE: dict[str, Any] = {
    "args": {
        "n_heads_local_encoder": 4,
        "n_heads_global": 4,
        "n_heads_local_decoder": 4,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-5,
        "local_attention_window_len": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_vocab": 503,
        "encoder_hash_byte_group_nb_functions": 1,
    },
    "data": {"patcher_args": {"patching_mode": "entropy", "threshold": 1.0, "max_patch_length": 64}},
}


def test_no_value_of_a_reference_folder_is_a_traceback(tmp_path: Path) -> None:
    """Tensors of odd shapes, then every key with every kind of value."""
    entropy = tmp_path / "entropy_model"
    entropy.mkdir()
    names = [
        *(f"{part}.layers.0.attention.{name}.weight" for part in ("local_encoder",) for name in ("wq", "wk")),
        "local_encoder.layers.0.feed_forward.w1.weight",
    ]
    for shape in ((), (0, 0), (4,), (4, 4, 4), (8, 8)):
        state = {name: torch.zeros(shape) for name in names}
        for path in (tmp_path, entropy):
            safetensors.torch.save_file(state, path / "model.safetensors")
        for key in all_keys(REFERENCE) if shape == (8, 8) else ["args"]:
            for value in NO_NUMBERS if shape == (8, 8) else [REFERENCE["args"]]:
                values = json.loads(json.dumps(REFERENCE))
                set_at(values, key, value)
                for path in (tmp_path, entropy):
                    (path / "params.json").write_text(json.dumps(values))
                with pytest.raises(ModelFileError, match=r"."):
                    open_reference(tmp_path)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    from shared.interop.reference import TorchFile

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "consolidated.pth"
    for content in (pickle.dumps(Hostile()), b"", b"PK", os.urandom(100)):
        path.write_bytes(content)
        with pytest.raises(InteropError, match=r"consolidated\.pth"):
            TorchFile(path)
    assert not (tmp_path / "run").exists()
