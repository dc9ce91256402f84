"""The module in an exported folder gives what the model gives here: of whole texts, in parts and in padded rows."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.counted_models import counted_folder
from helpers.custom_classes import modules_below, opened, padded
from helpers.hf_states import to_hf_state
from helpers.interop_examples import WORDS, models, random_settings, rule_between, script_text, unmeasured, written
from helpers.model_examples import FAMILIES, between, blt_logits, chat_tokens, pack
from helpers.rounding import assert_equal_but_rounded, in_fp64
from helpers.whole_texts import entropies_of

from shared.counts.contexts import BITS
from shared.counts.files import load_counts
from shared.counts.table import CountModel
from shared.incremental import DecodingState
from shared.interop.custom_code import ngrams as custom_code
from shared.interop.custom_code.entropies import CountTable
from shared.interop.custom_code.rules import WORDS as WORD_BYTES
from shared.interop.custom_module import PARTS, class_name, file_name, module_text
from shared.interop.described import Record
from shared.interop.hf_tokenizer import tokenizer_config, tokenizer_json
from shared.interop.writing import write_hf_folder
from shared.layers.ngrams import PRIMES
from shared.model_folder.files import save_model
from shared.model_folder.identity import model_sha256, stored_settings
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.patching import PatchingSettings
from shared.patching.rules import SPACE_LIKE
from shared.shards.manifest import EntropyModelIdentity
from shared.vocabulary import BOE, BOS, EOS, OFFSET, RESERVED, byte_tokens, token_bytes

pytestmark = pytest.mark.numerics

OWN_ALONE = {
    # What transformers' own class cannot be: settings of the model, of the entropy model, and of the rule.
    "counts": ({}, "counts", {"rule": "entropy", "min_length": 2, "whole_characters": True}),
    "counts by lines": ({"pooling": "mean"}, "counts by lines", {"rule": "monotonic"}),
    "words": ({"ngrams": {"sizes": ()}, "pooling": "attention", "input_scale": 0.3}, None, {"rule": "space"}),
    "lines": ({"pooling": "max"}, {"newline_reset": True}, {"rule": "entropy_rise", "theta_rise": 0.05}),
    "blocks": ({"global": FAMILIES["OLMo 3"]}, {"qk_norm": "head", "rotated": (True, False)}, {"rule": "entropy"}),
    "every layer": ({"encoder_cross_all_layers": True}, {}, {"rule": "entropy", "whole_characters": True}),
}
ALONE = 20
"""The first seed of these."""
SOME = [1, *(name for name in OWN_ALONE if name != "counts")]
CONFIGURATIONS = [
    0,
    "counts",
    *(pytest.param(name, marks=pytest.mark.drill) for name in SOME),
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 14)),
]
NOT_TEXT = [BOE, BOS, RESERVED]


@dataclass(frozen=True)
class Both:
    """A model here, and the same as the folder's own class."""

    model: Blt
    entropy_model: EntropyModel | CountModel | None
    rule: PatchingSettings
    theirs: Any
    folder: Path
    seed: int

    @property
    def alone(self) -> bool:
        """Whether no other class can open it."""
        return self.seed >= ALONE

    def ids(self, length: int, number: int = 0) -> torch.Tensor:
        """int64 [length], a text in one of the scripts from BOS on."""
        script = [*WORDS, "random"][(self.seed + number) % (len(WORDS) + 1)]
        text = byte_tokens(script_text(script, length - 1, self.seed + number)).astype(np.int64)
        return torch.from_numpy(np.concatenate([[BOS], text]))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """fp32 [T, V] of ours."""
        return logits_of(self.model, self.entropy_model, self.rule, ids)

    def exact(self, ids: torch.Tensor) -> torch.Tensor:
        """The same of ours in fp64, with the boundaries of fp32."""
        found: torch.Tensor = in_fp64(self.model, lambda model: logits_of(model, self.entropy_model, self.rule, ids))
        return found


def logits_of(
    model: Blt, entropy_model: EntropyModel | CountModel | None, rule: PatchingSettings, ids: torch.Tensor
) -> torch.Tensor:
    state, found = DecodingState(model, rule, entropy_model), []
    for part in ids.split(200):
        found.append(state.advance(part[None]).logits[0])
        state.accept([len(part)])
    return torch.cat(found)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with modules_below(tmp_path_factory.mktemp("modules")):
        yield


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, modules: None) -> Both:
    folder = tmp_path_factory.mktemp("custom")
    if request.param in OWN_ALONE:
        return opened_alone(folder, request.param)
    model, small = models(random_settings(request.param), request.param)
    rule = rule_between(small, texts(request.param), 24)
    write_hf_folder(folder / "model", folder / "hf", written(folder / "model", model, small, rule))
    return Both(model, small, rule, opened(folder / "hf"), folder / "hf", request.param)


