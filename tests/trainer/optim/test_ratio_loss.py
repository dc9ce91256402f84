"""The one loss that is no sum over targets: per pack, averaged over the packs of a step; and what a step counts."""

from pathlib import Path

import pytest
import torch
from helpers.model_examples import gradients, hnet_settings, random_text, routed_pack, summed_loss
from helpers.tiny_runs import NONE, metric_lines, run, tiny_data, tiny_settings
from torch import Tensor

from shared.layers.batch import Batch
from shared.layers.routing import ratio_loss
from shared.models.hnet import HNet
from shared.models.initialise import initialise
from trainer.distributed.world import started
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, backward, take_step

SETTINGS = hnet_settings(ratio_weight=0.5)
TINY = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32}
KIND = {"kind": "hnet", "encoder": TINY, "global": TINY, "decoder": TINY, "window": 64}


def packs() -> list[Batch]:
    """Of different sizes, the second one padded."""
    texts = [[random_text(90, 0), b"a"], [random_text(40, 1)], [random_text(60, 2), random_text(33, 3)]]
    return [routed_pack(own, SETTINGS, pad) for own, pad in zip(texts, [(0, 0), (30, 4), (0, 2)])]


@pytest.fixture
def model() -> HNet:
    model = HNet(SETTINGS)
    initialise(model, 0)
    return model


@pytest.mark.numerics
def test_the_ratio_loss_is_averaged_over_packs_and_everything_else_over_targets(model: HNet, tmp_path: Path) -> None:
    batches = packs()
    targets = sum(int((batch.labels >= 0).sum()) for batch in batches)
    whole = torch.zeros(())
    for batch in batches:
        found = model(batch.ids, batch.documents, batch.patches)
        ratio = SETTINGS.ratio_weight * ratio_loss(found.routing, batch.patches.real, SETTINGS.target)
        whole = whole + summed_loss(found.logits, batch.labels) / targets + ratio / len(batches)
    wanted = gradients(model, whole)
    model.zero_grad()
    with started(tiny_settings(tmp_path, tmp_path).run) as world:
        nats = backward(model, batches, targets, world)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7)
    with torch.no_grad():  # what is reported is the loss of the text alone
        logits: list[Tensor] = [model(batch.ids, batch.documents, batch.patches).logits for batch in batches]
    text = sum(float(summed_loss(own, batch.labels)) for own, batch in zip(logits, batches))
    assert float(nats) == pytest.approx(text, rel=1e-5)


def test_a_step_counts_the_patches_that_the_model_has_found(model: HNet, tmp_path: Path) -> None:
    batches = packs()
    patches = pairs = wanted = refused = 0
    with torch.no_grad():
        for batch in batches:
            found = model(batch.ids, batch.documents, batch.patches).routing
            for number, ends in enumerate(found.ends.split(batch.documents.lengths)):
                if not batch.patches.real.split(batch.documents.lengths)[number].all():
                    continue
                asked = found.wanted.split(batch.documents.lengths)[number][1:]
                patches += int(ends.sum())
                pairs += int(ends.sum()) * (int(ends.sum()) + 1) // 2
                wanted += int(asked.sum())
                refused += int((asked & ~ends[1:]).sum())
    assert refused > 0
    settings = tiny_settings(tmp_path, tmp_path, model=SETTINGS.model_dump(by_alias=True))
    with started(settings.run) as world:
        optimizer = build_optimizer(model, settings.optimizer)
        counted = take_step(model, optimizer, TrainStep(batches, 300, lr=1e-3), world).routing
    assert counted == (patches, pairs, wanted, refused)


def test_a_run_tells_of_its_patches(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", NONE)
    assert run(data, tmp_path / "whole", "--run.steps", 6, model=KIND) == 0
    lines = [line for line in metric_lines(tmp_path / "whole") if "refused" in line]
    assert len(lines) == 6
    for line in lines:
        assert 0 < line["patch_fill"] <= 1
        assert 0 <= line["refused"] <= 1
        assert 1 < line["bytes_per_patch"] < 64
        assert line["flops_per_byte"]["useful"] < line["flops_per_byte"]["executed"]
    validation = metric_lines(tmp_path / "whole")[-1]["validation"]
    assert 1 < validation["bytes_per_patch"] < 64
