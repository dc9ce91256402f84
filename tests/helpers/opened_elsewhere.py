"""What somebody does with exported folders who has transformers and not this project; a program of its own.

    python -I opened_elsewhere.py JOB OUT

JOB (JSON) has for each folder, by name: "folder", "texts" and "prompts" (ids), "strings" ([text, its ids]), "new" (ids
to write), and for a model of chats "chats" ([messages, ids of the prompt]). OUT gets logits.safetensors and
written.json, which are compared where our models are; what needs no comparison is asserted here.
"""

import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LogitsProcessor,
    PrinterCallback,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)

ROWS = 8
"""Of a padded batch."""
STEPS = 10
"""Of training."""


def opened(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def padded(rows: list[list[int]], pad: int, side: str) -> dict[str, Tensor]:
    """Ids and mask, int64 [B, S]."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding, zeros, ones = [pad] * (longest - len(row)), [0] * (longest - len(row)), [1] * len(row)
        ids.append(padding + row if side == "left" else row + padding)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def ends_of(model: Any) -> list[int]:
    """Ids that end a text."""
    found = model.generation_config.eos_token_id
    return found if isinstance(found, list) else [found]


def until_the_end(model: Any, ids: list[int]) -> list[int]:
    """What was written, up to the id that ends it; behind it is only padding."""
    ends = set(ends_of(model))
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    assert set(ids[last + 1 :]) <= {model.config.pad_token_id}, ids
    return ids[: last + 1]


def written(model: Any, prompts: list[list[int]], new: int, side: str = "left") -> list[list[int]]:
    """What greedy search writes after prompts, in one batch."""
    batch = padded(prompts, model.config.pad_token_id, side)
    made = model.generate(**batch, max_new_tokens=new, do_sample=False)
    return [until_the_end(model, row) for row in made[:, batch["input_ids"].shape[1] :].tolist()]


def all_written(model: Any, job: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Of each prompt alone, and of the first of them in padded batches."""
    prompts, found = job["prompts"], {}
    found["alone"] = [written(model, [prompt], job["new"])[0] for prompt in prompts]
    for side in ("left", "right"):
        batches = [prompts[begin : begin + ROWS] for begin in range(0, 2 * ROWS, ROWS)]
        found[side] = [row for batch in batches for row in written(model, batch, job["new"], side)]
    return found


def what_was_read(out: Any) -> dict[str, Any]:
    """What a call hands on to the next one, under the name that this transformers has for it."""
    name = "cache" if "cache" in out else "past_key_values"
    return {name: out[name]}


@torch.no_grad()
def all_logits(model: Any, job: dict[str, Any]) -> dict[str, Tensor]:
    """Of whole texts, each alone and in a batch that is padded on either side, and of one that is read in parts.

    And of one by the class that transformers has itself, where it has one.
    """
    texts, found = job["texts"], {}
    for number, ids in enumerate(texts):
        found[f"alone/{number}"] = model(torch.tensor([ids])).logits[0]
    for side in ("left", "right"):
        batch = padded(texts, model.config.pad_token_id, side)
        logits = model(**batch).logits
        for number in range(len(texts)):
            found[f"{side}/{number}"] = logits[number][batch["attention_mask"][number] > 0]
    parts, read = [], {}
    for part in torch.tensor(texts[-1]).split([1, 20, 1, 1, len(texts[-1]) - 23]):
        out = model(part[None], use_cache=True, **read)
        read = what_was_read(out)
        parts.append(out.logits[0])
    found[f"parts/{len(texts) - 1}"] = torch.cat(parts)
    if model.config.model_type == "blt":
        plain = AutoModelForCausalLM.from_pretrained(job["folder"], trust_remote_code=False).eval()
        assert type(plain).__module__.startswith("transformers.models.blt")
        found["own class/2"] = plain(torch.tensor([texts[2]])).logits[0]
    return {name: logits.contiguous() for name, logits in found.items()}


class Banned(LogitsProcessor):
    """One id is never written."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token] = -math.inf
        return scores


class AfterSome(StoppingCriteria):
    """Ends when a text has so many ids."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def check_what_generate_is_given(model: Any, tokenizer: Any, prompt: list[int], new: int) -> None:
    """A streamer hears what is written, a processor forbids, a criterion ends, and a cache is handed on."""
    batch, width = padded([prompt], model.config.pad_token_id, "left"), len(prompt)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"do_sample": False, "max_new_tokens": new}
    plain = model.generate(**batch, **options, streamer=streamer)[0, width:]
    assert "".join(streamer) == tokenizer.decode(plain)
    processed = model.generate(**batch, **options, logits_processor=[Banned(int(plain[0]))])[0, width:]
    assert int(plain[0]) not in processed.tolist()
    criteria = StoppingCriteriaList([AfterSome(width + 2)])
    stopped = model.generate(**batch, **options, eos_token_id=None, stopping_criteria=criteria)
    assert stopped.shape[1] == width + 2
    torch.manual_seed(0)
    sampled = model.generate(**batch, max_new_tokens=new, do_sample=True, top_k=5, temperature=0.9, eos_token_id=None)
    assert sampled.shape[1] == width + new
    kept = {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}
    whole = model.generate(**batch, max_new_tokens=8, **kept).sequences
    first = model.generate(**batch, max_new_tokens=3, **kept)
    again = model.generate(first.sequences, max_new_tokens=5, **what_was_read(first), **kept).sequences
    assert torch.equal(again, whole)


