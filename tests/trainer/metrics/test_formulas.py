"""Figures of an interval: what ranks' sums say, worked out by hand."""

import math
import mmap
import time

import numpy as np
import pytest
import torch
from helpers.tiny_runs import STATIC, tiny_data, tiny_settings

from shared.model_settings import EntropyModelSettings
from shared.models.flops import forward_flops
from shared.models.workload import useful_workload
from shared.shards.open import open_dataset
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.metrics.accumulator import Accumulator, RankSums
from trainer.metrics.formulas import ShareError, interval_metrics, share, validation_metrics
from trainer.metrics.run_metrics import FlopsCounter, listed_peak, memory_in_use
from trainer.metrics.subset_score import SubsetScore, bits_per_byte
from trainer.optim.step_timer import PARTS, StepTimer

LIMITS = PackLimits(tokens=100, patches=40)


def sums(**values: float) -> RankSums:
    """One rank that packed 80 tokens in 20 patches, of which 19 are of text."""
    return RankSums(
        **{
            "tokens": 80,
            "patches": 20,
            "own_patches": 19,
            "text": 76,
            "patch_room": 40,
            "packs": 1,
            "seconds": 4.0,
            **values,
        }
    )


def added(**values) -> Accumulator:
    return Accumulator(**{"steps": 2, "nats": 55.0, "targets": 160, "target_bytes": 152, **values})


TWO_RANKS = [
    sums(waited=1.0, update=0.4, useful=3e9, executed=4e9, peak=5, held=3),
    sums(useful=1e9, executed=2e9, peak=7, held=2),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", 55 / 160),
        ("bits_per_byte", pytest.approx(55 / math.log(2) / 152)),
        ("bytes_per_second", 38),
        ("patches_per_second", 38 / 4),
        ("bytes_per_patch", 4),
        ("token_fill", 0.8),
        ("patch_fill", 0.5),
        ("data_wait", 1 / 8),  # of the 4 seconds of each of two ranks
        ("step_seconds", {"whole": 2.0, "data": 0.0, "forward_backward": 0.0, "update": 0.1}),
        ("flops_per_second", 1e9),
        ("flops_per_byte", {"useful": 4e9 / 152, "executed": 6e9 / 152}),
        ("utilisation", {"model": 0.5, "hardware": 0.75}),
        ("memory", {"held": 3, "reserved": 0, "peak": 7}),
    ],
)
def test_rates_and_shares_are_of_all_ranks_together(name: str, value: object) -> None:
    assert interval_metrics(added(), TWO_RANKS, LIMITS, seconds=4.0, peak=1e9)[name] == value


def test_the_entropy_model_is_a_figure_of_its_own_and_utilisation_needs_a_peak() -> None:
    figures = interval_metrics(added(), [sums(scoring=152.0)], LIMITS, seconds=1.0, peak=None)
    assert figures["flops_per_byte"]["entropy_model"] == 2
    assert "utilisation" not in figures


def test_the_slowest_rank_is_named_where_there_are_several() -> None:
    figures = interval_metrics(added(), [sums(busy=1.0), sums(busy=2.0)], LIMITS, seconds=1.0, peak=None)
    assert figures["slowest_rank"] == {"rank": 1, "over_mean": 2 / 1.5}
    assert "slowest_rank" not in interval_metrics(added(), [sums(busy=1.0)], LIMITS, seconds=1.0, peak=None)


def test_an_interval_of_skipped_steps_alone_has_no_loss() -> None:
    empty = added(nats=0.0, targets=0, target_bytes=0, skipped=2)
    figures = interval_metrics(empty, [sums()], LIMITS, seconds=1.0, peak=None)
    assert not {"loss", "bits_per_byte"} & figures.keys()
    assert figures["skipped"] == 2
    assert figures["bytes_per_second"] == 76


