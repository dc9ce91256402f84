"""Folders of models, ours and those of others, and files that go with them."""

import json
import random
import shutil
from pathlib import Path

import mutations as m
from fuzz_common import refit, run
from helpers.counted_models import counted_folder
from helpers.model_examples import any_model, flat_settings
from helpers.model_folders import entropy_folder, entropy_model_folder, entropy_rule, identity_of, model_folder
from helpers.tiny_runs import STACK, tiny_recipe, toml

from pipeline.__main__ import main as pipeline
from shared.bpe.folder import load_making
from shared.interop.embedding import teacher_embedding
from shared.io.files.digests import file_sha256
from shared.model_folder.files import save_model
from shared.model_folder.identity import model_sha256
from shared.patching import PatchingSettings
from shared.shards.cache import FileCache
from shared.shards.manifest import EntropyModelIdentity
from shared.shards.open import open_dataset
from shared.vocabulary import BOS
from trainer.__main__ import main as trainer
from trainer.data.teacher import identity_of as identity_of_teacher
from trainer.data.teacher import open_teacher
from trainer.main import main as train
from trainer.provenance.identity import IDENTITY_NAME, model_identity, save_identity
from trainer.serving.requests import ChatRequest, CompletionRequest, prompt_of_ids, prompt_of_text, read_request
from trainer.settings import DistillationSettings

SUBWORDS = 280


def made_model(folder: Path) -> None:
    rule = entropy_rule()
    entropy_model = entropy_model_folder(folder / "entropy_model")
    model_folder(folder / "m", rule, entropy_model)
    shutil.rmtree(folder / "entropy_model")


def made_entropy(folder: Path) -> None:
    entropy_folder(folder / "m")


def made_counts(folder: Path) -> None:
    counted_folder(folder / "m", [b"some text to score", b"and some more of it"])


def generate(folder: Path) -> int:
    return run(trainer, "generate", "m", "--prompt", "ab", "--bytes", "3", "--device", "cpu")


def export_hf(folder: Path) -> int:
    return run(trainer, "export-hf", "m", "out")


def score_with(folder: Path) -> int:
    (folder / "c.jsonl").write_text('{"text": "some text to score"}\n')
    words = ("--rule", "entropy", "--theta", "3", "--executor", "inline", "--workers", "1", "--out", "out")
    return run(pipeline, "preprocess", "c.jsonl", "--entropy-model", "m", *words)


def made_hf(folder: Path) -> None:
    made_model(folder)
    assert run(trainer, "export-hf", folder / "m", folder / "hf") == 0
    shutil.rmtree(folder / "m")


def made_hf_of_counts(folder: Path) -> None:
    """Of a model that the folder's own class alone can be, with a table of counts inside."""
    counts = counted_folder(folder / "counts", [b"some text to score", b"and some more of it"])
    made = model_folder(folder / "m", entropy_rule(), counts)
    identity = model_identity(made)
    scored = EntropyModelIdentity(sha256=model_sha256(counts), numerics=None)
    save_identity(identity.model_copy(update={"entropy_model": scored}), made / IDENTITY_NAME)
    shutil.rmtree(counts)
    assert run(trainer, "export-hf", folder / "m", folder / "hf") == 0
    shutil.rmtree(folder / "m")


def made_subwords(folder: Path) -> None:
    """A flat model of byte-pair tokens, with n-gram tables."""
    from helpers.subword_examples import train_tokenizer

    tokenizer = train_tokenizer(folder / "d", folder / "t", SUBWORDS)
    settings = flat_settings(vocabulary=SUBWORDS, ngrams={"sizes": (2, 3), "rows": 31})
    save_model(any_model(settings), settings, folder / "m", tokenizer=tokenizer)
    rule = PatchingSettings(rule="bpe", max_length=64, tokenizer=load_making(tokenizer).identity)
    save_identity(identity_of(rule), folder / "m" / IDENTITY_NAME)
    shutil.rmtree(folder / "d")
    shutil.rmtree(folder / "t")


def spoil_subwords(rng: random.Random, folder: Path) -> str:
    """The tokenizer's file, and the hashes that say that it is the recorded one."""
    words = m.at("m/tokenizer/tokenizer.json", m.spoil_json)(rng, folder)
    sha256 = file_sha256(folder / "m" / "tokenizer" / "tokenizer.json")
    refit(folder / "m" / "tokenizer" / "identity.json", lambda values: values.update(sha256=sha256))
    refit(folder / "m" / IDENTITY_NAME, lambda values: values["patching"]["tokenizer"].update(sha256=sha256))
    return words


