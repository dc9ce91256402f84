"""Adapting from end to end: a tiny base on English, two runs of each system on Greek, gone on with."""

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.model_folder.files import load_state
from shared.shards.open import open_dataset
from trainer.__main__ import main
from trainer.experiments.adaptation.record import (
    Adaptation,
    AdaptedRun,
    NewText,
    TextScore,
    Trained,
    load_adaptation,
)
from trainer.experiments.adaptation.runner import AdaptationRequest, check_request
from trainer.experiments.adaptation.words import difference, in_words
from trainer.experiments.budget import spending
from trainer.experiments.preparation import Corpus
from trainer.experiments.systems import load_experiment
from trainer.memory.parameters import TABLES
from trainer.metrics.files import read_lines
from trainer.settings import TrainSettings

STACK = "{width = 32, layers = 1, heads = 2, feed_forward = 32}"
SYSTEMS = f"""
[recipe]
run = {{dtype = "float32", device = "cpu"}}
data = {{tokens = 520, packs = 1, workers = 0, streams = 4}}
parallel = {{dry_run = false}}
guard = {{sigmas = 0}}
checkpoint = {{every = 100, asynchronous = false}}
metrics = {{log_every = 1, peak_flops = 1e9}}

[entropy_models.counts]
counts = {{order = 3, least = 2}}

[patchings]
counted = {{rule = "entropy", target = 4.0, entropy_model = "counts"}}
shorter = {{rule = "entropy", target = 3.0, entropy_model = "counts"}}
static = {{rule = "static", stride = 4}}

[systems.base]
family = "blt"
description = "Old text."
patching = "counted"
optimizer = {{lr = 3e-3}}
[systems.base.model]
kind = "blt"
window = 64
ngrams = {{sizes = [3, 4], rows = 64}}
encoder = {STACK}
global = {STACK}
decoder = {STACK}

[systems.adapted]
family = "blt"
description = "Local models."
patching = "counted"
like = "base"
optimizer = {{rates = {{global_ = 0, ngrams = 0}}}}
"""
OWN, ALIKE = "runs/el/adapted-own/seed-0", "runs/el/adapted-base/seed-0"