def test_unpatched_data_has_no_figures_of_patches() -> None:
    figures = interval_metrics(added(), [sums()], PackLimits(100, None), seconds=1.0, peak=None)
    assert not {"patch_fill", "bytes_per_patch", "patches_per_second"} & figures.keys()


def test_validation_is_given_in_total_and_by_subset() -> None:
    scores = {
        "a": SubsetScore(nats=10.0, targets=12, bytes=10, text=10, patches=5, documents=2),
        "b": SubsetScore(nats=20.0, targets=33, bytes=30, text=30, patches=5, documents=3),
    }
    found = validation_metrics(scores)["validation"]
    assert found["bits_per_byte"] == bits_per_byte(30.0, 40)
    assert found["subsets"]["b"] == bits_per_byte(20.0, 30)
    assert found["bytes_per_patch"] == 4
    assert found["bytes_per_patch_by_subset"] == {"a": 2, "b": 6}


def test_work_counts_what_is_real_as_useful_and_padding_as_executed(tmp_path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    settings = tiny_settings(data, tmp_path / "run")
    train = open_dataset(data / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, 256), 2))
    mine = [next(packs), next(packs)]
    entropy_model = EntropyModelSettings(width=32, layers=1, heads=2, window=64)
    counter = FlopsCounter(settings.model, entropy_model, "none", tiled=True)
    counter.add(mine)
    work = counter.pop()
    tokens = np.concatenate([pack.in_slice for pack in mine])
    patches = np.concatenate([pack.in_patches for pack in mine])
    assert work["useful"] == 3 * forward_flops(settings.model, useful_workload(settings.model, tokens, patches)).total
    assert work["scoring"] == forward_flops(entropy_model, useful_workload(entropy_model, tokens)).total
    assert work["executed"] > work["useful"]
    assert counter.pop()["useful"] == 0


def test_the_timer_gives_every_second_of_a_step_to_one_part() -> None:
    timer = StepTimer(torch.device("cpu"))
    timer.begin_step()
    for part in PARTS:
        sum(range(20_000))
        timer.mark(part)
    taken = timer.pop()
    assert set(taken) == {"seconds", *PARTS}
    assert all(seconds > 0 for seconds in taken.values())
    after = timer.pop()
    assert [after[part] for part in PARTS] == [0.0] * len(PARTS)


def test_what_happens_in_a_pause_is_no_part_of_an_interval() -> None:
    timer = StepTimer(torch.device("cpu"))
    with timer.paused():
        time.sleep(0.2)
    assert timer.pop()["seconds"] < 0.2
    timer.restart()
    time.sleep(0.01)
    assert timer.pop()["seconds"] >= 0.01


def test_memory_and_peak_are_those_of_this_process() -> None:
    before = memory_in_use(torch.device("cpu"))
    with mmap.mmap(-1, 32 << 20) as block:  # fresh pages: an allocator might give some that are resident already
        block.write(b"x" * len(block))
        after = memory_in_use(torch.device("cpu"))
    assert after["held"] - before["held"] > 16 << 20
    assert after["peak"] >= after["held"] - (64 << 20)


def test_a_cpu_has_no_peak_to_be_a_share_of() -> None:
    assert listed_peak(torch.device("cpu"), "float32") is None


@pytest.mark.parametrize("part", [-1.0, 1.01, 1e9])
def test_a_share_outside_of_0_to_1_is_refused_and_nothing_is_clamped(part: float) -> None:
    with pytest.raises(ShareError, match="token_fill"):
        share(part, 1.0, "token_fill")


@pytest.mark.parametrize("done", [{"useful": 8.1e9, "executed": 8.1e9}, {"useful": 1e9, "executed": 8.1e9}])
def test_more_than_the_peak_is_refused(done: dict[str, float]) -> None:
    with pytest.raises(ShareError, match="utilisation"):
        interval_metrics(added(), [sums(**done), sums()], LIMITS, seconds=4.0, peak=1e9)
