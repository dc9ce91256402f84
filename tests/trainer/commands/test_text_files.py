"""Plain text is scored as a dataset of the same documents is; models are opened wherever they are."""

import argparse
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.model_folders import entropy_model_folder, entropy_model_scorer, entropy_rule, model_folder
from helpers.pack_examples import NONE, make_dataset

from shared.errors import ConfigError, IdentityError, ModelFileError
from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.vocabulary import document_tokens
from trainer.__main__ import COMMANDS, main
from trainer.commands import evaluate, running
from trainer.errors import TaskError
from trainer.evaluation.text_files import read_texts
from trainer.evaluation.texts import TextScorer
from trainer.provenance.identity import IDENTITY_NAME, model_identity, save_identity

TEXTS = [b"The first  document, with two spaces.\n", b"", "caf\u00e9 \u00fcber alles".encode() * 5]


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(argument) for argument in arguments]))


def rows_of(rule: PatchingSettings, subset: str) -> list[Row]:
    tokens = [document_tokens(text) for text in TEXTS]
    found = entropy_model_scorer().score(tokens) if rule.patched else [None] * len(TEXTS)
    lengths = [patch_lengths(own, rule, values) if rule.patched else None for own, values in zip(tokens, found)]
    return [Row(str(n), subset, text, 0, own) for n, (text, own) in enumerate(zip(TEXTS, lengths))]


@pytest.fixture(scope="module")
def rule() -> PatchingSettings:
    return entropy_rule()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, rule: PatchingSettings) -> Path:
    """The model folder of a finished run."""
    at = tmp_path_factory.mktemp("run of a model")
    return model_folder(at / "model", rule, entropy_model_folder(at / "entropy"))


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text.decode()}) + "\n" for text in TEXTS))
    return path


def figures(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())["datasets"][0]["total"]


@pytest.fixture(scope="module")
def scored(model: Path, jsonl: Path) -> dict[str, float]:
    """Figures of the file of texts."""
    out = jsonl.with_name("figures.json")
    assert command(model.parent, jsonl, "--json", out, "--baselines", "--train", unpatched(jsonl.parent)) == 0
    return figures(out)


def test_files_of_text_score_as_the_texts_in_memory(scored: dict[str, float], model: Path) -> None:
    scores = TextScorer(str(model.parent)).score(TEXTS)
    assert scored["documents"] == 3
    assert scored["bytes"] == sum(map(len, TEXTS))
    assert scored["bits_per_byte"] == pytest.approx(scores.bits.sum() / scores.bytes.sum(), rel=1e-6)


