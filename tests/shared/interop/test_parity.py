"""Law 8: a folder written for transformers gives there what the model gives here. The one oracle that is not ours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hf_states import to_hf_state
from helpers.interop_examples import WORDS, entropies_of, models, random_settings, rule_between, script_text, written
from helpers.model_examples import blt_logits, pack
from helpers.rounding import assert_equal_but_rounded, in_fp64

from shared.interop.writing import write_hf_folder
from shared.layers.batch import Batch, Patches, segments
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.vocabulary import EOS, OFFSET, byte_tokens, document_tokens

pytestmark = pytest.mark.numerics

CONFIGURATIONS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 14))]
TEXTS = [
    *((script, 40 + 90 * number) for number, script in enumerate([*WORDS, "random"])),
    ("latin", 10),
    ("random", 10),
    ("han", 3000),
]


WEIGHING = tuple(f".{part}.weight" for part in ("q_norm", "q_proj", "k_proj"))
"""What weighs the vectors of a patch against one another. A single one has weight 1 whatever they are: their gradient
is 0, and in transformers what rounding leaves of it."""


@dataclass(frozen=True)
class Pair:
    """A model here, and its counterpart as transformers loads it."""

    model: Blt
    entropy_model: EntropyModel
    rule: PatchingSettings
    theirs: torch.nn.Module
    folder: Path

    def batch(self, text: bytes) -> Batch:
        """The text without its EOS, patched by the rule."""
        return pack([text], self.rule, [entropies_of(self.entropy_model, text)])


def texts(seed: int) -> list[bytes]:
    """Three of the texts, one of them long for every fourth configuration: all are used by some of them."""
    chosen = [TEXTS[(3 * seed + number) % (len(TEXTS) - 1)] for number in range(3)]
    return [script_text(script, length, seed) for script, length in [*chosen, *([TEXTS[-1]] if seed % 4 == 0 else [])]]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Pair]:
    from transformers import AutoModelForCausalLM

    seed = request.param
    model, small = models(random_settings(seed), seed)
    rule = rule_between(small, texts(seed))
    folder = tmp_path_factory.mktemp("parity")
    record = written(folder / "model", model, small, rule)
    write_hf_folder(folder / "model", folder / "hf", record)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    return seed, Pair(model, small, rule, theirs, folder / "hf")


def test_boundaries_and_logits_equal_those_of_transformers(pair: tuple[int, Pair]) -> None:
    seed, both = pair
    patches = tokens = 0
    for text in texts(seed):
        batch = both.batch(text)
        with torch.no_grad():
            config = both.theirs.config
            _, lengths, _ = both.theirs.model.patcher(
                batch.ids[None], patch_size=4, threshold=config.patching_threshold
            )
            logits = both.theirs(batch.ids[None]).logits[0]
            ours = blt_logits(both.model, batch)
            exact = in_fp64(both.model, lambda model, batch=batch: blt_logits(model, batch))
        starts = np.cumsum(patch_lengths(document_tokens(text), both.rule, entropies_of(both.entropy_model, text)))[:-1]
        assert starts.tolist() == np.cumsum(lengths[0].numpy())[: len(starts)].tolist()
        patches, tokens = patches + len(starts), tokens + len(text)
        # Our batch asks at the last byte for EOS, which by entropy may or may not have opened a patch.
        assert_equal_but_rounded(ours, logits, exact)
    assert 0.05 * tokens < patches < 0.6 * tokens


def test_gradients_equal_those_of_transformers(pair: tuple[int, Pair]) -> None:
    seed, both = pair
    batch = both.batch(script_text("cyrillic", 150, seed))
    both.theirs.zero_grad()
    weights = torch.randn(len(batch.ids), 260, generator=torch.Generator().manual_seed(seed))

    def run(model: Blt) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (blt_logits(model, batch) * weights).sum().backward()
        return to_hf_state({name: p.grad for name, p in model.named_parameters()}, model.settings)

    found, exact = run(both.model), in_fp64(both.model, run)
    (both.theirs(batch.ids[None]).logits[0] * weights).sum().backward()
    wanted = {name: p.grad for name, p in both.theirs.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name in wanted if "patcher" not in name}
    total = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    for name, gradient in found.items():
        if (
            both.model.settings.queries == 1
            and name.startswith("model.local_decoder.cross")
            and name.endswith(WEIGHING)
        ):
            assert gradient.norm() == 0, name
            assert wanted[name].norm() <= 1e-6 * total, name
        else:
            assert_equal_but_rounded(gradient, wanted[name], exact[name], name=name)


def test_texts_go_through_the_exported_tokenizer_and_back(pair: tuple[int, Pair]) -> None:
    from transformers import AutoTokenizer

    seed, both = pair
    tokenizer = AutoTokenizer.from_pretrained(both.folder)
    for script in WORDS:
        text = script_text(script, 200, seed).decode("utf-8", "ignore") + " </s> <boe>\x00\n"
        ids = tokenizer(text).input_ids
        assert ids == document_tokens(text.encode())[:-1].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def greedy(both: Pair, prompt: bytes, count: int) -> bytes:
    """The likeliest byte again and again, everything computed anew for each."""
    text = prompt
    while len(text) < len(prompt) + count:
        tokens = document_tokens(text)[:-1]
        stream, entropies = PatchStream(both.rule), entropies_of(both.entropy_model, text)
        starts = [True, *(stream.push(int(token), float(h)) for token, h in zip(tokens, entropies))]
        number = torch.tensor(starts).cumsum(0) - 1
        patches = Patches(number[:-1], number[1:] - 1, segments([int(number[-2]) + 1]))
        with torch.no_grad():
            logits = both.model(torch.from_numpy(tokens.astype(np.int64)), segments([len(tokens)]), patches)[-1]
        logits[[0, 1, 3]] = -torch.inf
        token = int(logits.argmax())
        if token == EOS:
            break
        text += bytes([token - OFFSET])
    return text


def test_transformers_writes_what_we_write(pair: tuple[int, Pair]) -> None:
    """With what the folder says: no cache, no ids that are not text, an end at EOS."""
    seed, both = pair
    prompt = script_text("greek", 30, seed)
    ids = torch.from_numpy(document_tokens(prompt)[:-1].astype(np.int64))[None]
    made = both.theirs.generate(ids, max_new_tokens=8)[0].numpy()
    ours = greedy(both, prompt, 8)
    assert made[len(ids[0]) :].tolist()[: len(ours) - len(prompt)] == byte_tokens(ours[len(prompt) :]).tolist()
    assert len(made) == 1 + len(ours) or made[1 + len(ours)] == EOS
