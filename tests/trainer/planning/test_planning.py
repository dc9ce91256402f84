"""--plan: its arithmetic against real tensors, its figures against the paper's, and its words."""

import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from helpers.stack_examples import OTHER_BLOCKS
from helpers.tiny_runs import NONE, STATIC, tiny_data, tiny_recipe, tiny_settings, toml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shared.errors import ConfigError
from shared.layers.batch import Batch, PatchRoom
from shared.layers.cross_attention import _strips
from shared.layers.devices import GIB
from shared.model_folder.files import build_model as empty_model
from shared.model_settings import BltSettings
from shared.shards.open import open_dataset
from shared.vocabulary import IGNORED_LABEL
from trainer.checkpoints.initial_weights import build_model
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.build import units
from trainer.distributed.world import started
from trainer.evaluation.compatibility import limits_for
from trainer.main import main
from trainer.memory.dry_run import dry_run
from trainer.memory.estimate import (
    Pass,
    count,
    estimate,
    kept_activations,
    shard_bytes,
    transient_bytes,
    units_of,
    unsharded_bytes,
)
from trainer.memory.parameters import TABLES, parameter_shapes, sizes_by_part
from trainer.memory.parts import logits_bytes
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import predict
from trainer.planning.plan import load_plan, make_plan
from trainer.planning.report import amount, report, warning
from trainer.settings import TrainSettings

LOCAL = {"width": 64, "layers": 1, "heads": 4}
MODELS = {
    "plain": {"global": {"width": 128, "layers": 2, "heads": 4}},
    "projected": {"global": {"width": 96, "layers": 3, "heads": 4}, "queries": 3},
    "grouped heads": {
        "encoder": LOCAL | {"kv_heads": 2},
        "global": {"width": 96, "layers": 2, "heads": 6, "kv_heads": 2},
        "decoder": LOCAL | {"layers": 2, "kv_heads": 1},
    },
    "all crosses": {
        "encoder": LOCAL | {"layers": 2},
        "global": {"width": 128, "layers": 1, "heads": 4},
        "encoder_cross_all_layers": True,
    },
    "one decoder cross": {
        "decoder": LOCAL | {"layers": 3},
        "global": {"width": 64, "layers": 1, "heads": 2},
        "decoder_cross_all_layers": False,
    },
    "mean": {"global": {"width": 128, "layers": 2, "heads": 4}, "pooling": "mean"},
    "learned pooling": {"global": {"width": 128, "layers": 2, "heads": 4}, "pooling": "attention"},
    "no tables": {"global": {"width": 128, "layers": 2, "heads": 4}, "ngrams": {"sizes": []}},
    "entropy": {"kind": "entropy", "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "window": 32},
    "flat": {"kind": "flat", "width": 64, "layers": 2, "heads": 4},
    "megabyte": {"kind": "megabyte", "global": LOCAL | {"width": 128}, "local": LOCAL},
    "spacebyte": {"kind": "spacebyte", "before": LOCAL, "global": LOCAL | {"width": 128}, "after": LOCAL},
    "hnet": {"kind": "hnet", "encoder": LOCAL, "global": LOCAL | {"width": 128}, "decoder": LOCAL, "window": 64},
}
TABLES_OF_OTHERS = {"ngrams": {"sizes": [3, 4, 5], "rows": 64}}
MODELS |= {f"{name} with tables": MODELS[name] | TABLES_OF_OTHERS for name in ("flat", "megabyte", "spacebyte", "hnet")}


def recipe(name: str, folder: Path = Path("missing"), /, **sections: dict) -> TrainSettings:
    model = MODELS[name]
    if "kind" not in model:
        model = {"kind": "blt", "window": 64, "ngrams": {"sizes": [3, 4], "rows": 64}} | {
            "encoder": LOCAL,
            "decoder": LOCAL,
            **model,
        }
    return tiny_settings(folder, Path("out"), model=model, **sections)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("plan") / "patched", STATIC)


@pytest.fixture(scope="module")
def unpatched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("plan") / "unpatched", NONE)


def first_pack(settings: TrainSettings) -> Batch:
    train = open_dataset(settings.data.path / "train")
    limits = limits_for(settings.model, train.manifest, settings.data.tokens)
    return next(iter(PackLoader(train, limits, 1))).batch.to(torch.device("cpu"))


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes that this rank holds of them."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name):
    settings = recipe(name)
    with torch.device("meta"):
        model = empty_model(settings.model)
    shapes = parameter_shapes(settings.model)
    assert shapes == {each: tuple(parameter.shape) for each, parameter in model.named_parameters()}
    assert sum(sizes_by_part(shapes).values()) == sum(map(prod, shapes.values()))
    dense = {each: shape for each, shape in shapes.items() if each != TABLES}
    expected = [sum(parameter.numel() for parameter in unit.parameters()) for unit in units(model)]
    assert [count(unit) for unit in units_of(settings.model, dense)] == expected