def check_training(folder: str, tokenizer: Any, texts: list[list[int]], out: Path) -> list[float]:
    """Some steps of transformers' Trainer; what is saved is what is opened again. Returns the losses."""
    model = opened(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(out / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, collator, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == STEPS, losses
    assert all(map(math.isfinite, [*losses, trainer.evaluate()["eval_loss"]]))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved, "no parameter has moved"
    assert not [name for name in moved if name.startswith("model.patcher.")], "the entropy model has moved"
    learns = {name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    assert moved == learns, f"have not moved: {sorted(learns - moved)}"
    trainer.save_model(str(out / "saved"))
    model.eval()
    ids = torch.tensor([texts[0]])
    with torch.no_grad():
        assert torch.equal(opened(str(out / "saved"))(ids).logits, model(ids).logits)
    return losses


def check_tokenizer(tokenizer: Any, strings: list[tuple[str, list[int]]], out: Path) -> None:
    """Texts become their bytes or tokens, and come back; also from a tokenizer that was saved."""
    tokenizer.save_pretrained(out / "tokenizer")
    for each in (tokenizer, AutoTokenizer.from_pretrained(out / "tokenizer")):
        for text, ids in strings:
            assert each(text).input_ids == ids, text
            assert each.decode(ids, skip_special_tokens=True) == text


def check_chats(tokenizer: Any, chats: list[tuple[list[dict[str, str]], list[int]]]) -> None:
    """The template gives the ids that our `generate --chat` begins with, whatever stands in a content."""
    for messages, ids in chats:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == ids, messages
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        assert whole == [*ids[:-1], tokenizer.eos_token_id]
    if chats:
        try:
            tokenizer.apply_chat_template([{"role": "nobody", "content": ""}])
        except TemplateError as error:
            refused = str(error)
        assert "nobody" in refused


def check_pipeline(folder: str, model: Any, tokenizer: Any, job: dict[str, Any]) -> None:
    """`pipeline` writes what `generate` does."""
    writer = pipeline("text-generation", model=folder, trust_remote_code=True)
    text, ids = job["strings"][0]
    options = {"max_new_tokens": job["new"], "do_sample": False, "return_full_text": False}
    (wanted,) = written(model, [ids], job["new"])
    assert writer(text, **options)[0]["generated_text"] == tokenizer.decode(wanted, skip_special_tokens=True)
    for messages, prompt in job.get("chats", ()):
        (answer,) = written(model, [prompt], job["new"])
        found = writer(messages, **options)[0]["generated_text"]
        assert found == tokenizer.decode(answer, skip_special_tokens=True), messages


def check_card(folder: Path) -> None:
    """The module is the one that the model card names, and what it says about loading works."""
    card = (folder / "README.md").read_text()
    (module,) = folder.glob("modeling_*.py")
    assert hashlib.sha256(module.read_bytes()).hexdigest() in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    before = Path.cwd()
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(program, {})
    os.chdir(before)
    assert "Once upon a time" in shown.getvalue()


def check_that_the_project_is_not_here() -> None:
    for name in ("shared", "trainer", "pipeline"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported, and this is to be an environment without the project")


def main(job: Path, out: Path) -> None:
    check_that_the_project_is_not_here()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
    torch.set_num_threads(1)
    logits: dict[str, Tensor] = {}
    texts: dict[str, dict[str, list[list[int]]]] = {}
    for name, each in json.loads(job.read_text()).items():
        begin, folder = time.monotonic(), each["folder"]
        model = opened(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        logits |= {f"{name}/{key}": value for key, value in all_logits(model, each).items()}
        texts[name] = all_written(model, each)
        check_what_generate_is_given(model, tokenizer, each["prompts"][0], each["new"])
        with tempfile.TemporaryDirectory() as scratch:
            check_tokenizer(tokenizer, each["strings"], Path(scratch))
            check_chats(tokenizer, each.get("chats", []))
            losses = check_training(folder, tokenizer, each["prompts"], Path(scratch))
        check_card(Path(folder))
        check_pipeline(folder, model, tokenizer, each)
        took = time.monotonic() - begin
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, {took:.1f} s", flush=True)
    save_file(logits, out / "logits.safetensors")
    (out / "written.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
