"""Texts on an experiment's page: patches as datasets have them, samples of models, both kept without either."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from helpers.browser import Browser
from helpers.experiment_examples import made_up_results
from helpers.model_folders import model_folder
from helpers.tiny_runs import NONE, STATIC, tiny_data

from shared.errors import ConfigError
from shared.patching.settings import PatchingSettings
from shared.shards.open import open_dataset
from shared.text.characters import characters
from trainer.__main__ import main as command
from trainer.experiments.page.page import write_report
from trainer.experiments.page.patched_text import LENGTH, PICTURE_NAME, Cut, Picture, kept_picture, picture_of
from trainer.experiments.page.samples import SAMPLES_NAME, Samples, prompt_from
from trainer.experiments.page.texts import BREAKS, aligned, flowing, picture_section
from trainer.experiments.results.results import Results, load_results, save_results
from trainer.provenance.json_records import kept

SPACE = PatchingSettings(rule="space", max_length=64)


def experiment(folder: Path) -> Results:
    """A folder with results of three systems and their data."""
    whole = made_up_results(seeds=1, tables=("flops",))
    names = {"bytes": NONE, "megabyte": STATIC, "blt-space": SPACE}
    runs = tuple(run for run in whole.runs if run.system in names)
    for run in runs:
        data = tiny_data(folder / "data" / run.system, names[run.system])
        (folder / run.folder).mkdir(parents=True)
        # As written where the experiment was before it was moved here.
        config = {
            "run": {"out": f"/elsewhere/{run.folder}"},
            "data": {"path": f"/elsewhere/{data.relative_to(folder)}"},
        }
        (folder / run.folder / "config.json").write_text(json.dumps(config))
    results = whole.model_copy(update={"runs": runs, "systems": tuple(s for s in whole.systems if s.name in names)})
    save_results(results, folder)
    return results


def patches(markup: str) -> list[str]:
    return [unescape(text) for text in re.findall(r'<span class="p[01]">(.*?)</span>', markup, re.DOTALL)]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its picture. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("pictured")
    assert kept_picture(experiment(folder), folder) is not None
    return folder


@pytest.fixture
def changed(pictured: Path, tmp_path: Path) -> Path:
    """A copy of it without its data."""
    shutil.copytree(pictured, tmp_path / "moved", ignore=shutil.ignore_patterns("data"))
    return tmp_path / "moved"


def picture_in(folder: Path) -> Picture:
    picture = kept_picture(load_results(folder), folder)
    assert picture is not None
    return picture


def starts_in(picture: Picture, system: str) -> tuple[int, ...]:
    (cut,) = [cut for cut in picture.cuts if cut.system == system]
    return cut.starts


def test_the_picture_is_of_the_systems_with_patches(pictured: Path) -> None:
    assert [cut.system for cut in picture_in(pictured).cuts] == ["megabyte", "blt-space"]


def test_the_picture_is_of_the_beginning_of_a_document(pictured: Path) -> None:
    picture = picture_in(pictured)
    row = next(row for row in open_dataset(pictured / "data/megabyte/validation").rows() if row.id == picture.document)
    assert picture.bytes == row.text[:LENGTH]


def test_static_patches_begin_where_the_dataset_has_them(pictured: Path) -> None:
    picture = picture_in(pictured)
    assert starts_in(picture, "megabyte") == tuple(range(0, len(picture.text), 4))


def test_patches_of_words_begin_where_the_dataset_has_them(pictured: Path) -> None:
    picture = picture_in(pictured)
    after_spaces = [place + 1 for place, character in enumerate(picture.text[:-1]) if character == " "]
    assert starts_in(picture, "blt-space") == (0, *after_spaces)


def test_the_picture_is_kept_without_the_data(pictured: Path, changed: Path) -> None:
    assert picture_in(changed) == picture_in(pictured)


def test_a_picture_that_is_damaged_is_named(changed: Path) -> None:
    (changed / PICTURE_NAME).write_text("{}")
    with pytest.raises(ConfigError, match=r"patches\.json: "):
        picture_in(changed)


def test_without_patches_there_is_no_picture(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", NONE)
    assert picture_of({"bytes": open_dataset(data / "validation")}) is None
    assert picture_of({}) is None
    assert kept_picture(made_up_results(), tmp_path) is None
    assert picture_section(None) == ""


def test_cuts_stand_under_one_another_and_lose_nothing() -> None:
    text = "Größe <b> und\tmehr\n".encode() + b"\xff\x00 " + "漢字".encode() * 60
    cuts = [("four", list(range(0, len(text), 4))), ("whole", [0])]
    found = aligned(text, cuts, "cuts")
    rows = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td>", found)
    shown = {name: "".join("".join(patches(row)) for of, row in rows if of == name) for name, _ in cuts}
    assert shown["four"] == shown["whole"]
    assert shown["whole"].startswith("Größe <b> und→mehr↵�· 漢字")
    assert len(shown["whole"]) == len(list(characters(text)))
    lengths = [[len("".join(patches(runs))) for of, runs in rows if of == name] for name, _ in cuts]
    assert lengths[0] == lengths[1]
    assert "<b>" not in found


def test_a_character_is_in_the_patch_of_its_first_byte() -> None:
    assert patches(flowing("aßb".encode(), [0, 2, 3], 0)) == ["aß", "b"]
    assert patches(flowing(b"abcd", [0, 2], 1)) == ["b", "cd"]
    assert patches(flowing(b"abcd", [], 1)) == []
    assert flowing(b"a\n\tb", [], 1).endswith(f">a</span>{BREAKS}b</p>")


def test_equal_cuts_are_shown_once() -> None:
    cuts = (Cut(system="a", starts=(0, 2)), Cut(system="b", starts=(0, 1)), Cut(system="c", starts=(0, 2)))
    found = picture_section(Picture(document="<d>", subset="s", text="abc", cuts=cuts))
    assert re.findall(r'<th scope="row">(.*?)</th>', found) == ["a", "b"]
    assert "Cut alike: c as a." in found
    assert "&lt;d&gt;" in found


def test_prompts_end_with_a_whole_word() -> None:
    assert prompt_from(b"several words " * 20) == b" ".join([b"several words"] * 4 + [b"several"])
    assert prompt_from(b"x" * 100) == b"x" * 64
    assert prompt_from("ä".encode() * 10 + b" b") == "ä".encode() * 10


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of which one model is left, with the samples that were asked for; then runs and data went."""
    folder = tmp_path_factory.mktemp("sampled") / "experiment"
    experiment(folder)
    model_folder(folder / "runs/flops/blt-space/seed-0/model", SPACE, None)
    assert not (folder / SAMPLES_NAME).exists()
    assert command(["report", str(folder), "--samples"]) == 0
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / "data")
    return folder


