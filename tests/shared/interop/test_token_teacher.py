"""Teachers in folders of transformers: they say of each token what transformers' own classes say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dataset_examples import SPACE, document, save_dataset
from helpers.foreign_tokenizers import TEXTS, foreign_tokenizer, write_foreign
from helpers.target_examples import teacher_folder
from helpers.token_models import TEACHERS, save_llama, saved_teacher
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pipeline.__main__ import main
from pipeline.rewriting.tokenizer import import_tokenizer
from shared.distillation.byte_targets import TokenTree
from shared.distillation.teacher import FlatTeacher
from shared.errors import DatasetError, IdentityError, ModelFileError
from shared.interop.names import InteropError
from shared.interop.token_teacher import TransformersTeacher, open_teacher
from shared.layers.blocks import Precision
from shared.vocabulary import EOS

TEXT = "".join(TEXTS).encode() + b"\xff the end"
IDS = {"vocab_size": 560, "bos_token_id": None, "eos_token_id": 420}
"""More ids than the tokenizers have; that which ends a document is special in the one like Llama 3's."""
FAMILY_TOKENIZERS = {"llama 2": "llama2", "mistral with a window": "mistral", "qwen3": "qwen2", "qwen2": "qwen2"}


PRECISIONS: tuple[Precision, Precision] = ("float32", "bfloat16")


def teacher_at(folder: Path, name: str, **ids: Any) -> PreTrainedModel:
    """A random model with a tokenizer of its family's shape."""
    family = FAMILY_TOKENIZERS.get(name, "llama3")
    chosen = IDS | ({"bos_token_id": 1, "eos_token_id": 2} if family in ("llama2", "mistral") else {}) | ids
    model = saved_teacher(folder, name, **chosen)
    write_foreign(folder, foreign_tokenizer(family))
    return model


def said_by(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


@pytest.mark.parametrize("name", TEACHERS)
def test_logits_of_every_family_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = teacher_at(tmp_path / "model", name)
    teacher = TransformersTeacher(tmp_path / "model", context=256)
    (said,) = teacher.predictions([[TEXT[:200]]])
    tokens, frame = said.ids.tolist(), model.config
    assert b"".join(teacher.tokens[number] or b"" for number in tokens[:-1]) == TEXT[:200]
    assert tokens[-1] == frame.eos_token_id
    begin = frame.eos_token_id if frame.bos_token_id is None else frame.bos_token_id
    wanted = said_by(model, [begin, *tokens[:-1]])
    assert (said.logits - wanted).abs().max() <= 1e-4
    assert wanted.std() > 0.5, "logits must differ"


@pytest.mark.parametrize("name", ["llama 3", "qwen2"])
def test_in_bfloat16_logits_are_as_far_off_as_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = teacher_at(tmp_path / "model", name)
    exact, rounded = (TransformersTeacher(tmp_path / "model", None, 256, "cpu", kind) for kind in PRECISIONS)
    (wanted,), (said,) = (one.predictions([[TEXT[:200]]]) for one in (exact, rounded))
    begin = model.config.eos_token_id if model.config.bos_token_id is None else model.config.bos_token_id
    theirs = said_by(model.bfloat16(), [begin, *wanted.ids.tolist()[:-1]]).float()
    error, allowed = ((found - wanted.logits).square().mean().sqrt() for found in (said.logits, theirs))
    assert said.logits.dtype == torch.float32
    assert 0 < error < 1.5 * allowed
    assert (exact.numerics.dtype, rounded.numerics.dtype) == PRECISIONS
    assert exact.numerics.probe != rounded.numerics.probe
    assert exact.identity == rounded.identity


@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_tied_table_is_held_once(tmp_path: Path, kind: Precision) -> None:
    model = teacher_at(tmp_path / "model", "llama 3")
    assert model.config.tie_word_embeddings
    teacher = TransformersTeacher(tmp_path / "model", None, 256, "cpu", kind)
    assert teacher._model.head.weight is teacher._model.embedding.weight


def test_what_bfloat16_cannot_hold_names_the_tensor(tmp_path: Path) -> None:
    model = teacher_at(tmp_path / "model", "llama 2")
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 3] = 3.4e38
    model.save_pretrained(tmp_path / "model")
    TransformersTeacher(tmp_path / "model")
    with pytest.raises(InteropError, match=r"model\.embed_tokens\.weight has values that are too large for .*float32"):
        TransformersTeacher(tmp_path / "model", None, None, "cpu", "bfloat16")


