"""The model card says what the folder holds, in the form that the hub reads."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.model_examples import (
    any_model,
    blt_settings,
    entropy_settings,
    flat_settings,
    hnet_settings,
    megabyte_settings,
    spacebyte_settings,
)

from shared.interop.custom_module import PARTS, file_name
from shared.interop.described import Record
from shared.interop.model_card import KINDS, NOTHING_KNOWN, CardFigures
from shared.interop.writing import write_hf_folder
from shared.model_folder.files import save_model
from shared.model_settings import AnyModelSettings
from shared.patching import PatchingSettings

WORDS = PatchingSettings(rule="space", max_length=16)
UNPATCHED = PatchingSettings(rule="none")
MODELS: dict[str, tuple[AnyModelSettings, PatchingSettings]] = {
    "blt": (blt_settings(), WORDS),
    "entropy": (entropy_settings(), UNPATCHED),
    "flat": (flat_settings(), UNPATCHED),
    "hnet": (hnet_settings(), UNPATCHED),
    "megabyte": (megabyte_settings(), PatchingSettings(rule="static", stride=4, max_length=64)),
    "spacebyte": (spacebyte_settings(), WORDS),
}


def card(folder: Path, settings: AnyModelSettings, rule: PatchingSettings, figures: CardFigures = NOTHING_KNOWN) -> str:
    """Of the export of a model."""
    save_model(any_model(settings), settings, folder / "model")
    record = Record(model=settings, entropy_model=None, patching=rule, entropy_model_identity=None)
    write_hf_folder(folder / "model", folder / "hf", record, figures=figures)
    return (folder / "hf" / "README.md").read_text()


def head(text: str) -> dict[str, Any]:
    """What stands in YAML above the page."""
    begin, found, _ = text.split("---\n", 2)
    assert begin == ""
    values: dict[str, Any] = yaml.safe_load(found)
    return values


def test_every_kind_has_a_name() -> None:
    assert KINDS.keys() == PARTS.keys() | {"entropy"}


@pytest.mark.parametrize("kind", MODELS)
def test_the_card_names_the_kind_its_parameters_and_its_module(kind: str, tmp_path: Path) -> None:
    settings, rule = MODELS[kind]
    text = card(tmp_path, settings, rule)
    assert head(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["patchwork", kind, "byte-level", "custom_code"],
    }
    count = sum(parameter.numel() for parameter in any_model(settings).parameters())
    assert f"| parameters | {count:,}, in float32 |" in text
    module = tmp_path / "hf" / file_name("flat" if kind == "entropy" else kind)
    assert f"`{module.name}` ({module.stat().st_size:,} bytes)" in text
    assert hashlib.sha256(module.read_bytes()).hexdigest() in text
    assert ("rule `" in text) == rule.patched
    assert "| licence | not stated |" in text
    assert "| validation |" not in text, "nothing is known"


def test_figures_of_the_source_folder_stand_in_it(tmp_path: Path) -> None:
    figures = CardFigures(
        bits_per_byte=1.23456, mean_patch_size=4.4189, data={"train": "ab" * 32, "validation": "cd" * 32}, license="mit"
    )
    text = card(tmp_path, *MODELS["blt"], figures)
    assert head(text)["license"] == "mit"
    for row in (
        "| patches | rule `space`, at most 16 bytes |",
        "| mean patch | 4.42 bytes in the training data |",
        "| validation | 1.2346 bits per byte |",
        f"| data `train` | fingerprint `{'ab' * 32}` |",
        "| licence | mit |",
    ):
        assert row in text.splitlines(), row


def test_the_card_of_a_model_of_chats_begins_with_a_message(tmp_path: Path) -> None:
    text = card(tmp_path, blt_settings(specials=("user", "assistant", "end")), WORDS)
    assert "conversational" in head(text)["tags"]
    assert "apply_chat_template" in text
    assert "`<|user|>`, `<|assistant|>`, `<|end|>`" in text


def test_what_opens_without_the_module_is_said(tmp_path: Path) -> None:
    assert "Without that option the folder does not open." in card(tmp_path, *MODELS["blt"])