def command(place: Path, *more: object) -> list[str]:
    options = ["--out", place / "out", "--systems", place / "systems.toml", "--new", f"el={place / 'greek.txt'}"]
    options += ["--document-bytes", 200, "--validation-fraction", 0.1, "--executor", "inline", "--jobs", 1]
    options += ["--base-bytes", 6000, "--bytes", 3000]
    return ["adaptation", *map(str, [place / "english.txt", *options, *more])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed first, then the other, of which one method alone."""
    place = tmp_path_factory.mktemp("adaptation")
    for name, words in (
        ("english", "The patch begins where the next byte is hard to guess, and ends before another. "),
        ("greek", "Το κομμάτι αρχίζει εκεί όπου το επόμενο byte είναι δύσκολο να μαντέψει κανείς. "),
    ):
        (place / f"{name}.txt").write_text("\n\n".join(f"{number} {words * (1 + number % 3)}" for number in range(90)))
    (place / "systems.toml").write_text(SYSTEMS)
    with (place / "printed.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        assert main(command(place, "--seeds", 0)) == 0
        assert main(command(place, "--seeds", "1,0", "--only", "adapted-own")) == 0
    return place


@pytest.fixture(scope="module")
def found(place: Path) -> Adaptation:
    return load_adaptation(place / "out")


@pytest.mark.drill
def test_runs_join_those_on_record_and_finished_ones_are_not_done_again(place: Path, found: Adaptation) -> None:
    methods = [(run.boundaries, run.seed) for run in found.runs]
    assert methods == [("own", 0), ("own", 1), ("base", 0)]
    for folder in ("runs/base", OWN):
        assert len(read_lines(place / "out" / folder / "starts.jsonl")) == 1


@pytest.mark.drill
def test_what_is_frozen_is_that_of_the_base_bit_for_bit(place: Path, found: Adaptation) -> None:
    base = load_state(place / "out/runs/base/model")[0]
    for run in found.runs:
        for name, tensor in load_state(place / "out" / run.folder / "model")[0].items():
            assert tensor.equal(base[name]) == (name == TABLES or name.startswith("global_.")), name
        frozen = sum(tensor.numel() for name, tensor in base.items() if name == TABLES or name.startswith("global_."))
        assert run.trained_parameters == run.parameters - frozen
    assert (
        f"{found.runs[0].trained_parameters / found.runs[0].parameters:.1%} of them trained"
        in (place / "out" / OWN / "log.txt").read_text()
    )


@pytest.mark.drill
def test_what_a_run_logs_leaves_out_the_same_flops_as_its_plan(place: Path, found: Adaptation) -> None:
    for run in (found.base, found.runs[0]):
        config = json.loads((place / "out" / run.folder / "config.json").read_text())
        steps = read_lines(place / "out" / run.folder / "metrics.jsonl")[-1]["step"]
        *_, planned = islice(spending(TrainSettings.model_validate(config)), steps)
        assert (planned.bytes, planned.model_flops) == (run.bytes, pytest.approx(run.useful_flops))


@pytest.mark.drill
def test_a_model_has_the_entropy_model_and_the_threshold_that_its_text_was_cut_with(
    place: Path, found: Adaptation
) -> None:
    of_texts = {
        name: open_dataset(place / "out/texts" / name / "data/counted/train").manifest.identity
        for name in ("old", "el")
    }
    assert of_texts["old"].entropy_model.sha256 != of_texts["el"].entropy_model.sha256
    for folder, text in (("runs/base", "old"), (ALIKE, "old"), (OWN, "el")):
        model = json.loads((place / "out" / folder / "model/identity.json").read_text())
        assert model["entropy_model"]["sha256"] == of_texts[text].entropy_model.sha256
        assert model["patching"]["theta"] == of_texts[text].patching.theta


@pytest.mark.drill
def test_old_text_is_scored_by_the_boundaries_of_the_model(found: Adaptation) -> None:
    own, _, alike = found.runs
    assert alike.old.bytes_per_patch == found.before.bytes_per_patch
    assert own.old.bytes_per_patch != found.before.bytes_per_patch
    assert own.old.documents == alike.old.documents == found.before.documents
    assert alike.new.bits_per_byte < found.texts[0].before.bits_per_byte, "it learned something"


@pytest.mark.drill
def test_everything_is_printed(place: Path, found: Adaptation) -> None:
    printed = (place / "printed.txt").read_text()
    assert in_words(found) in printed
    assert "adapted (own boundaries) minus adapted (base boundaries), old text: " in printed


# ---- Without a run.


def score(*bits: float) -> TextScore:
    """Of documents of 10 bytes."""
    return TextScore(
        documents="d",
        document_bits=bits,
        document_bytes=(10,) * len(bits),
        bits_per_byte=sum(bits) / (10 * len(bits)),
        bytes_per_patch=4.0,
    )


def test_a_difference_is_that_of_pairs_with_intervals_over_seeds_and_documents() -> None:
    pairs = [(score(*([20.0] * 30)), score(*([30.0] * 30))), (score(*([22.0] * 30)), score(*([30.0] * 30)))]
    said = difference("one minus other", pairs)
    # Differences of -1.0 and -0.8: their mean and Student's t of 12.706 over a standard error of 0.1.
    assert said == (
        "one minus other: -0.9000 bits/byte (95% interval over 2 seeds -2.1706 to +0.3706, "
        "over 30 documents -0.9000 to -0.9000)"
    )


def test_a_text_without_runs_has_no_table() -> None:
    trained = Trained(
        folder=Path("runs/base"),
        seed=0,
        lr=1e-3,
        parameters=100,
        trained_parameters=100,
        bytes=1000,
        passes=1.0,
        useful_flops=1e9,
        seconds=5.0,
    )
    text = {name: NewText(name=name, train_bytes=9, entropy_model_seconds=None, before=score(9.0)) for name in "ab"}
    facts = trained.model_dump() | {"trained_parameters": 25}
    run = AdaptedRun(**facts, text="a", system="adapted", boundaries="own", new=score(5.0), old=score(7.0))
    found = Adaptation(
        corpus="x.txt",
        machine="m",
        train_bytes=5,
        base=trained,
        before=score(6.0),
        texts=(*text.values(),),
        runs=(run,),
    )
    said = in_words(found)
    assert "25.0%" in said
    assert "\na: " in said
    assert "\nb: " not in said


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        (SYSTEMS[: SYSTEMS.index("[systems.adapted]")], "add a system that begins with it"),
        (SYSTEMS.replace('patching = "counted"', 'patching = "static"'), "base has patching static"),
        (SYSTEMS.replace('patching = "counted"\nlike', 'patching = "shorter"\nlike'), "adapted has patching shorter"),
    ],
)
def test_systems_that_cannot_be_adapted_are_refused(tmp_path: Path, systems: str, words: str) -> None:
    (tmp_path / "systems.toml").write_text(systems)
    corpus = Corpus(("a.txt",), None, None, 0.1, 1)
    experiment = load_experiment(tmp_path / "systems.toml")
    request = AdaptationRequest(experiment, corpus, tmp_path, 1, "inline", {"el": corpus}, [0], 1, 1)
    with pytest.raises(ConfigError, match=words):
        check_request(request)


def test_some_methods_can_be_chosen_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "systems.toml").write_text(SYSTEMS)
    corpus = Corpus(("a.txt",), None, None, 0.1, 1)
    experiment = load_experiment(tmp_path / "systems.toml")
    request = AdaptationRequest(
        experiment, corpus, tmp_path, 1, "inline", {"el": corpus}, [0], 1, 1, only=["adapted-own"]
    )
    check_request(request)
    assert request.methods == [("adapted", "own")]
    with pytest.raises(ConfigError, match="base is the name of the base"):
        check_request(replace(request, new={"base": corpus}))
    with pytest.raises(ConfigError, match=r"--only base-own: .* there is adapted-own, adapted-base"):
        check_request(replace(request, only=["base-own"]))


@pytest.mark.parametrize("text", ["el", "el=", "=el/", "../el=el/", "old=el/"])
def test_a_text_needs_a_name_and_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit):
        main(["adaptation", "a.txt", "--new", text, "--out", str(tmp_path / "out")])
    assert "--new" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_that_two_texts_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adaptation", "a.txt", "--new", "el=a", "el=b", "--out", str(tmp_path / "out")]) == 2
    assert "--new names el twice" in capsys.readouterr().err