def test_of_a_long_document_each_window_is_what_transformers_say_of_it(tmp_path: Path) -> None:
    model = teacher_at(tmp_path / "model", "llama 3", bos_token_id=422)
    teacher = TransformersTeacher(tmp_path / "model", context=32)
    said = list(teacher.predictions([[TEXT[:100], TEXT[100:]], [b""]]))
    ids = np.concatenate([part.ids for part in said]).tolist()
    logits = torch.cat([part.logits for part in said])
    assert ids[-2:] == [420, 420]  # the end of the text, and of the one that is empty
    wanted = [said_by(model, [422, *ids[:31]])]
    starts = range(16, len(ids) - 1 - 16, 16)
    wanted += [said_by(model, [422, *ids[start : min(start + 31, len(ids) - 2)]])[16:] for start in starts]
    assert (logits - torch.cat([*wanted, said_by(model, [422])])).abs().max() <= 1e-4


def test_what_the_model_has_more_ids_of_are_special_and_the_end_is_ours(tmp_path: Path) -> None:
    teacher_at(tmp_path / "model", "qwen3")
    teacher = TransformersTeacher(tmp_path / "model")
    specials = TokenTree(teacher.tokens).specials
    assert len(teacher.tokens) == teacher.identity.vocabulary == 560
    assert specials == (420, 422, *range(423, 560))
    assert list(teacher.special_ids) == [EOS, *[None] * (len(specials) - 1)]


def test_the_tokenizer_is_the_models_own_and_no_other(tmp_path: Path) -> None:
    teacher_at(tmp_path / "model", "llama 3")
    making, _ = import_tokenizer(tmp_path / "model", tmp_path / "tokenizer")
    found = TransformersTeacher(tmp_path / "model", tmp_path / "tokenizer").identity
    assert found == TransformersTeacher(tmp_path / "model").identity
    assert found.tokenizer == making.sha256
    import_tokenizer(write_foreign(tmp_path / "other", foreign_tokenizer("qwen2")), tmp_path / "another")
    with pytest.raises(IdentityError, match="holds another tokenizer"):
        TransformersTeacher(tmp_path / "model", tmp_path / "another")


def test_an_identity_is_that_of_the_weights_and_settings(tmp_path: Path) -> None:
    teacher_at(tmp_path / "model", "qwen2")
    before = TransformersTeacher(tmp_path / "model").identity.sha256
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"][0] += 1
    save_file(state, path)
    weights = TransformersTeacher(tmp_path / "model").identity.sha256
    edit_config(tmp_path / "model", rms_norm_eps=1e-3)
    assert len({before, weights, TransformersTeacher(tmp_path / "model").identity.sha256}) == 3


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_llama(folder, **IDS)
    write_foreign(folder, foreign_tokenizer("llama3"))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"eos_token_id": [9, 420]}, "eos_token_id is 9, which the tokenizer has for the text"),
        ({"eos_token_id": 560}, "eos_token_id is 560, ids are 0 to 559"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"vocab_size": 300}, "vocab_size is 300, but the tokenizer has 423 ids"),
        ({"vocab_size": 561}, "model.embed_tokens.weight"),
        ({"vocab_size": "many"}, "vocab_size: must be a valid integer"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"max_position_embeddings": 50}, "max_position_embeddings is 50"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    llama: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((llama / "config.json").read_text()) | changes
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError) as refused:
        TransformersTeacher(folder, context=64)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer_or_with_broken_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_llama(folder, **IDS)
    with pytest.raises(DatasetError, match=r"tokenizer\.json cannot be read"):
        TransformersTeacher(folder)
    write_foreign(folder, foreign_tokenizer("llama3"))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"][3, 4] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"lm_head\.weight has values that are not finite"):
        TransformersTeacher(folder)


def test_targets_are_made_of_the_teacher_in_any_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_at(tmp_path / "model", "llama 2")
    assert isinstance(open_teacher(tmp_path / "model"), TransformersTeacher)
    assert isinstance(open_teacher(teacher_folder(tmp_path / "ours")), FlatTeacher)
    rows = [document(str(number), "a", text.encode(), SPACE) for number, text in enumerate(TEXTS)]
    save_dataset(tmp_path / "data", [rows], SPACE)
    line = ("targets", tmp_path / "data", "--teacher", tmp_path / "model", "--out", tmp_path / "out", "--workers", 1)
    assert main([*map(str, line)]) == 0
    assert f"of {len(TEXTS)} documents" in capsys.readouterr().out