def test_files_of_text_score_as_their_dataset_cut_anew(scored: dict[str, float], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert command(model, unpatched(tmp_path), "--recut", "--json", out) == 0
    assert figures(out)["bits_per_byte"] == pytest.approx(scored["bits_per_byte"], rel=1e-6)
    assert figures(out)["bytes_per_patch"] == scored["bytes_per_patch"]


def test_figures_are_replaced_where_that_is_asked_for(model: Path, jsonl: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert command(model, unpatched(tmp_path), "--recut", "--json", out) == 0
    written = out.read_text()
    assert command(model, jsonl, "--json", out, "--overwrite") == 0
    assert out.read_text() != written


def test_a_text_is_scored_alone_as_among_others(model: Path) -> None:
    scorer = TextScorer(str(model.parent))
    alone = scorer.bits_per_byte(TEXTS[0].decode())
    assert alone == pytest.approx(scorer.score(TEXTS).bits[0] / len(TEXTS[0]), rel=1e-6)


def test_a_subset_without_a_threshold_is_named(model: Path) -> None:
    with pytest.raises(ConfigError, match="'nope'"):
        TextScorer(str(model.parent)).bits_per_byte("text", "nope")


def unpatched(at: Path) -> Path:
    folder = at / "unpatched"
    if not folder.exists():
        make_dataset(folder, [rows_of(NONE, "x")], patching=NONE)
    return folder


def test_data_that_is_cut_otherwise_is_refused_in_one_line_with_the_cause_and_ways_out(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(IdentityError, match=r"rule none, not entropy.*--recut.*preprocess.*--theta") as refusal:
        command(model, unpatched(tmp_path))
    assert "\n" not in str(refusal.value)


def test_standard_input_is_one_document(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXTS[0])))
    out = tmp_path / "figures.json"
    assert command(model, "-", "--json", out, "--beside", model, "-") == 0
    assert figures(out)["bytes"] == len(TEXTS[0])
    (beside,) = json.loads(out.read_text())["datasets"][0]["beside"]
    assert beside["total"]["bits_per_byte"] == figures(out)["bits_per_byte"]


def test_a_file_whose_name_is_not_utf_8_is_scored_and_told_in_json(model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_bytes(TEXTS[0])
    assert command(model, path, "--json", tmp_path / "a.json", "--documents", tmp_path / "b.jsonl") == 0
    (found,) = json.loads((tmp_path / "a.json").read_text())["datasets"]
    assert found["dataset"] == str(path)
    assert json.loads((tmp_path / "b.jsonl").read_text())["id"].endswith("caf\\udce9.txt")


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    for content, said in (
        (b"\x1f\x8b\x08", "gzip.*pipeline preprocess"),
        (b"PAR1", r"Parquet.*\.parquet"),
        (b"PK\x03\x04", "zip.*unpack"),
        (tarfile.TarInfo("a.txt").tobuf(), "tar archive.*unpack"),
        (bytes(range(256)), "binary"),
        ("text".encode("utf-16"), "UTF-16.*iconv"),
    ):
        for name, refusal in (("file", ConfigError), ("file.jsonl", TaskError)):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(refusal, match=f"{name} is .*{said}"):
                read_texts(tmp_path / name)
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(ConfigError, match="more than 3 bytes"):
        read_texts(tmp_path / "file", most=3)
    (tmp_path / "x.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(TaskError, match=r"x\.jsonl:1 has no field text, only content"):
        read_texts(tmp_path / "x.jsonl")
    assert [row.text for row in read_texts(tmp_path / "file")] == [b"text"]
    (tmp_path / "x.jsonl").write_text('\ufeff{"text": "x"}\n')
    assert [row.text for row in read_texts(tmp_path / "x.jsonl")] == [b"x"], "a byte order mark"


def test_everything_beside_is_checked_before_anything_is_scored(
    model: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.Evaluator, "measure", lambda *_: pytest.fail("a model was scored"))
    other = tmp_path / "other.txt"
    other.write_text("another document")
    for beside, error in (
        ((tmp_path / "nosuch", jsonl), ModelFileError),
        ((model, tmp_path / "nosuch"), ValueError),
        ((model, unpatched(tmp_path)), IdentityError),
        ((model, other), IdentityError),
    ):
        with pytest.raises(error):
            command(model, jsonl, "--beside", *beside)


def several(at: Path, thetas: dict[str, float], data: dict[str, str]) -> Path:
    """A model that was trained on the datasets code and tldr."""
    rule = entropy_rule()
    thetas = {name: rule.theta + shift for name, shift in thetas.items()}  # type: ignore[operator]
    folder = model_folder(at / "model", rule, entropy_model_folder(at / "entropy"))
    identity = model_identity(folder)
    patching = rule.model_copy(update={"thetas": thetas})
    save_identity(identity.model_copy(update={"patching": patching, "data": data}), folder / IDENTITY_NAME)
    return folder


def test_a_model_of_several_datasets_is_evaluated_on_each_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {f"{name}/{split}": "" for name in ("code", "tldr") for split in ("train", "validation")}
    model = several(tmp_path, {"code/en": 0.2, "tldr/en": -0.2}, data)
    trained = model_identity(model)
    for name in ("code", "tldr"):
        theta = trained.patching.thetas[f"{name}/en"]
        rule = trained.patching.model_copy(update={"thetas": {"en": theta}})
        rows = rows_of(rule.for_subset("en"), "en")
        folder = tmp_path / name
        dataset = make_dataset(folder, [rows], patching=rule)
        manifest = dataset.manifest.model_copy(
            update={"identity": dataset.manifest.identity.model_copy(update={"entropy_model": trained.entropy_model})}
        )
        manifest.save(folder)
        out = tmp_path / f"{name}.json"
        assert command(model, folder, "--json", out) == 0
        exact = TextScorer(model).score(TEXTS, subsets=[f"{name}/en"] * 3)
        assert figures(out)["bits_per_byte"] == pytest.approx(exact.bits.sum() / exact.bytes.sum(), rel=1e-6)
        assert command(model, folder, "--recut", "--json", out, "--overwrite") == 0
        assert figures(out)["bits_per_byte"] == pytest.approx(exact.bits.sum() / exact.bytes.sum(), rel=1e-6)
        assert "en " in capsys.readouterr().out
    with pytest.raises(IdentityError, match="theta of en"):
        command(model, tmp_path / "code", "--as", "tldr")


def test_text_is_cut_with_the_default_threshold_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = several(tmp_path, {"tldr/en": -0.2}, {"code/train": "", "tldr/train": ""})
    file, out = tmp_path / "a.txt", tmp_path / "figures.json"
    file.write_bytes(TEXTS[2])
    assert command(model, file, "--json", out) == 0
    assert "default threshold" in capsys.readouterr().err
    default = figures(out)["bytes_per_patch"]
    assert command(model, file, "--subset", "en", "--json", out, "--overwrite") == 0
    assert "default threshold" not in capsys.readouterr().err
    assert figures(out)["bytes_per_patch"] < default  # a lower threshold: more patches


def test_a_model_beside_that_cuts_all_text_alike_has_no_subset_to_choose(model: Path, tmp_path: Path) -> None:
    own = several(tmp_path, {"tldr/en": -0.2}, {"code/train": "", "tldr/train": ""})
    file = tmp_path / "a.txt"
    file.write_bytes(TEXTS[2])
    assert command(own, file, "--subset", "en", "--beside", model, file) == 0
    with pytest.raises(ConfigError, match="cuts all text alike"):
        command(model, file, "--subset", "en", "--beside", own, file)


@pytest.mark.parametrize("threads", [0, 10**6])
def test_a_number_of_threads_that_no_processor_has_is_refused(
    threads: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(model), "--threads", str(threads)])
    assert ended.value.code == 2
    assert f"--threads: {threads} is too" in capsys.readouterr().err


def test_threads_are_those_of_training_and_never_more_than_cores(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "usable_cores", lambda: 3)
    identity = model_identity(model)
    for trained, used in ((1, 1), (2, 2), (64, 3)):
        numerics = identity.numerics.model_copy(update={"threads": trained})
        monkeypatch.setattr(
            running, "model_identity", lambda _, n=numerics: identity.model_copy(update={"numerics": n})
        )
        assert running.threads_for(model, None) == used
        assert running.threads_for(model, 5) == 5
    assert running.threads_for(model / "entropy_model", None) == 1


@pytest.mark.parametrize("name", ["evaluate", "sweep", "tasks", "lm-eval", "generate"])
def test_every_command_that_runs_a_model_has_the_same_defaults(name: str) -> None:
    from importlib import import_module

    assert name in COMMANDS
    parser = argparse.ArgumentParser()
    import_module(f"trainer.commands.{name.replace('-', '_')}").add_arguments(parser)
    assert parser.get_default("device") == "auto"
    assert parser.get_default("threads") is None


def test_a_run_stands_for_its_model_and_what_is_none_is_named(model: Path, tmp_path: Path) -> None:
    with running.opened_model(model.parent) as found:
        assert found == model
    for path, said in ((tmp_path / "nosuch", "does not exist"), (unpatched(tmp_path), "it is a dataset")):
        with pytest.raises(ModelFileError, match=said), running.opened_model(path):
            pass
    assert np.isfinite(TextScorer(model).score([b"x"]).nats).all()


def test_tasks_and_texts_in_memory_take_the_threshold_of_a_subset_by_its_short_name(tmp_path: Path) -> None:
    model = several(tmp_path, {"tldr/en": -0.2}, {"code/train": "", "tldr/train": ""})
    assert running.chosen_subset(model, "en") == "tldr/en"
    scorer = TextScorer(model)
    exact = scorer.score([TEXTS[2]], subsets=["tldr/en"]).bits[0] / len(TEXTS[2])
    assert scorer.bits_per_byte(TEXTS[2], "en") == pytest.approx(exact, rel=1e-9)
    assert scorer.bits_per_byte(TEXTS[2]) != pytest.approx(exact, rel=1e-6)
