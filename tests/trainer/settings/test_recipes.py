"""Every recipe says what --plan says of it, and trains."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from helpers.pack_examples import make_dataset
from helpers.recipe_comments import RECIPES, with_comment
from helpers.target_examples import write_targets
from helpers.tiny_runs import NONE, STATIC, metric_lines, tiny_data

from shared.patching.lengths import patch_lengths
from shared.shards.document import Row
from shared.shards.open import open_dataset
from shared.text.chat import ANSWERING, END, ROLES, Turn, chat_body
from trainer.main import main
from trainer.planning.plan import Plan, load_plan
from trainer.planning.report import report, warning
from trainer.settings.learning import InBytes

SMALL_STACK = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32}
SMALL_STEP = {
    "data.tokens": 256,
    "data.packs": 1,
    "data.workers": 0,
    "run.bytes": 300,
    "run.device": "cpu",
    "schedule.warmup": 0.5,
}
SMALL_RANKS = {"parallel.compile": "false", "parallel.shard": 1}
SMALL_MODELS = {
    "blt": {"model.ngrams.rows": 64}
    | {f"model.{stack}.{key}": size for stack in ("encoder", "global", "decoder") for key, size in SMALL_STACK.items()},
    "entropy": {f"model.{key}": size for key, size in SMALL_STACK.items()},
}
SMALL_MODELS["chat"] = SMALL_MODELS["blt"]
"""What is laid over a recipe so that it trains here in a second: rows and widths, packs, one rank."""

PAPER = {
    "blt-400m": ((768, 1), (1280, 24, 10), (768, 7), 2),
    "blt-1b": ((1024, 1), (2048, 25, 16), (1024, 9), 2),
    "blt-2b": ((1024, 1), (2560, 26, 20), (1024, 9), 3),
    "blt-4b": ((1024, 1), (3072, 36, 24), (1024, 9), 3),
    "blt-8b": ((1280, 1), (4096, 32, 32), (1280, 6), 4),
}
"""Encoder, global transformer, decoder (width, layers, heads) and vectors a patch: arXiv 2412.09871, table 10."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data for each kind of recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    return {
        "blt": tiny_data(folder / "patched", STATIC),
        "entropy": tiny_data(folder / "unpatched", NONE),
        "chat": chats(folder / "chats"),
    }


def chats(folder: Path) -> Path:
    """Questions with answers, as `preprocess --chat` writes them."""
    names = (*ROLES, END)
    for split in ("train", "validation"):
        rows = []
        for number in range(30):
            turns = [Turn("user", b"how many patches?" * (number % 4 + 1)), Turn("assistant", b"%d of them" % number)]
            text, spans = chat_body(turns, names, (ANSWERING,))
            row = Row(f"{split}-{number}", "chat", text, spans=spans)
            rows.append(replace(row, patch_lengths=patch_lengths(row.tokens(True), STATIC)))
        make_dataset(folder / split, [rows], patching=STATIC, split=split, specials=names)
    return folder


@cache
def planned(name: str) -> Plan:
    return load_plan(next(recipe for recipe in RECIPES if recipe.stem == name), [])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_comment_of_a_recipe_is_what_the_plan_prints(recipe):
    assert recipe.read_text() == with_comment(recipe), "python tests/helpers/recipe_comments.py writes it anew"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_fits_on_its_devices(recipe):
    assert warning(planned(recipe.stem)) is None


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_trains_a_few_steps(recipe, data, tmp_path):
    settings = planned(recipe.stem).settings
    kind = "chat" if recipe.stem == "blt-chat" else settings.model.kind
    small = SMALL_STEP | SMALL_RANKS | SMALL_MODELS[kind] | {"data.path": data[kind], "run.out": tmp_path / "run"}
    if settings.distillation:
        write_targets(tmp_path / "targets" / "train", open_dataset(data[kind] / "train"))
        small |= {"distillation.targets": tmp_path / "targets", "distillation.embedding": 0}
    assert main([str(recipe), *(f"--{key}={value}" for key, value in small.items())]) == 0
    (*_, last) = (line for line in metric_lines(tmp_path / "run") if {"loss", "distillation_loss"} & line.keys())
    assert last["step"] >= 2
    assert math.isfinite(last["loss"])
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_have_its_shapes(name):
    model = planned(name).settings.model
    assert model.kind == "blt"
    encoder, latent, decoder = model.encoder, model.global_, model.decoder
    shape = (
        (encoder.width, encoder.layers),
        (latent.width, latent.layers, latent.heads),
        (decoder.width, decoder.layers),
    )
    assert (*shape, model.queries) == PAPER[name]
    assert (model.window, model.ngrams.rows, model.ngrams.sizes) == (512, 500_002, (3, 4, 5, 6, 7, 8))


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_have_its_optimizer_and_batches(name):
    plan = planned(name)
    optimizer = plan.settings.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (4e-4, (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip) == (0.1, 1.0)
    assert plan.step_bytes == pytest.approx(16e6, rel=0.05)
    assert plan.settings.schedule.warmup == InBytes(bytes=2000 * plan.step_bytes)


def test_the_1b_model_has_as_many_parameters_as_the_released_one():
    plan = planned("blt-1b")
    assert sum(plan.parameters.values()) / 1e9 == pytest.approx(4.53, abs=0.005)
    assert plan.parameters["ngrams"] / 1e9 == pytest.approx(3.07, abs=0.005)


@pytest.mark.parametrize(("patch_size", "figure"), [("4.5", 3.45), ("6", 2.63), ("8", 2.03)])
def test_the_command_gives_the_flops_of_the_paper_for_8b(patch_size, figure, capsys):
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "blt-8b")
    assert main([str(recipe), "--plan", "--plan.patch_size", patch_size]) == 0
    words = " ".join(capsys.readouterr().out.split())
    printed = words.split("by the paper's accounting ")[1].split(" G;")[0]
    assert float(printed) == pytest.approx(figure, rel=0.02)


def test_the_entropy_model_is_the_share_that_the_paper_leaves_out():
    shares = {}
    for size in ("1b", "8b"):
        plan = planned(f"blt-{size}")
        assert plan.entropy is not None and plan.paper is not None  # noqa: PT018
        shares[size] = plan.entropy / plan.paper
        assert "finding patches" in report(plan)
    assert shares["1b"] == pytest.approx(0.22, abs=0.01)
    assert shares["8b"] == pytest.approx(0.06, abs=0.005)