def made_hf_of_subwords(folder: Path) -> None:
    """Of a model of another kind than byte latent transformers, with its tokenizer."""
    made_subwords(folder)
    assert run(trainer, "export-hf", folder / "m", folder / "hf") == 0
    shutil.rmtree(folder / "m")


def import_hf(folder: Path) -> int:
    return run(trainer, "import-hf", "hf", "out")


def made_token_model(folder: Path) -> None:
    """With windows, and rotary settings of each kind of layers."""
    import torch
    from transformers import Olmo3Config, Olmo3ForCausalLM

    torch.manual_seed(0)
    config = Olmo3Config(
        hidden_size=32,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        pad_token_id=None,
        eos_token_id=None,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=50,
    )
    Olmo3ForCausalLM(config).save_pretrained(folder / "token-model")
    model = tiny_recipe(Path("x"), Path("y"))["model"] | {"global": STACK}
    (folder / "recipe.toml").write_text(toml(tiny_recipe(Path("nodata"), Path("out"), model=model)))


def made_foreign_tokenizers(folder: Path) -> None:
    """One over bytes and one over characters."""
    from helpers.foreign_tokenizers import foreign_tokenizer, write_foreign

    write_foreign(folder / "bytes", foreign_tokenizer("qwen2"))
    write_foreign(folder / "characters", foreign_tokenizer("llama2"))


def import_tokenizers(folder: Path) -> int:
    codes = [run(pipeline, "tokenizer", "--from", name, "--out", f"{name}-out") for name in ("bytes", "characters")]
    return max(codes)


def made_teacher(folder: Path) -> None:
    from helpers.dataset_examples import STATIC, document, save_dataset
    from helpers.foreign_tokenizers import foreign_tokenizer, write_foreign
    from helpers.token_models import save_llama

    save_llama(folder / "teacher", num_hidden_layers=1, vocab_size=560, eos_token_id=420)
    write_foreign(folder / "teacher", foreign_tokenizer("llama3"))
    save_dataset(folder / "d", [[document("a", "code", b"a text\nof two lines", STATIC)]], STATIC)

    assert run(pipeline, "tokenizer", "--from", folder / "teacher", "--out", folder / "tokens") == 0
    distillation = {"teacher": "teacher", "targets": "not-yet"}
    model = tiny_recipe(Path("x"), Path("y"))["model"] | {"global": STACK | {"width": 64, "heads": 4}}
    plan = {"targets": {"token_bytes": 3.0}}
    recipe = tiny_recipe(Path("nodata"), Path("out"), model=model, distillation=distillation, plan=plan)
    (folder / "recipe.toml").write_text(toml(recipe))


def plan_with_teacher(folder: Path) -> int:
    return run(train, "recipe.toml", "--plan")


def read_teacher(folder: Path) -> None:
    """What a run reads of it before its first step."""
    wanted = DistillationSettings(teacher=Path("teacher"), tokenizer=Path("tokens"), probabilities=0)
    open_teacher(wanted, {"": open_dataset(folder / "d")}, FileCache(folder / "cache"))
    identity_of_teacher(wanted, [""])
    teacher_embedding(Path("teacher"))


def dry_run_targets(folder: Path) -> int:
    return run(pipeline, "targets", "d", "--teacher", "teacher", "--out", "out", "--workers", "1", "--dry-run")


def byteify(folder: Path) -> int:
    return run(trainer, "byteify", "token-model", "out", "--recipe", "recipe.toml")


def made_reference(folder: Path) -> None:
    """A folder in the layout of the released reference: safetensors, and a torch file."""
    from helpers.interop_examples import random_settings
    from helpers.reference_folders import reference_folder, uniform

    reference_folder(folder / "hf", uniform(*random_settings(0)), 0)


def made_messages(folder: Path) -> None:
    specials = ("system", "user", "assistant", "end")
    entropy_model = entropy_model_folder(folder / "entropy_model")
    model_folder(folder / "m", entropy_rule(), entropy_model, specials)
    chat = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    (folder / "chat.json").write_text(json.dumps(chat))