def samples_in(folder: Path) -> Samples:
    samples = kept(folder / SAMPLES_NAME, Samples)
    assert samples is not None
    return samples


def refusal_in(folder: Path) -> str:
    (sample,) = [one for one in samples_in(folder).samples if one.system == "megabyte"]
    assert sample.refusal is not None
    return sample.refusal


def test_a_sample_goes_on_from_the_prompt_in_patches(sampled: Path) -> None:
    samples = samples_in(sampled)
    (written,) = [one for one in samples.samples if one.system == "blt-space"]
    assert written.text.startswith(samples.prompt)
    assert len(written.text) > len(samples.prompt)
    assert written.starts == tuple(sorted({0, *written.starts}))


def test_a_model_that_is_gone_has_a_refusal_without_the_path(sampled: Path) -> None:
    assert str(sampled) not in refusal_in(sampled)


@pytest.fixture
def opened(browser: Browser, sampled: Path) -> Browser:
    """The page of the samples, on a phone."""
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(write_report(sampled))
    return browser


def test_the_page_of_samples_is_quiet_and_fits_a_phone(opened: Browser) -> None:
    assert opened.complaints() == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_shows_samples_and_cuts_without_runs_and_data(opened: Browser, sampled: Path) -> None:
    assert opened.evaluate("document.querySelectorAll('.samples article').length") == 1
    assert opened.evaluate("document.body.textContent").count(refusal_in(sampled)) == 1
    assert opened.evaluate("document.querySelectorAll('table.cuts tbody:first-child tr').length") == 2


def test_a_report_with_damaged_samples_is_refused(sampled: Path, tmp_path: Path) -> None:
    shutil.copytree(sampled, tmp_path / "damaged")
    (tmp_path / "damaged" / SAMPLES_NAME).write_text("[]")
    assert command(["report", str(tmp_path / "damaged")]) != 0


def test_samples_need_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_results(made_up_results(), tmp_path)
    assert command(["report", str(tmp_path), "--samples"]) != 0
    assert "no dataset to take the prompt from" in capsys.readouterr().err