MODELS |= {
    f"blocks {name}": {"global": {"width": 128, "layers": 2, "heads": 4} | changes}
    for name, changes in OTHER_BLOCKS.items()
}
MODELS["narrow local heads"] = {
    "encoder": LOCAL | {"heads": 2, "head_dim": 10},
    "decoder": LOCAL | {"heads": 2, "head_dim": 10, "layers": 2},
    "global": {"width": 128, "layers": 2, "heads": 4},
}
FLAT = {"kind": "flat", "width": 64, "layers": 4, "heads": 4, "feed_forward": 128}
MODELS |= {
    "selective, norms after": FLAT | {"norm": "after", "qk_norm": "width"},
    "selective, wide heads": FLAT | {"head_dim": 32},
    "selective, narrow heads": FLAT | {"head_dim": 4, "kv_heads": 1, "feed_forward": 80},
}
UNPATCHED = (
    *(name for name in MODELS if name.startswith("selective")),
    "entropy",
    "flat",
    "flat with tables",
    "hnet",
    "hnet with tables",
)

VARIANTS = {
    "projected": {},
    "plain": {"parallel": {"activation_checkpointing": "selective", "offload": True}},
    "one decoder cross": {"parallel": {"activation_checkpointing": "full"}},
    "grouped heads": {"optimizer": {"lr": 1e-3, "matrices": "muon"}},
    "all crosses": {"optimizer": {"lr": 1e-3, "rates": {"global_": 0, "ngrams": 0}}},
    "entropy": {"parallel": {"keep_gathered": True, "offload": True}},
    "megabyte": {},
    "spacebyte": {"parallel": {"activation_checkpointing": "full"}},
    "flat with tables": {},
    "megabyte with tables": {"optimizer": {"lr": 1e-3, "rates": {"ngrams": 0}}},
    "spacebyte with tables": {"parallel": {"offload": True}},
    "hnet": {},
    "blocks as in OLMo 3": {"optimizer": {"lr": 1e-3, "matrices": "muon"}},
    "blocks as in Qwen 2, all biases": {"parallel": {"activation_checkpointing": "selective"}},
    "selective, norms after": {"parallel": {"activation_checkpointing": "selective"}},
    "selective, wide heads": {"parallel": {"activation_checkpointing": "selective"}},
    "selective, narrow heads": {"parallel": {"activation_checkpointing": "selective"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_memory_is_what_the_dry_run_measures(name, patched, unpatched):
    """All parts of real tensors; what is kept for the backward pass within a tenth, as the packs' patches are odd."""
    folder = unpatched if name in UNPATCHED else patched
    sections = {"data": {"packs": 1, "tokens": 512}, **VARIANTS[name]}
    settings = recipe(name, folder, **sections)
    limits = limits_for(settings.model, open_dataset(folder / "train").manifest, settings.data.tokens)
    with started(settings.run) as world:
        model = build_model(settings, world)
        optimizer = build_optimizer(model, settings.optimizer)
        (measured,) = dry_run(model, optimizer, settings, limits, world).ranks
    planned = estimate(settings, 1, limits.patches or 0, tiled=True)
    for part in ("parameters", "gradients", "moments", "tables", "table_moments", "unsharded", "logits"):
        assert getattr(planned, part) == getattr(measured, part), part
    assert planned.activations == pytest.approx(measured.activations, rel=0.1)
    assert measured.peak < planned.on_device(offload=False) < 1.3 * measured.peak


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_the_first_share_of_a_tensor_is_the_largest_of_the_chunks(ranks):
    shapes = [(260, 32), (7,), (64, 64), (1000, 3)]
    chunks = [torch.empty(shape, device="meta").chunk(ranks)[0].numel() for shape in shapes]
    assert shard_bytes(shapes, ranks) == 4 * sum(chunks)


def kept(model: nn.Module, batch: Batch) -> int:
    """Bytes of the storages that a forward pass saves, parameters and the batch left out."""
    there = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    tensors = []  # alive until the end: no storage takes another's place

    def save(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        nn.functional.cross_entropy(predict(model, batch), batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return sum(found.values())


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_within_three_percent_of_what_is_saved(name, patched, unpatched):
    settings = recipe(name, unpatched if name in UNPATCHED else patched, data={"tokens": 2048})
    batch, model = first_pack(settings), empty_model(settings.model)
    given = Pass(len(batch.ids), 0, 4, tiled=True)
    if isinstance(batch.patches, PatchRoom):
        given = Pass(len(batch.ids), batch.patches.count, 4, tiled=True)
    elif batch.patches is not None:
        rows, _ = _strips(batch.patches.of_decoder, batch.patches.count)
        given = Pass(len(batch.ids), batch.patches.count, 4, tiled=True, strip_patches=rows.shape[1])
    expected = kept_activations(settings.model, given) + logits_bytes(given.tokens, 260)
    if name.endswith("with tables"):  # so small that it shows: plain tables keep no sums and no gradient of them
        expected -= given.tokens * 2 * 4 * settings.model.table_width
    assert kept(model, batch) == pytest.approx(expected, rel=0.03)


def test_blocks_that_compute_again_keep_less():
    settings = recipe("plain").model
    given = Pass(4096, 1024, 2, tiled=False)
    none, selective, full = (kept_activations(settings, given, how) for how in ("none", "selective", "full"))
    assert none > selective > full
    # One more global block costs its input alone, or what of it is kept.
    more = settings.model_copy(update={"global_": settings.global_.model_copy(update={"layers": 3})})
    grown = kept_activations(more, given, "full") - full
    assert grown == 2 * 1024 * 128


def test_memory_follows_ranks_copies_and_accumulation():
    one = recipe("plain", data={"packs": 4})
    memory = {ranks: estimate(one, ranks, 512, tiled=False) for ranks in (1, 4)}
    assert memory[1].moments == 2 * memory[1].parameters > memory[4].moments >= memory[1].moments / 4
    shapes = parameter_shapes(one.model)
    whole = 4 * sum(prod(shape) for name, shape in shapes.items() if name != TABLES)
    two = estimate(one, 2, 512, tiled=False)
    assert two.transient - memory[4].transient == whole  # two packs are summed on each rank
    copies = estimate(recipe("plain", data={"packs": 4}, parallel={"shard": 1}), 4, 512, tiled=False)
    assert copies.parameters == whole
    assert copies.tables == memory[4].tables  # over all ranks, whatever copies there are


def test_units_are_whole_two_at_a_time_or_all():
    settings = recipe("plain").model
    dense = {name: shape for name, shape in parameter_shapes(settings).items() if name != TABLES}
    sizes = [count(unit) for unit in units_of(settings, dense)]
    assert unsharded_bytes(settings, dense, 2, keep=False) == 2 * max(map(sum, pairwise(sizes)))
    assert unsharded_bytes(settings, dense, 2, keep=True) == 2 * sum(sizes)
    assert transient_bytes(settings, dense, 2, sharded=True, accumulates=False) == 6 * max(sizes)
    assert transient_bytes(settings, dense, 2, sharded=True, accumulates=True) == 6 * max(sizes) + 4 * sum(sizes)


def test_a_plan_takes_patches_from_the_dataset_where_it_is_there(patched, unpatched):
    there = make_plan(recipe("plain", patched, data={"packs": 2}, plan={"patch_size": 9.0}))
    manifest = open_dataset(patched / "train").manifest
    assert there.patch_size == pytest.approx(manifest.totals.mean_patch_size)
    assert there.patches == pack_limits(manifest, there.settings.data.tokens).patches
    missing = make_plan(recipe("plain", data={"packs": 2}, plan={"patch_size": 9.0}))
    assert missing.patch_size == 9.0
    assert missing.patches < there.patches
    entropy = make_plan(recipe("entropy", unpatched))
    assert (entropy.patch_size, entropy.patches, entropy.paper, entropy.entropy) == (None, 0, None, None)


def test_the_run_ends_with_the_first_of_its_lengths():
    by_steps = make_plan(recipe("plain", run={"steps": 6}))
    assert by_steps.steps == 6
    assert by_steps.bytes == 6 * 2 * 256
    assert make_plan(recipe("plain", run={"steps": 6, "bytes": 600})).steps == 2
    assert by_steps.seconds is None


def test_time_is_useful_flops_over_what_the_devices_reach():
    asked = {"ranks": 2, "device": "H200", "utilisation": 0.5}
    plan = make_plan(recipe("plain", plan=asked, run={"dtype": "bfloat16"}))
    head = plan.forward["head"] / sum(plan.forward.values())  # in fp32
    at_peak = (1 - head) / 989e12 + head / 67e12
    assert plan.seconds == pytest.approx(plan.training * plan.bytes * at_peak / (2 * 0.5))
    assert plan.training == pytest.approx(3 * sum(plan.forward.values()))
    assert plan.executed > plan.training


def test_a_plan_says_what_share_is_trained_and_leaves_out_what_is_frozen():
    whole = make_plan(recipe("plain"))
    part = make_plan(recipe("plain", optimizer={"rates": {"global_": 0, "ngrams": 0}}))
    assert part.trained == part.parameters["encoder"] + part.parameters["decoder"] < whole.trained
    assert f"of them, {part.trained / whole.trained:.1%}" in report(part)
    assert "trains" not in report(whole)
    assert part.training < whole.training
    assert part.executed < whole.executed
    with pytest.raises(ConfigError, match=r"optimizer\.rates"):
        make_plan(recipe("plain", optimizer={"rates": {"globa": 0}}))


def test_a_rank_that_does_not_fit_is_one_line_of_warning():
    big = {"width": 16384, "layers": 40, "heads": 128}
    settings = recipe("plain", plan={"device": "RTX-4090"})
    model = BltSettings.model_validate(settings.model.model_dump(by_alias=True) | {"global": big})
    plan = make_plan(settings.model_copy(update={"model": model}))
    assert plan.device_memory > 23.5 * GIB
    assert "warning" in report(plan)
    assert "no options make it fit" in str(warning(plan))
    offloaded = plan.settings.model_copy(
        update={"parallel": plan.settings.parallel.model_copy(update={"offload": True})}
    )
    assert make_plan(offloaded).device_memory < plan.device_memory
    assert warning(make_plan(settings)) is None


RECIPES = Path(__file__).parents[3] / "trainer" / "recipes"


@pytest.mark.parametrize(
    ("recipe", "device", "ranks"), [("blt-1b", "RTX-4090", 2), ("blt-4b", "A100-40GB", 8), ("blt-8b", "H100", 8)]
)
def test_a_plan_that_does_not_fit_names_options_that_fit_at_its_own_ranks(recipe: str, device: str, ranks: int) -> None:
    asked = ["--plan.ranks", str(ranks), "--plan.device", device]
    plan = load_plan(Path("trainer/recipes") / f"{recipe}.toml", asked)
    words = warning(plan)
    assert words is not None
    size, options = words.split("; ")[1].split(" GiB with ")
    assert "plan.ranks" not in options
    fitting = load_plan(Path("trainer/recipes") / f"{recipe}.toml", [*asked, *options.split()])
    assert warning(fitting) is None
    assert fitting.device_memory / GIB == pytest.approx(float(size), abs=0.05)


def test_only_where_nothing_else_fits_are_more_ranks_asked_for() -> None:
    words = warning(load_plan(Path("trainer/recipes") / "blt-8b.toml", ["--plan.ranks", "8", "--plan.device", "L4"]))
    assert words is not None
    assert "no options" in words or "--plan.ranks" in words


def test_the_share_of_finding_patches_is_of_the_entropy_model_of_the_data_or_not_printed() -> None:
    text = report(load_plan(Path("trainer/recipes") / "blt-small.toml", []))
    assert "more, with the paper's entropy model" in " ".join(text.split())
    assert "8471%" not in text


def test_patches_that_no_model_found_cost_no_flops(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(tiny_data(tmp_path / "data", STATIC), tmp_path / "out")))
    text = report(load_plan(recipe, []))
    assert "by the paper's accounting" in text
    assert "finding patches" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plan.ranks", "3"], "plan.ranks is 3: it must divide data.packs, 2; 2 would do, or --data.packs 3"),
        (
            ["--parallel.shard", "3"],
            "parallel.shard is 3: it must divide plan.ranks, 1; set --parallel.shard 1, or --plan.ranks 3",
        ),
        (["--plan.device", "H900"], "plan.device: 'H900' is not known; give one of B200, H200"),
        (["--plan.sise", "3"], "plan.sise"),
    ],
)
def test_what_cannot_be_planned_is_one_line(options, words, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(toml(tiny_recipe(Path("missing"), tmp_path / "out")))
    assert main([str(path), "--plan", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_command_as_typed_needs_neither_torch_nor_data(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a plan needs no torch')\n")
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "trainer/main.py", "trainer/recipes/blt-small.toml", "--plan", "--plan.patch_size", "6"],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert result.stderr == ""
    assert "6.00 bytes a patch" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 112


def test_only_one_of_many_processes_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["trainer/recipes/blt-small.toml", "--plan"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 B"), (1, "1.00 B"), (9.996, "10.0 B"), (999.6, "1.00 kB"), (3.447e9, "3.45 GB"), (2.5e16, "25.0 PB")],
)
def test_amounts_have_three_digits(value, words):
    assert amount(value, "B") == words


@pytest.mark.parametrize(
    "override",
    [
        ("--model.global.layers", "100000000"),
        ("--model.global.width", str(2**40)),
        ("--model.ngrams.rows", str(2**62)),
        ("--model.window", str(2**62)),
        ("--data", "5"),
        ("--run", "[]"),
    ],
    ids=lambda override: override[0],
)
def test_a_plan_of_absurd_settings_is_refused_before_it_is_made(override: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=override[0].split(".")[-1].strip("-")):
        load_plan(Path("trainer/recipes") / "blt-small.toml", override)