def chat(folder: Path) -> int:
    words = ("--chat", "--messages", "chat.json", "--bytes", "3", "--device", "cpu")
    return run(trainer, "generate", "m", *words)


def made_requests(folder: Path) -> None:
    """Bodies of both kinds, with every field."""
    common = {"model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "n": 2, "user": "u"}
    common |= {"stop": ["a", "b"], "utf8": True, "theta": 1.5, "subset": "s", "timeout": 5.0, "details": True}
    common |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9, "logit_bias": {}}
    completion = {"prompt": ["ab", "é"], "echo": True, "logprobs": 3}
    parts = [{"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]
    chat = {"messages": messages, "logprobs": True, "top_logprobs": 2}
    (folder / "completion.json").write_text(json.dumps(common | completion))
    (folder / "ids.json").write_text(json.dumps({"prompt": [[1, 5], [6, 261]]}))
    (folder / "chat.json").write_text(json.dumps(common | chat))


def read_requests(folder: Path) -> None:
    """As a server reads them, up to what is handed to a model."""
    for name in ("completion", "ids"):
        asked = read_request((folder / f"{name}.json").read_bytes(), CompletionRequest)
        for prompt in asked.prompts:
            tokens = prompt_of_text(prompt) if isinstance(prompt, str) else prompt_of_ids(prompt, 264)
            assert tokens[0] == BOS
        asked.settings(0)
    chat = read_request((folder / "chat.json").read_bytes(), ChatRequest)
    assert chat.turns
    chat.settings(0)


def made_tasks(folder: Path) -> None:
    made_model(folder)
    lines = [
        {"context": "The sky is", "choices": ["blue.", "green."], "answer": 0},
        {"prompt": "1 + 1 =", "answer": "2"},
        {"question": "Which?", "choices": {"text": ["iron", "wood"], "label": ["1", "2"]}, "answerKey": "2"},
    ]
    (folder / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[2])))


def tasks(folder: Path) -> int:
    return run(trainer, "tasks", "m", "task.jsonl", "--device", "cpu")


def made_calibration(folder: Path) -> None:
    """What calibrate writes."""
    corpus = [{"text": f"line {n} of a text that is scored " * 3} for n in range(30)]
    (folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    entropy_folder(folder / "e")
    none = ("--rule", "none", "--executor", "inline")
    assert run(pipeline, "preprocess", folder / "c.jsonl", *none, "--out", folder / "corpus") == 0
    words = ("--entropy-model", folder / "e", "--target", "3", "--whole-characters", "--out", folder / "patching.json")
    assert run(pipeline, "calibrate", folder / "corpus" / "train", *words) == 0
    shutil.rmtree(folder / "corpus")


def cut_with_patching(folder: Path) -> int:
    words = (
        "--entropy-model",
        "e",
        "--patching",
        "patching.json",
        "--executor",
        "inline",
        "--workers",
        "1",
        "--out",
        "out",
    )
    return run(pipeline, "preprocess", "c.jsonl", *words)


def made_sizes(folder: Path) -> None:
    """A table that calibrate --sizes writes, with data that keeps entropies and a recipe whose patch size changes."""
    corpus = [{"text": f"line {n} of a text that is scored " * 3} for n in range(30)]
    (folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    model = ("--entropy-model", entropy_folder(folder / "e"))
    lengths = ("--max-length", "64")
    cut = (*model, "--rule", "entropy", "--theta", "3", "--sidecar", "uint8", "--validation-fraction", "0.2", *lengths)
    how = ("--executor", "inline", "--workers", "1", "--out", folder / "data")
    assert run(pipeline, "preprocess", folder / "c.jsonl", *cut, *how) == 0
    sizes = ("--sizes", "2,4", "--out", folder / "sizes.json")
    assert run(pipeline, "calibrate", folder / "data", *model, *lengths, *sizes) == 0
    recipe = toml(tiny_recipe(Path("data"), Path("out"), data={"patch_sizes": "sizes.json"}))
    schedule = "[{size = 2}, {size = 4, at = 0.5}]"
    (folder / "recipe.toml").write_text(recipe.replace("[data]\n", f"[data]\npatch_schedule = {schedule}\n"))


def plan_by_phases(folder: Path) -> int:
    return run(train, "recipe.toml", "--plan")
