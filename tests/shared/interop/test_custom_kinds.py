"""The classes that folders carry give what our models give: of other kinds than byte latent transformers, and of blocks
of other families than Llama's.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.custom_classes import modules_below, opened, padded
from helpers.interop_examples import unlike_fresh, unmeasured
from helpers.model_examples import (
    FAMILIES,
    LOCAL,
    YARN,
    any_model,
    between,
    blt_settings,
    entropy_model,
    entropy_settings,
    flat_settings,
    hnet_settings,
    megabyte_settings,
    random_text,
    spacebyte_settings,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64
from helpers.whole_texts import entropies_of, logits_of, pack_of, routed
from torch import Tensor

from shared.interop.custom_module import class_name, custom_model_type, file_name, module_kind, module_text
from shared.interop.described import Record
from shared.interop.names import HF, folder_parts
from shared.interop.opening import open_foreign
from shared.interop.writing import write_hf_folder
from shared.layers.batch import Batch
from shared.layers.routing import ratio_loss
from shared.model_folder.files import Model, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import AnyModelSettings
from shared.models.entropy_model import EntropyModel
from shared.models.hnet import HNet
from shared.patching import PatchingSettings
from shared.shards.manifest import EntropyModelIdentity
from shared.vocabulary import BOE, BOS, EOS, RESERVED, byte_tokens

pytestmark = [pytest.mark.numerics, pytest.mark.drill]

NOT_TEXT = [BOE, BOS, RESERVED]
UNPATCHED = PatchingSettings(rule="none")
TABLES = {"sizes": (2, 3, 5), "rows": 101, "functions": 2}
FLAT = {
    "flat": (flat_settings(), UNPATCHED),
    "flat, tables": (flat_settings(ngrams=TABLES, window=20, kv_heads=1), UNPATCHED),
    "flat, layers unlike each other": (
        flat_settings(
            **FAMILIES["OLMo 3"]
            | {
                "windows": (9, 0),
                "rotated": (True, True, False),
                "rope_scaling": YARN | {"windowed": True, "rounded": False},
                "biases": ("attention_output", "down", "gate_up"),
            }
        ),
        UNPATCHED,
    ),
    "entropy": (entropy_settings(newline_reset=True), UNPATCHED),
}
GROUPED = {"width": 32, "layers": 1, "heads": 4, "kv_heads": 2, "feed_forward": 40}
HNET = {
    "hnet": (hnet_settings(), UNPATCHED),
    "hnet, tables": (
        hnet_settings(
            ngrams=TABLES,
            credit=30,
            credit_bytes=1,
            max_length=31,
            encoder=GROUPED,
            **{"global": FAMILIES["OLMo 3"] | {"biases": ("qkv",)}},
        ),
        UNPATCHED,
    ),
}
INNER = {"head_dim": 12, "qk_norm": "head", "biases": ("qkv",), "rotated": (True, False)}
"""What the entropy model has unlike a Llama."""
BY_ENTROPY = PatchingSettings(rule="entropy", theta=1.0, min_length=2, max_length=24)
"""With a threshold between two entropies in its place."""
PATCHED = {
    "megabyte": (megabyte_settings(), PatchingSettings(rule="static", stride=4, max_length=64)),
    "megabyte, tables": (
        megabyte_settings(ngrams=TABLES, patch=3, local=GROUPED),
        PatchingSettings(rule="static", stride=3, max_length=3),
    ),
    "spacebyte": (spacebyte_settings(), PatchingSettings(rule="space", max_length=16)),
    "spacebyte, tables": (spacebyte_settings(ngrams=TABLES, before=GROUPED), BY_ENTROPY),
}
WIDER = LOCAL | {"kv_heads": 2, "head_dim": 12}
LOCALS = {"encoder": WIDER | {"qk_norm": "head"}, "decoder": WIDER | {"norm": "after", "rotated": (False, True)}}
"""Whose cross-attention has heads of that width, too."""
BLT = {
    f"blt, {name}": (
        blt_settings(
            **{"global": stack},
            **(LOCALS if name == "Qwen 3" else {}),
        ),
        BY_ENTROPY if name == "Qwen 2" else PatchingSettings(rule="space", max_length=16),
    )
    for name, stack in FAMILIES.items()
}
MODELS: dict[str, tuple[AnyModelSettings, PatchingSettings]] = FLAT | HNET | PATCHED | BLT
WRITTEN = 8
"""Ids after each prompt: at a stride of four they fill two patches."""
SURE = 2e-5
"""How far p of a router has to be from 1/2 for a boundary to be the same whatever is rounded."""


@dataclass(frozen=True)
class Both:
    """A model here, and the same as the folder's own class."""

    model: Model
    entropy_model: EntropyModel | None
    rule: PatchingSettings
    theirs: Any
    folder: Path

    def pack(self, texts: Sequence[Tensor]) -> Batch:
        """Texts, int64 [T] from BOS on, side by side."""
        return pack_of(self.model, self.rule, self.entropy_model, texts)

    def logits(self, texts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of texts in one pack, [T, V] of each: fp32, and the same in fp64."""
        batch = self.pack(texts)
        exact = in_fp64(self.model, lambda model: sure_logits_of(model, batch))
        sizes = [len(ids) for ids in texts]
        return list(sure_logits_of(self.model, batch).split(sizes)), list(exact.split(sizes))


def sure_logits_of(model: Model, batch: Batch) -> Tensor:
    """fp32 [T, V], where no boundary depends on rounding."""
    if isinstance(model, HNet):
        logits, routing = routed(model, batch)
        assert (routing.p - 0.5).abs().min() > SURE, "choose another text: rounding decides here"
        return logits
    return logits_of(model, batch)


def text(length: int, seed: int) -> Tensor:
    """int64 [length], from BOS on."""
    return torch.from_numpy(np.append(np.int16(BOS), byte_tokens(random_text(length - 1, seed))).astype(np.int64))


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("custom")
    settings, rule = MODELS[request.param]
    model = any_model(settings).eval()
    unlike_fresh(model, seed=1)
    small, identity = None, None
    if rule.needs_entropy:
        small = entropy_model(entropy_settings(newline_reset=True, **INNER)).eval()
        unlike_fresh(small, seed=2)
        save_model(small, small.settings, folder / "entropy_model")
        found = np.concatenate([entropies_of(small, text(60, seed)) for seed in range(9)])
        rule = rule.with_theta(between(found, 0.7), grid=False)
        sha256 = model_sha256(folder / "entropy_model")
        identity = EntropyModelIdentity(sha256=sha256, numerics=unmeasured())
    save_model(model, settings, folder / "model", small and folder / "entropy_model")
    inner = small and small.settings
    record = Record(model=settings, entropy_model=inner, patching=rule, entropy_model_identity=identity)
    write_hf_folder(folder / "model", folder / "hf", record)
    with modules_below(folder / "modules"):
        yield Both(model, small, rule, opened(folder / "hf"), folder / "hf")


@torch.no_grad()
def test_logits_of_whole_texts_equal_those_of_a_pack(both: Both) -> None:
    texts = [text(length, seed) for seed, length in enumerate((1, 2, 40, 300))]
    for ids, ours, exact in zip(texts, *both.logits(texts)):
        assert_equal_but_rounded(both.theirs(ids[None]).logits[0], ours, exact)


@torch.no_grad()
def test_logits_of_a_text_that_is_read_in_parts_equal_those_of_the_whole(both: Both) -> None:
    ids = text(150, seed=7)
    found, cache = [], None
    for part in ids.split([1, 50, 1, 1, 1, 1, 5, 90]):
        out = both.theirs(part[None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits[0])
    (ours,), (exact,) = both.logits([ids])
    assert_equal_but_rounded(torch.cat(found), ours, exact)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_a_padded_batch_have_the_logits_of_each_alone(
    both: Both, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text(length, seed) for seed, length in enumerate((90, 1, 33, 2, 7, 60, 14, 25))]
    batch, mask = padded(texts, side)
    # Short rows have nothing in the later parts of the call.
    monkeypatch.setattr(sys.modules[type(both.theirs).__module__], "COLUMNS_AT_ONCE", 20)
    found = both.theirs(batch, attention_mask=mask).logits
    for row, (ours, exact) in enumerate(zip(*both.logits(texts))):
        assert_equal_but_rounded(found[row][mask[row] > 0], ours, exact)


def greedy(both: Both, prompts: Sequence[Tensor], count: int) -> list[list[int]]:
    """What ours writes after prompts when it reads all of each text for each id, EOS included."""
    texts, live = list(prompts), list(range(len(prompts)))
    for _ in range(count):
        logits = sure_logits_of(both.model, both.pack([texts[row] for row in live]))
        ends = np.cumsum([len(texts[row]) for row in live])
        last = logits[torch.from_numpy(ends) - 1].index_fill(1, torch.tensor(NOT_TEXT), -torch.inf)
        for row, token in zip(live, last.argmax(1)):
            texts[row] = torch.cat([texts[row], token[None]])
        live = [row for row in live if texts[row][-1] != EOS]
        if not live:
            break
    return [ids[len(prompt) :].tolist() for ids, prompt in zip(texts, prompts)]


@torch.no_grad()
def test_a_padded_batch_is_written_on_as_each_of_its_rows_by_full_recomputation(both: Both) -> None:
    prompts = [text(3 + 5 * seed, seed) for seed in range(5)]
    wanted = greedy(both, prompts, WRITTEN)
    for side in ("left", "right"):
        batch, mask = padded(prompts, side)
        out = both.theirs.generate(batch, attention_mask=mask, max_new_tokens=WRITTEN, do_sample=False)
        for row, ids in enumerate(wanted):
            assert out[row, batch.shape[1] :][: len(ids)].tolist() == ids, (side, row)
            assert set(out[row, batch.shape[1] :][len(ids) :].tolist()) <= {RESERVED}
    alone = both.theirs.generate(prompts[0][None], max_new_tokens=WRITTEN, do_sample=False, use_cache=False)
    assert alone[0, len(prompts[0]) :].tolist() == wanted[0]


def test_loss_and_gradients_equal_ours(both: Both) -> None:
    ids, shorter = text(80, seed=13), text(30, seed=14)
    batch = both.pack([ids, shorter])
    both.model.zero_grad()
    ours = loss_of(both.model, batch)
    ours.backward()
    padded_ids, mask = padded([ids, shorter], "left")
    both.theirs.train()
    both.theirs.zero_grad()
    labels = padded_ids.masked_fill(mask == 0, -100)
    found = both.theirs(padded_ids, attention_mask=mask, labels=labels).loss
    found.backward()
    both.theirs.eval()
    assert found.item() == pytest.approx(ours.item(), rel=1e-5)
    gradients = {name: p.grad for name, p in both.model.named_parameters()}
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    theirs = {name: p.grad for name, p in both.theirs.named_parameters()}
    known = folder_parts(both.model.settings)
    assert {name for name in theirs if not name.startswith(HF.patcher)} == {part.theirs for part in known}
    for part in known:
        assert (theirs[part.theirs] - gradients[part.ours][part.rows]).norm() <= 1e-4 * total, part.theirs


def loss_of(model: Model, batch: Batch) -> Tensor:
    """Mean nats of the ids of each text that stand before an id of it."""
    inside = batch.documents.ids[1:] == batch.documents.ids[:-1]
    loss: Tensor = F.cross_entropy(sure_logits_of(model, batch)[:-1][inside], batch.ids[1:][inside])
    if isinstance(model, HNet):
        settings, (_, routing) = model.settings, routed(model, batch)
        loss = loss + settings.ratio_weight * ratio_loss(routing, torch.ones_like(routing.ends), settings.target)
    return loss


def test_only_training_adds_the_ratio_loss_and_calls_that_are_summed_share_it(both: Both) -> None:
    ids = text(40, seed=3)[None]

    def loss(training: bool, **options: int) -> float:
        both.theirs.train(training)
        found: float = both.theirs(ids, labels=ids, **options).loss.item()
        both.theirs.eval()
        return found

    assert loss(True, num_items_in_batch=78) == pytest.approx(loss(True) / 2, rel=1e-5)
    assert (loss(True) > loss(False)) == isinstance(both.model, HNet)


def test_without_trust_the_folder_is_refused_with_a_line_that_names_it(both: Both) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(both.folder, trust_remote_code=False)


def test_a_model_that_was_saved_there_is_the_same_when_it_is_opened_again(both: Both, tmp_path: Path) -> None:
    both.theirs.save_pretrained(tmp_path)
    kind = module_kind(both.model.settings)
    assert (tmp_path / file_name(kind)).read_text() == module_text(kind, custom_model_type(kind))
    again, ids = opened(tmp_path), text(60, seed=5)
    assert again.config.patchwork == both.theirs.config.patchwork
    assert isinstance(again.config.keys_to_ignore_at_inference, list), "Trainer.evaluate adds a list to it"
    assert type(again).__name__ == class_name(kind)
    with torch.no_grad():
        assert torch.equal(again(ids[None]).logits, both.theirs(ids[None]).logits)


def test_settings_and_weights_come_back_bit_for_bit(both: Both) -> None:
    found = open_foreign(both.folder)
    assert found.described.model == both.model.settings
    for contents, model in ((found.model, both.model), (found.entropy_model, both.entropy_model)):
        assert (contents is None) == (model is None)
        if isinstance(contents, tuple) and model is not None:
            state, (plan, produce) = model.state_dict(), contents
            assert {name for name, _, _ in plan} == state.keys()
            assert all(torch.equal(torch.cat(list(produce(name))), tensor) for name, tensor in state.items())


@torch.no_grad()
def test_it_reads_and_writes_in_bf16_and_under_autocast(both: Both) -> None:
    ids = text(40, seed=6)[None]
    wanted = both.theirs(ids).logits
    half = opened(both.folder).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = both.theirs(ids).logits
        assert both.theirs.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 44)
    assert half.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 44)
    if both.entropy_model is not None:
        assert half.model.patcher.norm.weight.dtype == torch.float32, "so that patches end where they did"
    if not isinstance(both.model, HNet):  # whose patches end where rounding leads the router
        for logits in (found, half(ids).logits):
            assert (logits - wanted).norm() < 0.05 * wanted.norm()


@torch.no_grad()
def test_what_was_read_can_be_copied_and_beams_are_refused(both: Both) -> None:
    ids = text(80, seed=6)
    first = both.theirs(ids[None, :50], use_cache=True).past_key_values
    again = copy.deepcopy(first)
    one, two = (both.theirs(ids[None, 50:], past_key_values=cache).logits for cache in (first, again))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="num_beams must be 1"):
        both.theirs.generate(ids[None], num_beams=2)
    with pytest.raises(ValueError, match=r"assisted generation|is not supported with stateful models"):
        both.theirs.generate(ids[None], assistant_model=both.theirs, max_new_tokens=2)
