"""`export-hf` and `import-hf` of other kinds than byte latent transformers: the way there and back byte for byte."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.custom_classes import modules_below, opened
from helpers.interop_examples import unlike_fresh
from helpers.model_examples import (
    any_model,
    entropy_settings,
    flat_settings,
    hnet_settings,
    megabyte_settings,
    spacebyte_settings,
)
from helpers.model_folders import identity_of

from shared.model_folder.files import save_model
from shared.model_settings import AnyModelSettings
from shared.patching import PatchingSettings
from shared.vocabulary import BOS, EOS, byte_tokens
from trainer.__main__ import main
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.provenance.identity import IDENTITY_NAME, model_identity, save_identity

UNPATCHED = PatchingSettings(rule="none")
TABLES = {"sizes": (2, 4), "rows": 53}
MODELS: dict[str, tuple[AnyModelSettings, PatchingSettings]] = {
    "flat": (flat_settings(window=30, ngrams=TABLES), UNPATCHED),
    "entropy": (entropy_settings(newline_reset=True), UNPATCHED),
    "hnet": (hnet_settings(), UNPATCHED),
    "megabyte": (megabyte_settings(), PatchingSettings(rule="static", stride=4, max_length=64)),
    "spacebyte": (spacebyte_settings(), PatchingSettings(rule="space", max_length=16)),
}
GENERATED = ("entropy", "hnet")
"""What our own generator can write with."""


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def made(folder: Path, name: str) -> Path:
    """What a finished run of such a model leaves behind."""
    settings, rule = MODELS[name]
    model = any_model(settings)
    unlike_fresh(model, seed=2)
    save_model(model, settings, folder)
    save_identity(identity_of(rule), folder / IDENTITY_NAME)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_byte_for_byte(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "model", name)
    assert run("export-hf", folder, tmp_path / "hf") == 0
    kind = f"model of kind '{MODELS[name][0].kind}'"
    assert f"opens only with trust_remote_code=True: transformers' own class cannot be this model (a {kind})" in (
        capsys.readouterr().out
    )
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 0
    assert kind in capsys.readouterr().out
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes(), file
    assert model_identity(tmp_path / "back").patching == MODELS[name][1]


@pytest.mark.parametrize("name", GENERATED)
def test_the_class_of_the_folder_writes_what_our_generator_writes(name: str, tmp_path: Path) -> None:
    folder, prompt = made(tmp_path / "model", name), b"some text\nand "
    assert run("export-hf", folder, tmp_path / "hf") == 0
    ids = torch.tensor([[BOS, *byte_tokens(prompt).tolist()]])
    with modules_below(tmp_path / "modules"):
        theirs = opened(tmp_path / "hf").generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
    (ours,) = Generator(folder).texts([prompt], GenerateSettings(length=40, sampling=SamplingSettings(temperature=0)))
    assert byte_tokens(ours).tolist() == [token for token in theirs if token != EOS]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "patchwork_blt"}, "model_type is 'patchwork_blt'"),
        ({"patchwork": None}, "patchwork: "),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"record": {"patching": {"rule": "space"}}}, "patchwork.patching: the model trains on unpatched shards"),
        ({"record": {"model": {"kind": "flat", "width": 30, "layers": 1, "heads": 4}}}, "patchwork: .*width 30"),
    ],
)
def test_a_folder_that_others_have_changed_is_refused_by_the_key(
    tmp_path: Path, change: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export-hf", made(tmp_path / "model", "flat"), tmp_path / "hf") == 0
    path = tmp_path / "hf/config.json"
    config = json.loads(path.read_text())
    config["patchwork"] |= change.pop("record", {})
    path.write_text(json.dumps(config | change))
    capsys.readouterr()
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 2
    error = capsys.readouterr().err
    assert re.search(named, error)
    assert error.count("\n") == 1, error
    assert not (tmp_path / "back").exists()
