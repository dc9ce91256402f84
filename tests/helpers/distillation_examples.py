"""A tiny token model as a teacher, its student, and what the teacher says of a dataset; and packs that read it."""

from pathlib import Path

import numpy as np
import torch

from helpers.target_examples import document_texts
from helpers.tiny_runs import NONE, STACK, run, tiny_data
from helpers.token_data import FLAT, in_tokens
from pipeline.__main__ import main as pipeline
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import load_making
from shared.distillation.byte_targets import TokenTree
from shared.distillation.stored_targets import TargetFormat, stored_targets
from shared.distillation.targets_folder import TargetsIdentity, TeacherIdentity
from shared.distillation.targets_writer import TargetsWriter, commit_targets
from shared.model_folder.identity import model_sha256
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from shared.vocabulary import BOS, EOS
from trainer.__main__ import main as trainer

FORM = TargetFormat(top=4)


def write_random_targets(folder: Path, tokens: Dataset, teacher: Path, seed: int = 0) -> Path:
    """Random logits as if a teacher said them of a dataset of rule bpe."""
    encoder = SubwordEncoder(tokens.tokenizer)
    tree, making = TokenTree(encoder.subwords.tokens), load_making(tokens.tokenizer)
    entries = []
    for shard in range(tokens.shard_count):
        with TargetsWriter(folder, tokens, shard, FORM) as writer:
            for number, text in enumerate(document_texts(tokens, shard)):
                ids = np.append(encoder.ids(text), EOS)
                generator = torch.Generator().manual_seed(1000 * seed + number)
                logits = torch.randn(len(ids), tree.size, generator=generator)
                special_ids = [None, BOS, EOS, None]
                writer.add(stored_targets(tree.targets(logits, ids), special_ids, FORM))
        entries.append(writer.entry)
    identity = TeacherIdentity(
        sha256=model_sha256(teacher / "model"), vocabulary=making.vocabulary, tokenizer=making.sha256, context=64
    )
    commit_targets(folder, TargetsIdentity(teacher=identity, form=FORM), entries, tokens)
    return folder


def teacher_and_student(folder: Path) -> Path:
    """FOLDER/tokens, FOLDER/teacher (a run), FOLDER/student (byteified) and FOLDER/targets/train."""
    in_tokens(tiny_data(folder / "plain", NONE), folder / "tokens")
    assert run(folder / "tokens", folder / "teacher", "--run.steps", 4, "--data.tokens", 512, model=FLAT) == 0
    recipe = folder / "student.toml"
    stack = ", ".join(f"{key} = {value}" for key, value in STACK.items())
    recipe.write_text(
        f"[run]\nsteps = 6\n[data]\ntokens = 512\npacks = 2\n[optimizer]\nlr = 1e-2\n[model]\nkind = 'blt'\n"
        f"window = 64\nngrams = {{sizes = [3, 4], rows = 64}}\nencoder = {{{stack}}}\nglobal = {{{stack}}}\n"
        f"decoder = {{{stack}}}\n"
    )
    made = ["byteify", folder / "teacher", folder / "student", "--recipe", recipe]
    assert trainer([*map(str, made)]) == 0
    write_random_targets(folder / "targets" / "train", open_dataset(folder / "tokens" / "train"), folder / "teacher")
    return folder


def study_folder(folder: Path) -> Path:
    """What the study of distillation is given, at its smallest."""
    teacher_and_student(folder)
    cut = ["recut", folder / "plain", "--rule", "space", "--max-length", 64, "--out", folder / "causal", "--workers", 1]
    assert pipeline([*map(str, cut)]) == 0
    (folder / "tokens-tokenizer").rename(folder / "tokenizer")
    recipe = (folder / "student.toml").read_text().replace("steps = 6", "bytes = 1\ndtype = 'float32'")
    often = "log_every = 1\nvalidate_every = 2\n"
    (folder / "recipe.toml").write_text(f"{recipe}\n[parallel]\ndry_run = false\n[metrics]\n{often}")
    return folder
