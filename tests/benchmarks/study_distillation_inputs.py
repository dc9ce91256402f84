"""How much of a first stage's loss is left to the encoder: what the frozen blocks read is exchanged in training.

    python tests/benchmarks/study_distillation_inputs.py FOLDER [--bytes 600000 ...] [--seeds 0 1 2]

FOLDER is that of study_distillation.py. A student learns BYTES of text in patches that are the teacher's tokens, from
the text and the teacher's probabilities, with the weights of stage 1 there. Between its local models are

    embedding   the teacher's blocks, frozen, which read the teacher's own embedding of each token: an encoder with
                nothing left to learn
    encoder     the same blocks, which read what the encoder gives, with the teacher's embedding in the loss: stage 1
    untrained   blocks as large, which learn from the beginning
    nothing     the same frozen blocks, which read zeros: what is learned is learned by the local models and the tables

Printed are nats a target of held-out text, and for each by how much it is better than "untrained", seed by seed.
"""

import argparse
import math
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch
import torch.nn.functional as F
from study_distillation import PROBABILITIES, command, words
from torch import Tensor

from shared.bpe.vocabulary import NO_TOKEN
from shared.distillation.losses import BEGINNING, divergence, embedding_error
from shared.distillation.targets_folder import open_targets
from shared.interop.embedding import TeacherEmbedding, teacher_embedding
from shared.io.display.tables import aligned
from shared.io.display.terminal import show
from shared.layers.batch import Batch
from shared.model_folder.files import build_model
from shared.model_folder.identity import WEIGHTS_FILE
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from shared.vocabulary import IGNORED_LABEL
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.data.packing.teacher import TeacherReader
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

Inputs = Literal["embedding", "encoder", "untrained", "nothing"]
RATE, WARMUP, FLOOR, DECAY = 3e-3, 0.05, 0.1, 0.1
"""Of AdamW: the peak, the share of the run until then, the share of the peak at its end, and the weight decay."""
PACKS = 60
"""Of held-out text."""


@dataclass(frozen=True)
class Given:
    """What all runs learn from."""

    folder: Path
    settings: TrainSettings
    """Of the student."""
    embedding: TeacherEmbedding

    @staticmethod
    def of(folder: Path) -> "Given":
        """What is in the folder; the student is made if it is not there."""
        student = folder / "runs" / "0" / "student"
        if not student.exists():
            command("-m", "trainer", "byteify", folder / "teacher", student, "--recipe", folder / "recipe.toml")
        words = ["--data.path", str(folder / "tokens"), "--run.out", str(folder / "runs" / "inputs")]
        settings = load_recipe(student / "recipe.toml", words, TrainSettings)
        return Given(folder, settings, teacher_embedding(folder / "teacher"))

    def data(self, split: str) -> tuple[Dataset, PackLimits]:
        found = open_dataset(self.folder / "tokens" / split)
        return found, replace(pack_limits(found.manifest, self.settings.data.tokens), subwords=False)

    def student(self, seed: int, blocks_learn: bool) -> Blt:
        """Local models with nothing learned, and the teacher's blocks, frozen, or blocks that learn."""
        model = build_model(self.settings.model)
        assert isinstance(model, Blt)
        initialise(model, seed)
        if blocks_learn:
            return model
        blocks = safetensors.torch.load_file(self.folder / "runs" / "0" / "student" / WEIGHTS_FILE)
        assert not model.load_state_dict(blocks, strict=False).unexpected_keys
        model.global_.requires_grad_(False)
        return model


def forward(model: Blt, batch: Batch, inputs: Inputs, embedding: TeacherEmbedding) -> tuple[Tensor, Tensor]:
    """Logits, and what the encoder gives to the blocks, whichever they read."""
    documents, patches, targets = batch.documents, batch.patches, batch.teacher
    assert patches is not None
    assert targets is not None
    states, vectors = model.encoder(batch.ids, model.ngrams(batch.ids, documents), documents, patches)
    given = read = model.global_.inputs(vectors)
    if inputs == "nothing":
        read = torch.zeros_like(given)
    if inputs == "embedding":
        tokens = torch.where(targets.tokens == BEGINNING, embedding.beginning, targets.tokens)
        # What is no token, of special ids, is read as the encoder gives it.
        read = torch.where((tokens == NO_TOKEN)[:, None], given, embedding.table[tokens.clamp(min=0)])
    logits: Tensor = model.decoder(states, model.global_(read, patches.documents), documents, patches)
    return logits, given


def learned(given: Given, inputs: Inputs, length: int, weight: float, seed: int) -> float:
    """Cross-entropy of held-out text, nats a target, after so many bytes."""
    model, embedding = given.student(seed, inputs == "untrained"), given.embedding
    data, limits = given.data("train")
    reader = TeacherReader(open_targets(given.folder / "targets", data), given.folder / "tokenizer")
    packs = iter(PackLoader(data, limits, 1, seed=seed, streams=given.settings.data.streams, teacher=reader))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, (0.9, 0.95), weight_decay=DECAY)
    steps = length // limits.tokens
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step / steps))
    for pack in islice(packs, steps):
        batch = pack.batch.to(torch.device("cpu"))
        assert batch.teacher is not None
        logits, given_to_blocks = forward(model, batch, inputs, embedding)
        loss = F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
        loss = loss + PROBABILITIES * divergence(logits, batch.labels, batch.teacher)
        if inputs == "encoder":
            error = embedding_error(given_to_blocks, batch.teacher.tokens, embedding.table, embedding.beginning)
            loss = loss + weight * error / embedding.mean_square
        optimizer.zero_grad()
        (loss / (batch.labels != IGNORED_LABEL).sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
    return held_out(given, model, inputs)


def share_of_rate(progress: float) -> float:
    """Of the peak: linear, then a cosine."""
    return min(1.0, progress / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def held_out(given: Given, model: Blt, inputs: Inputs) -> float:
    data, limits = given.data("validation")
    packs = PackLoader(data, limits, 1, teacher=TeacherReader(None, given.folder / "tokenizer"))
    total, targets = 0.0, 0
    with torch.inference_mode():
        for pack in islice(packs, PACKS):
            batch = pack.batch.to(torch.device("cpu"))
            logits, _ = forward(model, batch, inputs, given.embedding)
            total += float(F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum"))
            targets += int((batch.labels != IGNORED_LABEL).sum())
    return total / targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, nargs="+", default=[600_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weight", type=float, default=1.0, help="of the embedding's error")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    given, rows = Given.of(wanted.folder.resolve()), []
    found = {
        (inputs, length): [learned(given, inputs, length, wanted.weight, seed) for seed in wanted.seeds]
        for length in wanted.bytes
        for inputs in get_args(Inputs)
    }
    for (inputs, length), values in found.items():
        better = [other - value for other, value in zip(found["untrained", length], values)]
        rows.append([inputs, f"{length / 1e3:,.0f} k", words(values, 3), words(better, 3)])
    heads = ["the blocks read", "bytes", "nats a target", 'better than "untrained" by']
    show(aligned(heads, rows, left=(0,)))


if __name__ == "__main__":
    main()
