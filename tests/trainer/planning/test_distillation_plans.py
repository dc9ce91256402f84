"""--plan of frozen parts and of a distillation, against what runs count and what files and tensors take."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.model_examples import flat_settings
from helpers.target_examples import write_targets
from helpers.tiny_runs import STATIC, metric_lines, run, tiny_data, tiny_recipe, tiny_settings, toml
from torch import Tensor, nn

from shared.distillation.stored_targets import TargetFormat
from shared.distillation.targets_folder import load_targets, tensors_of
from shared.distillation.teacher import CONTEXT as TEACHERS_CONTEXT
from shared.distillation.teacher import windows
from shared.layers.batch import Batch
from shared.model_folder.files import build_model
from shared.models.flops import forward_flops
from shared.models.workload import useful_workload
from shared.shards.open import open_dataset
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.main import main
from trainer.memory.dry_run import taught
from trainer.memory.estimate import STRIP, Pass, kept_activations, kept_by_distillation
from trainer.memory.parameters import frozen_names
from trainer.memory.parts import logits_bytes
from trainer.optim.distillation import Distillation, TeacherEmbedding
from trainer.optim.parameter_groups import freeze
from trainer.planning.plan import load_plan
from trainer.planning.report import report
from trainer.planning.teacher import CONTEXT, bytes_of_targets, token_model, window_lengths
from trainer.settings.planning import TargetsPlanSettings

FROZEN = {"lr": 1e-3, "rates": {"global_": 0, "ngrams": 0}}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "longrope"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("distillation") / "data", STATIC)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A teacher's config.json, without weights."""
    path = tmp_path / "teacher" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


def test_a_run_counts_the_flops_of_frozen_parts_as_its_plan_does(data: Path, tmp_path: Path) -> None:
    keys = {"data.tokens": 512, "run.steps": 2, "plan.document_bytes": 150, "parallel.dry_run": "false"}
    overrides = [str(word) for key, value in keys.items() for word in (f"--{key}", value)]
    frozen = {"lr": 1e-3, "rates": {"global_": 0, "decoder": 0}}
    assert run(data, tmp_path / "run", *overrides, optimizer=frozen) == 0
    plan = load_plan(tmp_path / "run.toml", overrides)
    counted = [line["flops_per_byte"]["useful"] for line in metric_lines(tmp_path / "run") if "flops_per_byte" in line]
    # Documents of a pack differ, so attention and the tokens between them do, a little.
    assert np.mean(counted) == pytest.approx(plan.training, rel=0.03)
    assert 2 < plan.training / sum(plan.forward.values()) < 2.6


def kept(batch: Batch, model: nn.Module, distillation: Distillation) -> int:
    """Bytes of the storages that a forward pass and its loss save, parameters left out."""
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
        distillation.losses(model(batch.ids, batch.documents, batch.patches, True), batch)
    return sum(found.values())


