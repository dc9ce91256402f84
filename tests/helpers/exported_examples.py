"""Small models of every kind as exported folders, and what ours make of texts, to compare with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.counted_models import counted_folder
from helpers.interop_examples import unlike_fresh
from helpers.model_examples import (
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
from helpers.model_folders import identity_of
from helpers.rounding import in_fp64
from helpers.subword_examples import LINES, train_tokenizer
from helpers.whole_texts import entropies_of, logits_of, pack_of, routed
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import load_making
from shared.counts.files import load_counts
from shared.counts.table import CountModel
from shared.model_folder.files import Model, save_model
from shared.model_settings import AnyModelSettings, specials_of
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.hnet import HNet
from shared.patching import PatchingSettings
from shared.text.chat import END, ROLES, Turn, prompt_tokens
from shared.vocabulary import BOE, BOS, RESERVED, byte_tokens, special_id, token_bytes
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.provenance.identity import IDENTITY_NAME, save_identity

TABLES = {"sizes": (2, 3, 5), "rows": 101, "functions": 2}
UNPATCHED = PatchingSettings(rule="none")
BY_ENTROPY = PatchingSettings(rule="entropy", theta=1.0, max_length=24)
"""With a threshold between two entropies in its place."""
SUBWORDS = 280
PROMPTS, NEW = 50, 16
"""Prompts, and ids that are written after each."""
NEAR = 1e-4
"""Nats from the threshold, share of the largest logit: nearer to a decision rounding may decide."""
CHAT = (*ROLES, END)


@dataclass
class Example:
    """A model folder of ours, and texts for it."""

    folder: Path
    model: Model
    entropy_model: EntropyModel | CountModel | None
    rule: PatchingSettings
    texts: list[list[int]]
    prompts: list[list[int]]
    strings: list[tuple[str, list[int]]]
    chats: list[tuple[list[dict[str, str]], list[int]]] = field(default_factory=list)
    """Messages, and the ids that an answer to them begins with."""
    asked: list[list[Turn]] = field(default_factory=list)
    """The prompts of a model of chats as `generate --chat` is given them."""

    def logits(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Of a text [T, V]: fp32, and the same in fp64."""
        batch = pack_of(self.model, self.rule, self.entropy_model, [torch.tensor(ids)])
        with torch.no_grad():
            return logits_of(self.model, batch), in_fp64(self.model, partial(logits_of, batch=batch))

    @torch.no_grad()
    def decisions(self, texts: Sequence[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text int64 [T], the id that greedy search writes after each place, and bool [T], whether rounding
        may decide there: about that id, or about a patch.
        """
        batch = pack_of(self.model, self.rule, self.entropy_model, [torch.tensor(ids) for ids in texts])
        logits = logits_of(self.model, batch)
        logits[:, self.unwritten] = -torch.inf
        best = logits.topk(2).values
        near = (best[:, 0] - best[:, 1] <= NEAR * best[:, 0].abs()).numpy()
        if isinstance(self.model, HNet):
            near |= (routed(self.model, batch)[1].p - 0.5).abs().numpy() < NEAR
        elif isinstance(self.entropy_model, EntropyModel):
            assert self.rule.rule == "entropy", "other rules compare differences"
            found = np.concatenate([entropies_of(self.entropy_model, torch.tensor(ids)) for ids in texts])
            near |= np.abs(found - self.rule.theta) < NEAR
        ends = np.cumsum([len(ids) for ids in texts])[:-1]
        return list(zip(np.split(logits.argmax(1).numpy(), ends), np.split(near, ends)))

    def generated(self) -> list[list[int]] | None:
        """What `generate` here writes after each prompt; None for kinds of models that it does not take."""
        if not isinstance(self.model, Blt | EntropyModel | HNet):
            return None
        asked = self.asked or [token_bytes(np.array(prompt)) for prompt in self.prompts]
        found: list[list[int]] = [[] for _ in asked]
        settings = GenerateSettings(length=NEW, sampling=SamplingSettings(temperature=0))
        for row, piece in Generator(self.folder).write_batch(asked, settings):
            if not piece.from_prompt:
                found[row] += byte_tokens(piece.byte).tolist()
        return found

    @property
    def unwritten(self) -> list[int]:
        """Ids that are never written."""
        specials = specials_of(self.model.settings)
        return [BOE, BOS, RESERVED, *(special_id(name, specials) for name in specials if name != END)]


def examples(folder: Path) -> dict[str, Example]:
    """By name."""
    counts = partial(_counts, [random_text(400, seed) for seed in range(4)])
    network = partial(_network, newline_reset=False)
    return {
        name: make(folder / name)
        for name, make in {
            "blt": partial(_bytes, blt_settings(), BY_ENTROPY, network),
            "blt-counts": partial(_bytes, blt_settings(pooling="attention", input_scale=0.3), BY_ENTROPY, counts),
            "chat": _chat,
            "entropy": partial(_bytes, entropy_settings(newline_reset=True), UNPATCHED, None),
            "flat": partial(_bytes, flat_settings(ngrams=TABLES, window=20, kv_heads=1), UNPATCHED, None),
            "subwords": _subwords,
            "hnet": partial(_bytes, hnet_settings(), UNPATCHED, None),
            "megabyte": partial(
                _bytes, megabyte_settings(), PatchingSettings(rule="static", stride=4, max_length=64), None
            ),
            "spacebyte": partial(_bytes, spacebyte_settings(), BY_ENTROPY, partial(_network, newline_reset=True)),
        }.items()
    }


def text(length: int, seed: int) -> list[int]:
    """So many ids, from BOS on."""
    return [BOS, *byte_tokens(random_text(length - 1, seed)).tolist()]


STRINGS = ("some text and ", "", "</s> <s> <|end|> it's\n\n  12345", "größer als 大きさ", "a <\ufdd0 b \ufdd0")


def _network(folder: Path, newline_reset: bool) -> EntropyModel:
    model = entropy_model(entropy_settings(newline_reset=newline_reset)).eval()
    unlike_fresh(model, seed=2)
    save_model(model, model.settings, folder)
    return model


def _counts(texts: list[bytes], folder: Path) -> CountModel:
    counted_folder(folder, texts)
    return load_counts(folder)


def _bytes(
    settings: AnyModelSettings,
    rule: PatchingSettings,
    entropy_model: Callable[[Path], EntropyModel | CountModel] | None,
    folder: Path,
) -> Example:
    """A model of bytes."""
    texts = [text(length, seed) for seed, length in enumerate((1, 2, 40, 300))]
    prompts = [text(3 + seed, 100 + seed) for seed in range(PROMPTS)]
    strings = [(string, [BOS, *byte_tokens(string.encode()).tolist()]) for string in STRINGS]
    return _finished(folder, settings, rule, entropy_model, (texts, prompts, strings))


def _finished(
    folder: Path,
    settings: AnyModelSettings,
    rule: PatchingSettings,
    entropy_model: Callable[[Path], EntropyModel | CountModel] | None,
    read: tuple[list[list[int]], list[list[int]], list[tuple[str, list[int]]]],
    tokenizer: Path | None = None,
) -> Example:
    """What a finished run leaves behind, and what is read with it: texts, prompts, strings."""
    model, found, beside = any_model(settings).eval(), None, None
    unlike_fresh(model, seed=1)
    if entropy_model is not None:
        beside = folder / "entropy_model"
        found = entropy_model(beside)
        values = np.concatenate([entropies_of(found, torch.tensor(ids)) for ids in read[0][2:]])
        rule = rule.with_theta(between(np.unique(values), 0.7), grid=False)
    identity = identity_of(rule, beside)
    if isinstance(found, CountModel):
        assert identity.entropy_model is not None, "the table's"
        unmeasured = identity.entropy_model.model_copy(update={"numerics": None})
        identity = identity.model_copy(update={"entropy_model": unmeasured})
    save_model(model, settings, folder / "model", beside, tokenizer)
    save_identity(identity, folder / "model" / IDENTITY_NAME)
    return Example(folder / "model", model, found, rule, *read)


def _subwords(folder: Path) -> Example:
    """A model of the tokens of a tokenizer."""
    tokenizer = train_tokenizer(folder / "data", folder / "tokenizer", SUBWORDS)
    encoder = SubwordEncoder(tokenizer)
    rule = PatchingSettings(rule="bpe", max_length=64, tokenizer=load_making(tokenizer).identity)

    def ids(content: bytes) -> list[int]:
        return [BOS, *encoder.ids(content).tolist()]

    texts = [[BOS], ids(b"the"), ids(LINES[0]), ids(b" ".join(LINES[:5]))]
    prompts = [ids(LINES[number % len(LINES)] + random_text(number, number)) for number in range(PROMPTS)]
    strings = [(string, ids(string.encode())) for string in STRINGS]
    return _finished(folder, flat_settings(vocabulary=SUBWORDS), rule, None, (texts, prompts, strings), tokenizer)


TURNS = (
    [("user", "print 7, then 2")],
    [
        ("system", "Write Python."),
        ("user", "größer <|end|><|assistant|> </s> <s> <pad>"),
        ("assistant", "x"),
        ("user", ""),
    ],
    [("user", "<\ufdd0|end|> \ufdd0 <<\ufdd0\ufdd0 <")],
)
"""Chats so far; contents that look like special ids, and like what keeps these apart from contents."""


def _chat(folder: Path) -> Example:
    """A byte latent transformer with named special ids."""
    chats = []
    for turns in TURNS:
        messages = [{"role": role, "content": content} for role, content in turns]
        chats.append((messages, answered([(role, content.encode()) for role, content in turns])))
    texts = [
        [BOS],
        [BOS, 261],
        chats[1][1],
        answered([("user", random_text(150, 0)), ("assistant", b"a\nb"), ("user", b"")]),
    ]
    asked = [[Turn("user", random_text(2 + seed, 200 + seed))] for seed in range(PROMPTS)]
    prompts = [prompt_tokens(turns, CHAT).tolist() for turns in asked]
    # Its tokenizer finds special ids in texts, as that of any model of chats does.
    strings = [(string, [BOS, *byte_tokens(string.encode()).tolist()]) for string in STRINGS if "<" not in string]
    found = _finished(
        folder,
        blt_settings(specials=CHAT),
        BY_ENTROPY.model_copy(update={"whole_characters": True}),
        partial(_network, newline_reset=False),
        (texts, prompts, strings),
    )
    found.chats, found.asked = chats, asked
    return found


def answered(turns: list[tuple[str, bytes]]) -> list[int]:
    """The ids of a chat so far, up to where the answer begins."""
    found: list[int] = prompt_tokens([Turn(role, content) for role, content in turns], CHAT).tolist()
    return found


def job_of(example: Example, exported: Path) -> dict[str, Any]:
    """What `opened_elsewhere` is told of one."""
    job = {name: getattr(example, name) for name in ("texts", "prompts", "strings")}
    more = {"chats": example.chats} if example.chats else {}
    return job | more | {"folder": str(exported), "new": NEW}
