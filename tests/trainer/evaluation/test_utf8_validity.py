"""Samples after beginnings of documents, and how much of them is UTF-8."""

from pathlib import Path

import pytest
from helpers.model_folders import entropy_folder, entropy_model_folder, entropy_rule, model_folder
from helpers.pack_examples import NONE, document, make_dataset

from shared.errors import ConfigError
from shared.shards.dataset import Dataset
from trainer.evaluation.robustness.characters import damage
from trainer.evaluation.robustness.utf8_validity import LONGEST_PROMPT, Validity, prompts_from, validity
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    texts = ["Größe für Ähnliches " * 40, "日本語" * 300, "plain", "", "ü"]
    rows = [document(str(number), "ab"[number % 2], text.encode(), NONE) for number, text in enumerate(texts)]
    rows.append(document("binary", "a", b"\xff\xfe\x00", NONE))
    return make_dataset(tmp_path_factory.mktemp("data"), [rows], patching=NONE, split="validation")


def test_prompts_are_beginnings_of_documents_in_whole_characters(dataset: Dataset) -> None:
    rows = list(dataset.rows())
    for prompt in prompts_from(dataset, 40):
        assert 0 < len(prompt.text) <= LONGEST_PROMPT
        assert damage(prompt.text, whole=True)[1] == 0
        assert any(row.text.startswith(prompt.text) and prompt.subset == row.subset for row in rows)


def test_as_many_prompts_as_wanted_are_drawn_and_they_differ(dataset: Dataset) -> None:
    prompts = prompts_from(dataset, 40)
    assert len(prompts) == 40
    assert len({prompt.text for prompt in prompts}) > 15


def test_prompts_depend_on_the_seed(dataset: Dataset) -> None:
    assert prompts_from(dataset, 40) == prompts_from(dataset, 40)
    assert prompts_from(dataset, 40) != prompts_from(dataset, 40, seed=1)


def test_data_without_utf8_is_refused(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, [[document("a", "a", b"\xff\xfe", NONE)]], patching=NONE)
    with pytest.raises(ConfigError, match="no document to begin a sample with"):
        prompts_from(data, 3)


def test_samples_are_judged_as_they_were_written(dataset: Dataset, tmp_path: Path) -> None:
    generator = Generator(entropy_folder(tmp_path / "model"))
    prompts = prompts_from(dataset, 20)
    reported: list[int] = []
    found = validity(generator, prompts, 24, reported.append)
    assert reported == [16, 20]
    expected = Validity()
    for number, prompt in enumerate(prompts):
        settings = GenerateSettings(length=24, sampling=SamplingSettings(temperature=1.0, seed=number // 16))
        pieces = [piece.byte for piece in generator.write(prompt.text, settings) if not piece.from_prompt]
        text = b"".join(pieces)
        characters, damaged = damage(text, whole=generator.ended[0] == "end of document")
        expected = Validity(
            expected.samples + 1,
            expected.valid + (not damaged),
            expected.bytes + len(text),
            expected.characters + characters,
            expected.damaged + damaged,
        )
    assert found == expected
    assert found.damaged > 0, "an untrained model writes any bytes"


def test_subsets_with_thresholds_of_their_own_are_written_apart(dataset: Dataset, tmp_path: Path) -> None:
    rule = entropy_rule()
    rule = rule.model_copy(update={"thetas": {"a": rule.theta, "b": rule.theta}})
    folder = model_folder(tmp_path / "model", rule, entropy_model_folder(tmp_path / "entropy_model"))
    found = validity(Generator(folder), prompts_from(dataset, 6), 8)
    assert found.samples == 6
