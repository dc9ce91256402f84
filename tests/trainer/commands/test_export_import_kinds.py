"""`export-hf` and `import-hf` of other kinds than byte latent transformers: the way there and back byte for byte."""

import json
import re
import shutil
from functools import partial
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
from helpers.rounding import assert_equal_but_rounded, in_fp64
from helpers.subword_examples import LINES, train_tokenizer

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import load_making
from shared.layers.batch import segments
from shared.model_folder.files import Model, load_model, save_model
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
    shown = capsys.readouterr().out
    assert f"opens only with trust_remote_code=True: transformers has no class for a {kind}" in shown
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 0
    assert kind in capsys.readouterr().out
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes(), file
    assert model_identity(tmp_path / "back").patching == MODELS[name][1]


SUBWORDS = 280


@pytest.fixture
def of_subwords(tmp_path: Path) -> Path:
    """A flat model of the tokens of a tokenizer, as its finished run leaves it."""
    tokenizer = train_tokenizer(tmp_path / "data", tmp_path / "tokenizer", SUBWORDS)
    settings = flat_settings(vocabulary=SUBWORDS)
    model = any_model(settings)
    unlike_fresh(model, seed=2)
    save_model(model, settings, tmp_path / "model", tokenizer=tokenizer)
    rule = PatchingSettings(rule="bpe", max_length=64, tokenizer=load_making(tokenizer).identity)
    save_identity(identity_of(rule), tmp_path / "model" / IDENTITY_NAME)
    return tmp_path / "model"


def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    """fp32 [T, V] of a text."""
    found: torch.Tensor = model(torch.tensor(ids), segments([len(ids)]))
    return found


def test_a_model_of_subwords_goes_there_with_its_tokenizer_and_comes_back(of_subwords: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert run("export-hf", of_subwords, tmp_path / "hf") == 0
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 0
    for file in ("model.safetensors", "config.json", "tokenizer/tokenizer.json", "tokenizer/identity.json"):
        assert (tmp_path / "back" / file).read_bytes() == (of_subwords / file).read_bytes(), file
    found = model_identity(tmp_path / "back")
    assert found.patching == model_identity(of_subwords).patching
    assert "tokenizer/tokenizer.json" in found.config["imported"]["sha256"]
    with modules_below(tmp_path / "modules"):
        theirs = opened(tmp_path / "hf")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    ours = load_model(of_subwords)
    encoder, texts = SubwordEncoder(of_subwords / "tokenizer"), [*LINES[:5], b"</s> <s> it's\n\n  12345", b""]
    for text in texts:
        ids = tokenizer(text.decode()).input_ids
        assert ids == [BOS, *encoder.ids(text).tolist()]
        assert tokenizer.decode(ids, skip_special_tokens=True).encode() == text
        with torch.no_grad():
            found = theirs(torch.tensor([ids])).logits[0]
            exact = in_fp64(ours, partial(logits_of, ids=ids))
            assert_equal_but_rounded(found, logits_of(ours, ids), exact)
    batch = tokenizer([text.decode() for text in texts], padding=True, padding_side="left", return_tensors="pt")
    written = theirs.generate(**batch, max_new_tokens=10, do_sample=False)
    assert written.shape[1] > batch.input_ids.shape[1]
    assert written.max() >= 260, "subwords are written"


@pytest.mark.parametrize("command", ["export-hf", "import-hf"])
def test_another_tokenizer_than_the_recorded_one_is_refused(
    command: str, of_subwords: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export-hf", of_subwords, tmp_path / "hf") == 0
    source = of_subwords if command == "export-hf" else tmp_path / "hf"
    shutil.rmtree(source / "tokenizer")
    capsys.readouterr()
    assert run(command, source, tmp_path / "out") == 2
    assert "is not a tokenizer's folder" in capsys.readouterr().err
    train_tokenizer(tmp_path / "other-data", source / "tokenizer", SUBWORDS - 5)
    assert run(command, source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "holds another tokenizer" in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_router_that_is_rounded_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hnet", "megabyte"):
        assert run("export-hf", made(tmp_path / name, name), tmp_path / f"{name}-hf", "--dtype", "bfloat16") == 0
        assert ("note: the router's weights are rounded to bfloat16" in capsys.readouterr().out) == (name == "hnet")


@pytest.mark.parametrize(
    ("name", "reason"), [("flat", "has no patches of a rule"), ("megabyte", "needs shards of rule")]
)
def test_a_longest_patch_that_a_model_cannot_have_is_refused(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export-hf", made(tmp_path / "model", name), tmp_path / "hf") == 0
    assert run("import-hf", tmp_path / "hf", tmp_path / "back", "--max-length", "3") == 2
    assert f"--max-length: the model {reason}" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


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