def texts(seed: int) -> list[bytes]:
    return [script_text(script, 150, seed) + b"\n\nand\n" for script in (*WORDS, "random")]


def opened_alone(folder: Path, name: str) -> Both:
    """A model that transformers' own class cannot be."""
    of_model, of_entropy_model, of_rule = OWN_ALONE[name]
    seed = ALONE + list(OWN_ALONE).index(name)
    settings, inner = random_settings(3)
    changed = BltSettings.model_validate(settings.model_dump(by_alias=True) | of_model)
    small = EntropyModelSettings.model_validate(
        inner.model_dump() | (of_entropy_model if isinstance(of_entropy_model, dict) else {})
    )
    model, network = models((changed, small), seed)
    place, found = folder / "entropy_model", None
    if isinstance(of_entropy_model, dict):
        save_model(network, small, place)
        found = network
    elif of_entropy_model is not None:
        counted_folder(place, texts(seed), newline_reset="lines" in of_entropy_model)
        found = load_counts(place)
    save_model(model, changed, folder / "model", None if found is None else place)
    theta = {}
    if found is not None:
        document = np.concatenate([[BOS], *(byte_tokens(text) for text in texts(seed))])
        state = DecodingState(model, PatchingSettings(rule="entropy", theta=1.0), found)
        _, entropies = state.read(document.astype(np.int16))
        values = np.diff(entropies) if of_rule["rule"] == "monotonic" else entropies
        ordered = np.unique(values)[len(np.unique(values)) // 2 :]
        gap = int(np.diff(ordered[: len(ordered) // 2]).argmax())
        theta = {"theta": float(ordered[gap : gap + 2].astype(np.float64).mean())}
    rule = PatchingSettings.model_validate({"max_length": 24} | of_rule | theta)
    identity = None
    if found is not None:
        numerics = unmeasured() if isinstance(found, EntropyModel) else None
        identity = EntropyModelIdentity(sha256=model_sha256(place), numerics=numerics)
    record = Record(
        model=changed,
        entropy_model=None if found is None else stored_settings(place),
        patching=rule,
        entropy_model_identity=identity,
    )
    write_hf_folder(folder / "model", folder / "hf", record)
    return Both(model, found, rule, opened(folder / "hf"), folder / "hf", seed)


@torch.no_grad()
def test_logits_of_whole_texts_equal_ours(both: Both) -> None:
    for number, length in enumerate((1, 2, 40, 700)):
        ids = both.ids(length, number)
        assert_equal_but_rounded(both.theirs(ids[None]).logits[0], both.logits(ids), both.exact(ids))


@torch.no_grad()
def test_logits_of_texts_that_are_read_in_parts_equal_ours(both: Both) -> None:
    ids = both.ids(300)
    found, texts = [], None
    for part in ids.split([1, 90, 1, 1, 1, 1, 5, 200]):
        out = both.theirs(part[None], past_key_values=texts, use_cache=True)
        texts = out.past_key_values
        found.append(out.logits[0])
    assert texts.get_seq_length() == 300
    assert_equal_but_rounded(torch.cat(found), both.logits(ids), both.exact(ids))


@torch.no_grad()
def test_a_long_call_is_read_a_part_at_a_time(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = both.ids(150)
    batch, mask = padded([ids, ids[:33]], "right")
    monkeypatch.setattr(sys.modules[type(both.theirs).__module__], "COLUMNS_AT_ONCE", 20)
    found = both.theirs(batch, attention_mask=mask).logits
    assert_equal_but_rounded(found[0], both.logits(ids), both.exact(ids))
    assert_equal_but_rounded(found[1, :33], both.logits(ids[:33]), both.exact(ids[:33]))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_a_padded_batch_do_not_know_of_each_other(both: Both, side: str) -> None:
    rows = [both.ids(length, number) for number, length in enumerate((1, 60, 7, 2, 33))]
    batch, mask = padded(rows, side)
    found = both.theirs(batch, attention_mask=mask).logits
    for row, ids in enumerate(rows):
        assert_equal_but_rounded(found[row][mask[row] > 0], both.logits(ids), both.exact(ids))
    last = both.theirs(batch, attention_mask=mask, logits_to_keep=1).logits
    assert torch.equal(last, found[:, -1:]), "padding at the end has the logits of the last id before it"


def greedy(both: Both, prompt: torch.Tensor, count: int) -> list[int]:
    """What ours writes after a prompt, EOS included."""
    state, written = DecodingState(both.model, both.rule, both.entropy_model), []
    ids = prompt
    while len(written) < count and EOS not in written:
        logits = state.advance(ids[None]).logits[0, -1].clone()
        state.accept([len(ids)])
        logits[NOT_TEXT] = -torch.inf
        written.append(int(logits.argmax()))
        ids = torch.tensor(written[-1:])
    return written


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_written_on_as_each_of_its_rows_alone(both: Both, side: str) -> None:
    prompts = [both.ids(3 + 7 * (number % 4), number) for number in range(5)]
    batch, mask = padded(prompts, side)
    out = both.theirs.generate(batch, attention_mask=mask, max_new_tokens=20, do_sample=False)
    for row, prompt in enumerate(prompts):
        wanted = greedy(both, prompt, 20)
        assert out[row, batch.shape[1] :][: len(wanted)].tolist() == wanted
        assert set(out[row, batch.shape[1] :][len(wanted) :].tolist()) <= {RESERVED}


def test_without_what_is_kept_the_same_is_written(both: Both) -> None:
    prompt, options = both.ids(50)[None], {"max_new_tokens": 12, "do_sample": False}
    kept, none = both.theirs.generate(prompt, **options), both.theirs.generate(prompt, use_cache=False, **options)
    assert torch.equal(kept, none)


def test_what_was_read_can_be_handed_on(both: Both) -> None:
    prompt, options = both.ids(40)[None], {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}
    whole = both.theirs.generate(prompt, max_new_tokens=20, **options).sequences
    first = both.theirs.generate(prompt, max_new_tokens=8, **options)
    again = both.theirs.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=12, **options)
    assert torch.equal(again.sequences, whole)


def test_samples_depend_on_the_seed_and_pass_processors_and_streamers(both: Both) -> None:
    class Shown:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    prompt, texts = both.ids(20)[None], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        shown = Shown()
        out = both.theirs.generate(
            prompt, max_new_tokens=25, do_sample=True, top_k=5, bad_words_ids=[[OFFSET + 10]], streamer=shown
        )
        assert shown.ids == [*out[0].tolist(), -1]
        assert OFFSET + 10 not in out[0, 20:].tolist()
        texts.append(out[0].tolist())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_equal_ours(both: Both, side: str) -> None:
    ids = both.ids(80)
    text = bytes((ids[1:] - OFFSET).tolist())
    _, entropies = DecodingState(both.model, both.rule, both.entropy_model).read(ids.numpy().astype(np.int16))
    both.model.zero_grad()
    logits = blt_logits(both.model, pack([text], both.rule, None if entropies is None else [entropies]))
    wanted = F.cross_entropy(logits[:-1], ids[1:])
    wanted.backward()
    own = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in both.model.named_parameters()}
    expected = to_hf_state(own, both.model.settings)
    batch, mask = padded([ids, ids[:9]], side)
    labels = batch.masked_fill(mask == 0, -100)
    labels[1] = -100
    both.theirs.train()
    both.theirs.zero_grad()
    found = both.theirs(batch, attention_mask=mask, labels=labels).loss
    found.backward()
    both.theirs.eval()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    gradients = {name: p.grad for name, p in both.theirs.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, gradient in expected.items() if gradient.numel()}
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * total, name


def test_without_trust_transformers_takes_its_own_class_or_names_what_is_missing(both: Both) -> None:
    from transformers import AutoModelForCausalLM

    if both.alone:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(both.folder, trust_remote_code=False)
    else:
        theirs = AutoModelForCausalLM.from_pretrained(both.folder)
        assert type(theirs).__module__.startswith("transformers.models.blt")


def test_a_model_that_was_saved_there_is_the_same_when_it_is_opened_again(both: Both, tmp_path: Path) -> None:
    both.theirs.save_pretrained(tmp_path / "saved")
    model_type = "patchwork_blt" if both.alone else "blt"
    assert (tmp_path / "saved" / file_name("blt")).read_text() == module_text("blt", model_type)
    again, ids = opened(tmp_path / "saved"), both.ids(60)
    assert type(again).__name__ == class_name("blt")
    with torch.no_grad():
        assert torch.equal(again(ids[None]).logits, both.theirs(ids[None]).logits)


def test_in_bf16_patches_begin_where_they_do_in_fp32(both: Both) -> None:
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(both.folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
    if isinstance(both.entropy_model, EntropyModel):
        assert {p.dtype for p in half.model.patcher.parameters()} == {torch.float32}
    assert half.lm_head.weight.dtype == torch.bfloat16
    ids = both.ids(200)
    with torch.no_grad():
        first, second = (model(ids[None], use_cache=True) for model in (both.theirs, half))
    assert patches_of(first) == patches_of(second)


def patches_of(out: Any) -> list[int]:
    """By row, those that have ended."""
    found: list[int] = out.past_key_values.state.global_.patches
    return found


def test_patches_begin_where_they_do_under_autocast_and_in_a_model_that_was_rounded_later(both: Both) -> None:
    ids = both.ids(300)[None]
    with torch.no_grad():
        wanted = patches_of(both.theirs(ids, use_cache=True))
        with torch.autocast("cpu", torch.bfloat16):
            assert patches_of(both.theirs(ids, use_cache=True)) == wanted
        for dtype in (torch.bfloat16, torch.float16):
            assert patches_of(opened(both.folder).to(dtype)(ids, use_cache=True)) == wanted


def test_generation_is_the_same_in_training_mode_and_with_a_copy_of_the_folders_own_settings(both: Both) -> None:
    prompt, options = both.ids(30)[None], {"max_new_tokens": 15, "do_sample": False}
    wanted = both.theirs.generate(prompt, **options)
    both.theirs.train()
    assert torch.equal(both.theirs.generate(prompt, **options), wanted)
    both.theirs.eval()
    own, widths = copy.deepcopy(both.theirs.generation_config), []
    own.max_new_tokens = 15
    with both.theirs.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    ):
        assert torch.equal(both.theirs.generate(prompt, generation_config=own, do_sample=False), wanted)
    assert widths[0] == 30
    assert set(widths[1:]) == {1}


@torch.no_grad()
def test_ids_of_another_width_and_a_row_that_waits_change_nothing(both: Both) -> None:
    ids, other = both.ids(60), both.ids(21, 1)
    assert torch.equal(both.theirs(ids.int()[None]).logits, both.theirs(ids[None]).logits)
    first = both.theirs(torch.stack([ids[:20], other[:20]]), use_cache=True)
    mask = torch.ones(2, 21, dtype=torch.int64)
    mask[1, 20] = 0
    second = both.theirs(
        torch.stack([ids[20:21], other[20:]]), attention_mask=mask, past_key_values=first.past_key_values
    )
    # The logits of the last id before the padding. Products of one position and of twenty may round differently.
    torch.testing.assert_close(second.logits[1, 0], first.logits[1, -1], rtol=1e-5, atol=1e-5)
    assert first.past_key_values.lengths == [21, 20]


@torch.no_grad()
def test_what_was_read_can_be_copied(both: Both) -> None:
    ids = both.ids(80)
    first = both.theirs(ids[None, :50], use_cache=True).past_key_values
    again = copy.deepcopy(first)
    one, two = (both.theirs(ids[None, 50:], past_key_values=cache).logits for cache in (first, again))
    assert torch.equal(one, two)


def test_the_entropy_model_is_frozen_and_the_folder_keeps_what_is_for_the_class_of_transformers(
    both: Both, tmp_path: Path
) -> None:
    frozen = {name for name, p in both.theirs.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in both.theirs.named_parameters() if name.startswith("model.patcher.")}
    assert both.theirs.get_input_embeddings() is both.theirs.model.local_encoder.embed_tokens
    both.theirs.save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (both.folder, tmp_path))
        assert second["use_cache"] == first.get("use_cache", True)


def test_what_it_cannot_do_is_refused_with_the_reason(both: Both) -> None:
    prompt = both.ids(5)[None]
    with pytest.raises(ValueError, match="num_beams must be 1"):
        both.theirs.generate(prompt, num_beams=2)
    with pytest.raises(ValueError, match="a row of input_ids is all padding"):
        both.theirs(prompt, attention_mask=torch.zeros_like(prompt))
    for name, value in (("position_ids", prompt), ("patch_lengths", prompt), ("output_hidden_states", True)):
        with pytest.raises(ValueError, match=f"{name} cannot be given: "):
            both.theirs(prompt, **{name: value})
    with torch.no_grad():
        read = both.theirs(prompt, use_cache=True).past_key_values
        hidden = torch.ones(1, 6, dtype=torch.int64)
        hidden[0, 2] = 0
        for wrong, words in (
            ({"attention_mask": torch.ones(1, 3)}, r"attention_mask is \[1, 3\], not \[1, 6\]"),
            ({"attention_mask": hidden}, "attention_mask hides ids that were read already"),
        ):
            with pytest.raises(ValueError, match=words):
                both.theirs(prompt[:, :1], past_key_values=read, **wrong)
        with pytest.raises(ValueError, match="past_key_values is of 1 texts, input_ids of 2"):
            both.theirs(prompt[:, :1].repeat(2, 1), past_key_values=read)
        with pytest.raises(ValueError, match="a row for each text is wanted"):
            both.theirs(prompt[0])
        assert isinstance(both.theirs(prompt, return_dict=False)[0], torch.Tensor)
    with pytest.raises(ValueError, match=r"assisted generation|is not supported with stateful models"):
        both.theirs.generate(prompt, assistant_model=both.theirs, max_new_tokens=2)


@pytest.mark.parametrize("rule", ["entropy", "space"])
@torch.no_grad()
def test_a_model_with_named_special_ids_finds_its_patches_and_has_equal_logits(
    rule: str, tmp_path: Path, modules: None
) -> None:
    plain, inner = random_settings(3)
    chat = BltSettings.model_validate(plain.model_dump(exclude={"vocabulary"}) | {"specials": ("user", "end")})
    model, small = models((chat, inner), 1)
    tokens = chat_tokens(200, seed=5, names=2)
    ids = torch.from_numpy(tokens[:-1].astype(np.int64))
    found = entropies_of(small, ids)
    by_entropy = PatchingSettings(rule="entropy", theta=between(found, 0.7), max_length=24)
    patching = by_entropy if rule == "entropy" else PatchingSettings(rule="space", max_length=16)
    record = written(tmp_path / "model", model, small, patching)
    if rule == "space":
        record = record.model_copy(update={"entropy_model": None, "entropy_model_identity": None})
    write_hf_folder(tmp_path / "model", tmp_path / "hf", record)
    theirs = opened(tmp_path / "hf")
    assert theirs.config.model_type == "patchwork_blt"
    batch = pack([tokens], patching, [found])
    exact = in_fp64(model, lambda model: blt_logits(model, batch))
    assert exact.shape[1] == 262
    assert_equal_but_rounded(theirs(ids[None]).logits[0], blt_logits(model, batch), exact)


def test_a_tokenizer_with_named_special_ids_finds_them_in_texts_unless_it_is_told_not_to(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for name, content in (
        ("tokenizer.json", tokenizer_json(("user", "end"))),
        ("tokenizer_config.json", tokenizer_config(("user", "end"))),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer("<|user|>a<|end|>").input_ids == [BOS, 260, OFFSET + ord("a"), 261]
    plain = tokenizer("<|user|></s>", split_special_tokens=True).input_ids
    assert plain == [BOS, *byte_tokens(b"<|user|></s>").tolist()]
    tokens = chat_tokens(200, seed=5, names=2)
    assert tokenizer.decode(tokens.tolist(), skip_special_tokens=True) == token_bytes(tokens).decode("utf-8", "replace")


def test_what_the_module_says_again_is_what_the_project_says() -> None:
    assert custom_code.PRIMES == PRIMES
    inside = {chr(byte) for byte in range(128) if not SPACE_LIKE[byte + OFFSET]}
    assert {chr(byte) for byte in WORD_BYTES if byte < 128} == inside
    assert {byte for byte in WORD_BYTES if byte >= 128} == {n for n in range(128, 256) if not SPACE_LIKE[n + OFFSET]}
    assert CountTable.BITS == BITS


@pytest.mark.parametrize("kind", PARTS)
def test_a_module_stands_alone(kind: str, tmp_path: Path) -> None:
    """It compiles, names nothing of ours, and all that it uses is there."""
    path = tmp_path / file_name(kind)
    path.write_text(module_text(kind, kind))
    assert "shared." not in module_text(kind, kind)
    assert max(map(len, module_text(kind, kind).splitlines())) <= 120
    checks = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(path)]
    done = subprocess.run(checks, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
