"""Analytic FLOPs against torch's own counter and against pairs counted one by one."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.model_examples import (
    any_model,
    blt,
    blt_settings,
    entropy_settings,
    flat_settings,
    hnet_settings,
    megabyte_settings,
    pack,
    routed_pack,
    spacebyte_settings,
)
from helpers.stack_examples import OTHER_BLOCKS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared.layers import tiled_attention as tiles
from shared.layers.batch import Batch
from shared.layers.cross_attention import _strips
from shared.layers.tile_sizes import STRIP, WIDEST_STRIP
from shared.model_settings import BltSettings
from shared.models.flops import executed_training_flops, forward_flops, paper_flops_per_byte, stacks, training_flops
from shared.models.hnet import RoutedLogits
from shared.models.workload import (
    Workload,
    causal_pairs,
    executed_workload,
    strip_reads,
    text_workload,
    tiled_pairs,
    useful_workload,
)
from shared.patching import PatchingSettings
from shared.stack_settings import StackSettings

TEXTS = [b"patches are where the next byte is hard to guess", b"", b"a short one", b"x" * 150]
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=8)
BLTS = {
    "projection to the global width": blt_settings(global_width=48),
    "equal widths": blt_settings(global_width=64),
    "grouped heads": blt_settings(kv_heads=2),
    "cross-attention in all encoder layers": blt_settings(
        encoder=StackSettings(width=32, layers=3, heads=4, feed_forward=40), encoder_cross_all_layers=True
    ),
    "mean": blt_settings(pooling="mean"),
    "learned pooling": blt_settings(pooling="attention"),
    "cross-attention in one decoder layer": blt_settings(decoder_cross_all_layers=False, queries=3),
    "narrow local heads": blt_settings(
        encoder={"width": 32, "layers": 1, "heads": 2, "head_dim": 6, "feed_forward": 40},
        decoder={"width": 32, "layers": 2, "heads": 3, "head_dim": 4, "feed_forward": 40},
    ),
}
BLTS |= {
    f"blocks {name}": blt_settings(**{"global": {"width": 48, "layers": 2, "heads": 2} | changes})
    for name, changes in OTHER_BLOCKS.items()
}


def workload(model: nn.Module, batch: Batch) -> Workload:
    patches = () if batch.patches is None else batch.patches.documents.lengths
    return useful_workload(model.settings, batch.documents.lengths, patches)


def counted(model: nn.Module, batch: Batch) -> tuple[dict[str, int], dict[str, int]]:
    """What torch counts by operator of aten, in the forward pass and in both."""
    inputs = (batch.ids, batch.documents) if batch.patches is None else (batch.ids, batch.documents, batch.patches)
    with FlopCounterMode(display=False) as counter:
        found = model(*inputs)
        loss = (found.logits if isinstance(found, RoutedLogits) else found).sum()
        forward = counter.get_flop_counts()["Global"]
        forward = {str(op): count for op, count in forward.items()}
        loss.backward()
    return forward, {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}


def linear(counts: dict[str, int]) -> int:
    """Products with parameters; those of three axes belong to attention."""
    return counts["aten.mm"] + counts["aten.addmm"]


@pytest.mark.parametrize("settings", BLTS.values(), ids=BLTS.keys())
def test_products_of_the_blt_are_exactly_those_that_torch_counts(settings):
    model, batch = blt(settings), pack(TEXTS)
    work = workload(model, batch)
    forward = forward_flops(settings, work)
    counts, both = counted(model, batch)
    assert sum(forward.products.values()) == linear(counts)
    assert sum(training_flops(settings, work).products.values()) == linear(both)
    assert list(forward.products) == [
        "ngrams",
        "encoder",
        "encoder_cross",
        "global",
        "decoder_cross",
        "decoder",
        "head",
    ]


FLATS = {
    "entropy model": entropy_settings(),
    "shared keys": entropy_settings(kv_heads=1),
    "default feed-forward": entropy_settings(layers=3, feed_forward=None),
    "bytes": flat_settings(),
    "subwords": flat_settings(vocabulary=1000, window=16),
    "bytes with tables": flat_settings(ngrams={"rows": 97}),
}


@pytest.mark.parametrize("settings", FLATS.values(), ids=FLATS.keys())
def test_products_of_flat_models_are_exactly_those_that_torch_counts(settings):
    model, batch = any_model(settings), replace(pack(TEXTS), patches=None)
    work = workload(model, batch)
    forward = forward_flops(settings, work)
    counts, both = counted(model, batch)
    assert sum(forward.products.values()) == linear(counts)
    assert sum(training_flops(settings, work).products.values()) == linear(both)


PATCHED = {
    "megabyte": (megabyte_settings(patch=3), PatchingSettings(rule="static", stride=3), "global local projection head"),
    "spacebyte": (spacebyte_settings(), PatchingSettings(rule="space"), "before global after head"),
    "megabyte with tables": (
        megabyte_settings(patch=3, ngrams={"rows": 97}),
        PatchingSettings(rule="static", stride=3),
        "ngrams global local projection head",
    ),
    "spacebyte with tables": (
        spacebyte_settings(ngrams={"rows": 97}),
        PatchingSettings(rule="space"),
        "ngrams before global after head",
    ),
}


@pytest.mark.parametrize("name", PATCHED)
def test_products_of_other_models_of_patches_are_exactly_those_that_torch_counts(name):
    settings, patching, parts = PATCHED[name]
    model, batch = any_model(settings), pack(TEXTS, patching)
    work = workload(model, batch)
    forward = forward_flops(settings, work)
    counts, both = counted(model, batch)
    assert list(forward.products) == parts.split()
    assert sum(forward.products.values()) == linear(counts)
    assert sum(training_flops(settings, work).products.values()) == linear(both)


FREEZING = {
    "global": r"global_\.",
    "global, tables and embedding": r"global_\.|ngrams|(encoder\.)?embedding",
    "all that reads bytes": r"encoder|ngrams|embedding|before|patch_embedding",
    "all but the head": r"(?!.*head)",
    "all but the last block": r"(?!.*blocks\.1\.)",
    "queries and keys": r".*(qkv|query|key)",
    "all but norms": r"(?!.*norm)",
    "cross-attention": r".*(cross|pooling)",
}
"""What begins the names of parameters that do not learn."""
FROZEN_KINDS = {
    "blt": blt_settings(),
    "blt, all crosses": BLTS["cross-attention in all encoder layers"],
    "blt, equal widths": BLTS["equal widths"],
    "blt, learned pooling": BLTS["learned pooling"],
    "blt, blocks as in OLMo 3": BLTS["blocks as in OLMo 3"],
    "blt, all biases": BLTS["blocks as in Qwen 2, all biases"],
    "flat": FLATS["bytes with tables"],
    **{name: settings for name, (settings, _, _) in PATCHED.items()},
    "hnet": hnet_settings(),
}


@pytest.mark.parametrize("kind", FROZEN_KINDS)
def test_products_of_models_with_frozen_parts_are_exactly_those_that_torch_counts(kind: str) -> None:
    """A frozen product has one in the backward pass, for what comes before it, and none where nothing there learns."""
    settings = FROZEN_KINDS[kind]
    model, batch = any_model(settings), pack(TEXTS, PATCHED[kind][1]) if kind in PATCHED else pack(TEXTS)
    if kind == "hnet":
        batch = routed_pack(TEXTS, settings)
    elif kind == "flat":
        batch = replace(batch, patches=None)
    work = workload(model, batch)
    for pattern in FREEZING.values():
        frozen = {name for name, _ in model.named_parameters() if re.match(pattern, name)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        _, both = counted(model, batch)
        assert sum(training_flops(settings, work, frozen).products.values()) == linear(both), pattern
        assert sum(executed_training_flops(settings, work, "none", frozen).products.values()) == linear(both), pattern


def test_frozen_bytes_take_no_gradients_of_queries_in_cross_attention() -> None:
    settings = blt_settings(decoder_cross_all_layers=False)
    model, batch = blt(settings), pack(TEXTS)
    frozen = {name for name, _ in model.named_parameters() if name.startswith(("encoder", "ngrams", "decoder.cross"))}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    of_decoder = batch.patches.of_decoder.numpy()
    lengths = batch.documents.lengths, batch.patches.documents.lengths
    work = executed_workload(settings, *lengths, tiled=True, of_decoder=of_decoder)
    _, both = counted(model, batch)
    done = executed_training_flops(settings, work, frozen=frozen)
    assert done.attention["decoder_cross"] == sum(both[op] for op in ("aten.bmm", "aten.baddbmm"))
    assert done.attention["encoder"] == forward_flops(settings, work).attention["encoder"]
    assert done.attention["global"] == 7 * forward_flops(settings, work).attention["global"] // 2
    again = executed_training_flops(settings, work, "full", frozen)
    assert again.by_part()["encoder"] == forward_flops(settings, work).by_part()["encoder"]
    assert again.products["global"] == 4 * forward_flops(settings, work).products["global"]


def test_layers_with_a_window_meet_fewer_keys_than_the_others() -> None:
    lengths, windows = [1, 40, 7], (8, 0, 5)
    stack = {"width": 48, "layers": 4, "heads": 2, "head_dim": 10, "windows": windows}
    met = sum(min(place + 1, window or 99) for window in (8, 0, 5, 8) for n in lengths for place in range(n))
    for settings, work in (
        (blt_settings(**{"global": stack}), lambda settings: useful_workload(settings, [100], lengths)),
        (flat_settings(**stack), lambda settings: useful_workload(settings, lengths)),
    ):
        flops = forward_flops(settings, work(settings))
        assert flops.attention["global" if "global" in flops.attention else "blocks"] == met * 4 * 20


def test_products_of_hnet_are_those_that_torch_counts_with_all_room_taken():
    settings = hnet_settings()
    model, batch = any_model(settings), routed_pack(TEXTS, settings)
    work = workload(model, batch)
    forward = forward_flops(settings, work)
    counts, both = counted(model, batch)
    assert list(forward.products) == ["encoder", "global", "decoder", "router", "projection", "head"]
    assert sum(forward.products.values()) == linear(counts)
    assert sum(training_flops(settings, work).products.values()) == linear(both)


def test_hnet_is_planned_at_its_target():
    settings = hnet_settings(target=5)
    assert text_workload(settings, [101, 1, 2, 8], ()) == useful_workload(settings, [101, 1, 2, 8], [21, 1, 1, 2])


def test_bytes_of_megabyte_meet_those_of_their_own_patch_only():
    settings = megabyte_settings(patch=3)
    work = useful_workload(settings, [1, 7, 9, 0], [1, 3, 3, 0])
    assert work.token_pairs == 1 + (6 + 6 + 1) + 18
    assert work.patch_pairs == 1 + 6 + 6
    assert executed_workload(settings, [7], [3], tiled=True).token_pairs == 7 * 7  # one tile


def test_the_decoder_reads_as_many_patches_as_torch_counts():
    settings = blt_settings()
    model, batch = blt(settings), pack(TEXTS)
    of_decoder = batch.patches.of_decoder.numpy()
    patches = batch.patches.documents.lengths
    work = executed_workload(settings, batch.documents.lengths, patches, tiled=True, of_decoder=of_decoder)
    forward = forward_flops(settings, work)
    counts, both = counted(model, batch)
    strips = {op: count for op, count in counts.items() if op in ("aten.bmm", "aten.baddbmm")}
    assert forward.attention["decoder_cross"] == sum(strips.values()) > 0
    assert executed_training_flops(settings, work).attention["decoder_cross"] == sum(both[op] for op in strips)


@given(LENGTHS, st.sampled_from([None, 1, 7, 64, 65, 200]))
def test_pairs_are_those_that_meet_one_by_one(lengths, window):
    expected = sum(min(place + 1, window or length) for length in lengths for place in range(length))
    assert causal_pairs(lengths, window) == expected


@given(LENGTHS, st.sampled_from([None, 1, 7, 64, 65, 66, 200]))
def test_tiles_are_those_of_the_attention_itself(lengths, window):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    found = sum(
        (tile.queries.stop - tile.queries.start) * (tile.keys.stop - tile.keys.start)
        for tile in tiles._tiles(ids, ids, window or 0)
    )
    assert tiled_pairs(lengths, window) == found >= causal_pairs(lengths, window)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.booleans())
def test_strips_are_those_of_the_attention_itself(steps, wide):
    patch = np.cumsum(steps) * (20 if wide else 1)
    rows, seen = _strips(torch.from_numpy(patch), int(patch[-1]) + 1)
    expected = seen.numel() if rows.shape[1] <= WIDEST_STRIP else len(patch)
    assert strip_reads(patch) == expected
    assert len(rows) == -(-len(patch) // STRIP)


def test_work_of_packs_adds_up():
    settings = blt_settings()
    first, second = useful_workload(settings, [5, 90], [2, 20]), useful_workload(settings, [31], [8])
    assert first + second == useful_workload(settings, [5, 90, 31], [2, 20, 8])
    flops = [forward_flops(settings, work).total for work in (first, second, first + second)]
    assert flops[0] + flops[1] == flops[2]
    assert useful_workload(settings, [], []) == Workload()


def test_attention_counts_two_products_of_every_pair():
    settings = blt_settings(encoder_cross_all_layers=True)
    work = Workload(tokens=10, patches=4, token_pairs=7, patch_pairs=3, patch_reads=12)
    attention = forward_flops(settings, work).attention
    assert attention == {
        "encoder": 4 * 32 * 7,
        "encoder_cross": 4 * 32 * 10 * 2,
        "global": 4 * 48 * 3 * 2,
        "decoder_cross": 4 * 32 * 12 * 2 * 2,
        "decoder": 4 * 32 * 7 * 2,
    }


def test_what_is_executed_in_training():
    """Selective recomputation takes products with more than three outputs an input again: here of the encoder alone."""
    settings = blt_settings(encoder={"width": 32, "layers": 2, "heads": 4, "head_dim": 12, "feed_forward": 64})
    work = useful_workload(settings, [100, 20], [25, 6])
    forward, useful = forward_flops(settings, work), training_flops(settings, work)
    plain, again = executed_training_flops(settings, work), executed_training_flops(settings, work, "full")
    selective = executed_training_flops(settings, work, "selective")
    assert plain.products == useful.products
    for part, stack, positions in stacks(settings, work):
        assert again.products[part] == 4 * forward.products[part]
        # Scores and sums of values, and in the backward pass scores once more and four gradients.
        assert 2 * plain.attention[part] == 7 * forward.attention[part]
        assert again.attention[part] == plain.attention[part] + forward.attention[part]
        wide = (128 + 144) if part == "encoder" else 0  # gate and up; queries, keys and values
        assert selective.products[part] == plain.products[part] + 2 * positions * stack.layers * stack.width * wide
    for part in ("encoder_cross", "decoder_cross", "head"):
        assert plain.by_part()[part] == again.by_part()[part] == selective.by_part()[part] == useful.by_part()[part]


def test_padding_is_executed_and_not_useful():
    settings = blt_settings()
    useful = useful_workload(settings, [100], [25])
    padded = executed_workload(settings, [100, 28], [25, 7], tiled=False)
    assert (padded.tokens, padded.patches, padded.patch_reads) == (128, 32, 128)
    assert padded.token_pairs == causal_pairs([100, 28], settings.window)
    assert forward_flops(settings, padded).total > forward_flops(settings, useful).total


@pytest.mark.parametrize(("patch_size", "gigaflops"), [(4.5, 3.45), (6, 2.63), (8, 2.03)])
def test_the_paper_figures_of_the_8b_model(patch_size, gigaflops):
    settings = BltSettings.model_validate(
        {
            "encoder": {"width": 1280, "layers": 1, "heads": 20},
            "global": {"width": 4096, "layers": 32, "heads": 32},
            "decoder": {"width": 1280, "layers": 6, "heads": 20},
            "queries": 4,
        }
    )
    assert paper_flops_per_byte(settings, patch_size) == pytest.approx(gigaflops * 1e9, rel=0.003)


def test_counting_needs_no_torch():
    code = "import sys, shared.models.flops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