def kept_and_planned(data: Path, weights: dict, rates: dict) -> tuple[int, int]:
    """The same of a student, and what the plan has for it."""
    wide = {"width": 128, "layers": 3, "heads": 4, "feed_forward": 256}
    model = tiny_settings(data, Path("out")).model.model_dump(by_alias=True) | {"global": wide}
    given = {"optimizer": {"lr": 1e-3, "rates": rates}, "model": model, "data": {"tokens": 2048}}
    settings = tiny_settings(data, Path("out"), distillation={"targets": "x", "teacher": "y"} | weights, **given)
    train = open_dataset(data / "train")
    pack = next(iter(PackLoader(train, pack_limits(train.manifest, 2048), 1)))
    batch = taught(pack.batch.to(torch.device("cpu")), settings.plan.targets.top)
    student = build_model(settings.model)
    freeze(student, settings.optimizer)
    embedding = TeacherEmbedding(torch.ones(300, 128), 1) if settings.distillation.embedding else None
    full = Pass(len(batch.ids), batch.patches.count, 4, tiled=True, strip_patches=STRIP // 4 + 1)
    planned = kept_activations(settings.model, full, frozen=frozen_names(settings))
    planned += kept_by_distillation(settings, full) + logits_bytes(full.tokens, 260)
    return kept(batch, student, Distillation(settings.distillation, embedding)), planned


@pytest.mark.parametrize(
    "rates", [{}, {"global_": 0, "ngrams": 0}, {"*.blocks.*.down": 0, "*.blocks.0.qkv": 0}], ids=str
)
def test_what_a_distillation_keeps_is_within_three_percent(data: Path, rates: dict) -> None:
    found, planned = kept_and_planned(data, {}, rates)
    assert found == pytest.approx(planned, rel=0.03)
    for term in ("embedding", "probabilities"):  # each beside the other
        without, planned_without = kept_and_planned(data, {term: 0}, rates)
        assert found - without == pytest.approx(planned - planned_without, rel=0.05), term


def test_a_teacher_is_known_from_its_config_alone(config: Path, tmp_path: Path) -> None:
    for given in (config, config.parent):
        model = token_model(given)
        assert model.name == "LlamaForCausalLM"
        block = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
        assert model.parameters == 3 * block + 64 + 1000 * 64
        assert model.embedding_bytes == 2 * 1000 * 64
        assert model.context == 512
    ours = tmp_path / "ours"
    ours.mkdir()
    settings = flat_settings(vocabulary=1000)
    (ours / "config.json").write_text(settings.model_dump_json())
    assert token_model(ours).settings == settings


def test_windows_are_those_of_the_teacher() -> None:
    for context in (2, 7, 8):
        for tokens in range(1, 40):
            found = windows([np.arange(tokens)], context)
            assert window_lengths(tokens, context) == [len(window.ids) for window in found], (tokens, context)
    assert CONTEXT == TEACHERS_CONTEXT


def distilling(data: Path, out: Path, config: Path, **sections: dict) -> list[str]:
    recipe = tiny_recipe(data, out, **{"optimizer": FROZEN, "plan": {"patch_size": 4.0}} | sections)
    out.with_suffix(".toml").write_text(toml(recipe | {"distillation": {"teacher": str(config)}}))
    return [str(out.with_suffix(".toml")), "--plan"]


IN_BFLOAT16 = ["--plan.targets.precision", "bfloat16"]


def test_a_plan_counts_the_teacher_once_over_the_text_and_the_room_of_its_targets(
    config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = distilling(Path("missing"), tmp_path / "run", config)
    plan = load_plan(Path(command[0]), [])
    assert plan.teacher is not None
    model = token_model(config).settings
    # Packs of 256 bytes, a document each: 64 tokens of 4 bytes and EOS.
    expected = forward_flops(model, useful_workload(model, [65])).total * plan.bytes / 256
    assert plan.teacher.flops == pytest.approx(expected)
    assert plan.teacher.stored == 36 * (plan.bytes + plan.bytes // 256) + 8 * plan.bytes // 256
    assert plan.memory.teacher == 2 * 1000 * 64
    # Where the data is there, the teacher reads all of it, however long the run is.
    there = load_plan(Path(distilling(data, tmp_path / "there", config)[0]), [])
    totals = open_dataset(data / "train").manifest.totals
    assert there.teacher is not None
    assert there.teacher.bytes == totals.bytes
    assert there.teacher.stored == 36 * (totals.bytes + totals.documents) + 8 * totals.documents
    assert main([*command, "--plan.device", "H200", "--plan.targets.context", "32", "--plan.targets.top", "4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "LlamaForCausalLM, 157 k parameters" in out
    assert "in windows of 32 tokens" in out
    assert "20 bytes a byte of text, the 4 most probable symbols in float16" in out
    assert "teacher 0.12" in out
    exact, rounded = (load_plan(Path(command[0]), ["--plan.device", "H200", *more]) for more in ([], IN_BFLOAT16))
    assert exact.teacher_seconds is not None
    work = forward_flops(model, useful_workload(model, [65]))
    head = work.by_part()["head"] / work.total
    assert 0.1 < head < 0.5
    assert rounded.teacher_seconds == pytest.approx(exact.teacher_seconds * (67 / 989 * (1 - head) + head), rel=1e-3)
    assert exact.seconds == rounded.seconds
    assert "(head " in report(rounded)
    assert "(head " not in report(exact)


def test_figures_of_targets_that_are_there_are_theirs(config: Path, data: Path, tmp_path: Path) -> None:
    write_targets(tmp_path / "targets" / "train", open_dataset(data / "train"))
    _, manifest = load_targets(tmp_path / "targets", "train")
    command = distilling(data, tmp_path / "run", config)
    plan = load_plan(Path(command[0]), ["--distillation.targets", str(tmp_path / "targets")])
    assert plan.teacher is not None
    assert plan.teacher.found
    assert plan.teacher.stored == manifest.bytes_on_disk > 0
    assert plan.teacher.flops == pytest.approx(manifest.flops)
    assert f"{plan.teacher.stored}"[:2] in report(plan)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_targets_take_what_their_arrays_take(dtype: str) -> None:
    form = TargetFormat(top=5, dtype=dtype)
    widths = {"I16": 2, "F16": 2, "F32": 4, "I64": 8}
    arrays = sum(widths[kind] * int(np.prod(shape)) for kind, shape in tensors_of(form, 1000, 10).values())
    assert bytes_of_targets(form.top, form.dtype, 1000, 10) + 8 == arrays
    assert TargetFormat().model_dump() == TargetsPlanSettings().model_dump(include={"top", "dtype"})


def test_a_plan_needs_no_teacher(tmp_path: Path) -> None:
    plan = load_plan(Path(distilling(Path("missing"), tmp_path / "run", tmp_path / "nowhere")[0]), [])
    assert plan.teacher is None
    assert "the teacher not counted" in " ".join(report(plan).split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": None}, "config.json: vocab_size: must be a valid integer"),
        ({"model_type": "bert"}, "config.json: this is bert, only blocks of these"),
    ],
    ids=["no vocabulary", "another family"],
)
def test_what_is_no_teacher_is_one_line(
    changes: dict, words: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(json.dumps(CONFIG | changes))
    assert main(distilling(Path("missing"), tmp_path / "run", config)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
