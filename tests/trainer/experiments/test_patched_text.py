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
from trainer.experiments.results.results import Results, save_results
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


def test_the_picture_is_what_the_datasets_have(tmp_path: Path) -> None:
    results = experiment(tmp_path)
    picture = kept_picture(results, tmp_path)
    assert picture is not None
    assert [cut.system for cut in picture.cuts] == ["megabyte", "blt-space"]
    row = next(row for row in open_dataset(tmp_path / "data/megabyte/validation").rows() if row.id == picture.document)
    assert picture.bytes == row.text[:LENGTH]
    by_name = {cut.system: cut.starts for cut in picture.cuts}
    assert by_name["megabyte"] == tuple(range(0, len(picture.text), 4))
    starts = by_name["blt-space"]
    assert starts[0] == 0
    assert all(picture.text[start - 1] == " " for start in starts[1:])
    assert len(starts) == 1 + picture.text[:-1].count(" ")
    shutil.rmtree(tmp_path / "data")
    assert kept_picture(results, tmp_path) == picture
    (tmp_path / PICTURE_NAME).write_text("{}")
    with pytest.raises(ConfigError, match=r"patches\.json: "):
        kept_picture(results, tmp_path)


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


def test_samples_are_written_on_demand_and_kept(browser: Browser, tmp_path: Path) -> None:
    experiment(tmp_path)
    model_folder(tmp_path / "runs/flops/blt-space/seed-0/model", SPACE, None)
    assert not (tmp_path / SAMPLES_NAME).exists()
    assert command(["report", str(tmp_path), "--samples"]) == 0
    samples = kept(tmp_path / SAMPLES_NAME, Samples)
    assert samples is not None
    by_name = {one.system: one for one in samples.samples}
    written = by_name["blt-space"]
    assert written.text.startswith(samples.prompt)
    assert len(written.text) > len(samples.prompt)
    assert written.starts[0] == 0
    assert written.starts == tuple(sorted(written.starts))
    refusal = by_name["megabyte"].refusal
    assert refusal is not None
    assert str(tmp_path) not in refusal
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "data")
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(write_report(tmp_path))
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.evaluate("document.querySelectorAll('.samples article').length") == 1
    assert browser.evaluate("document.body.textContent").count(refusal) == 1
    assert browser.evaluate("document.querySelectorAll('table.cuts tbody:first-child tr').length") == 2
    (tmp_path / SAMPLES_NAME).write_text("[]")
    assert command(["report", str(tmp_path)]) != 0


def test_samples_need_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_results(made_up_results(), tmp_path)
    assert command(["report", str(tmp_path), "--samples"]) != 0
    assert "no dataset to take the prompt from" in capsys.readouterr().err
