"""The folder in which a reader of the documentation types its commands, with tiny models, texts and budgets."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import zstandard
from doc_blocks import Block
from doc_server import started

ROOT = Path(__file__).parents[2]

VARIABLES = {
    # The variables of the Makefile, and what stands for a virtual environment that has been entered.
    "CORPUS_BYTES": "60000",
    "EXECUTOR": "inline",
    "NPROC": "1",
    "BYTES": "16",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "NO_COLOR": "1",
    "RAY_ADDRESS": "",
}

INSTEAD = Path(__file__).parent / "instead"
"""Files that a reader finds instead of the project's own: recipes of tiny models, an environment that is there."""

TEXTS = ("my-corpus/", "book.txt", "tldr-train.jsonl.zst", "more.jsonl.gz", "chats.jsonl")
"""What a reader has."""

WORDS = {
    "en": "the patch begins where the next byte is hard to guess and ends before another one",
    "de": "wo das nächste Byte schwer zu raten ist beginnt ein neues Stück für das Modell",
    "ru": "кусок начинается там где следующий байт трудно угадать",
}
"""Of what the texts are made, by language."""

PREPARATIONS = {
    # What `after: NAME` means: commands whose results a page finds in runs/, and what comes before them.
    # Each is run once for all pages.
    "train": (
        [],
        """
        make train CORPUS=tldr-train.jsonl.zst CORPUS_BYTES=0 OUT=runs/stdlib
        cp -r runs/stdlib runs/tldr-train
        """,
    ),
    "targets": (
        ["train"],
        """
        python -m pipeline tokenizer runs/stdlib/corpus --vocabulary 300 --out runs/stdlib/tokenizer
        python -m pipeline recut runs/stdlib/corpus --rule bpe --tokenizer runs/stdlib/tokenizer \\
            --out runs/stdlib/tokens --workers 1
        torchrun --standalone trainer/main.py trainer/recipes/entropy-small.toml --data.path runs/stdlib/tokens \\
            --run.out runs/stdlib/teacher --model.kind flat --model.vocabulary 300
        python -m pipeline targets runs/stdlib/corpus --teacher runs/stdlib/teacher --out runs/stdlib/targets
        """,
    ),
    "llama": (
        [],
        """
        python - <<'PROGRAM'
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        from transformers import LlamaConfig, LlamaForCausalLM
        tokenizer, level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = level
        special = dict(special_tokens=["<bos>", "<eos>"], initial_alphabet=level.alphabet())
        tokenizer.train(["book.txt"], trainers.BpeTrainer(vocab_size=300, **special))
        shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=300)
        for folder in ("runs/llama", "runs/llama-chat"):
            LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
            tokenizer.save(f"{folder}/tokenizer.json")
        PROGRAM
        """,
    ),
    "a model of others": (
        ["train"],
        """
        python -m trainer export-hf runs/stdlib/blt/model runs/blt-folder
        python - <<'PROGRAM'
        import json
        config = json.load(open("runs/blt-folder/config.json"))
        del config["patchwork"]
        json.dump(config, open("runs/blt-folder/config.json", "w"))
        PROGRAM
        """,
    ),
}

FIRST = """
# Ray takes ten seconds to start: where a block says nothing of workers, its preprocessing is done without it.
python() {
  case "$*" in
    *--executor*|*--workers*) command python "$@" ;;
    "-m pipeline preprocess "*) command python "$@" --executor inline ;;
    *) command python "$@" ;;
  esac
}
"""
"""What a shell does before a block."""

PATIENCE = 240
"""Seconds that one block may take."""


class Readers:
    """A reader for each page, who types its blocks in order in a folder of its own, when they are asked for."""

    def __init__(self, base: Path, blocks: Sequence[Block]):
        self._base = base
        self._environment = base / "venv"
        self._server = started(self._environment, os.environ | VARIABLES)
        self._blocks = blocks
        self._folders: dict[str, Path] = {}
        self._outcomes: dict[str, str | None] = {}

    def tried(self, block: Block) -> str | None:
        """What went wrong with a block, None if nothing; those before it on its page are tried first."""
        for each in self._blocks:
            if each.page == block.page and each.line <= block.line and each.place not in self._outcomes:
                self._outcomes[each.place] = self._try(each)
        return self._outcomes[block.place]

    def close(self) -> None:
        """End the server, and whatever it has left running."""
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def _try(self, block: Block) -> str | None:
        folder = self._folder(block.page)
        for name in block.after:
            wrong = self._bring(name, folder)
            if wrong:
                return wrong
        ran = self._run(folder, block.language, block.shorter or block.program)
        if ran.returncode == block.code:
            return None
        failed = [place for place, wrong in self._outcomes.items() if wrong and place.startswith(f"{block.page}:")]
        hint = f"\n(before it on this page failed: {', '.join(failed)})" if failed else ""
        return (
            f"{block.place} ended with {ran.returncode} instead of {block.code}:\n{block.program}\n"
            f"{ran.stdout[-6000:]}{hint}\nA block is run in a folder with {', '.join(TEXTS)}; <!-- after: NAME --> "
            f"before it brings {', '.join(PREPARATIONS)} into runs/, <!-- needs: ... --> says that it cannot run "
            f"here, <!-- exits: N --> that it must fail; docs/README.md has all marks."
        )

    def _run(self, folder: Path, language: str, program: str) -> subprocess.CompletedProcess[str]:
        """Run a block's program in a reader's folder; stdout and stderr come together."""
        if language in {"python", "pycon"}:
            command = [str(self._environment / "bin" / "python"), "-c", program]
        else:
            command = ["bash", "-euo", "pipefail", "-c", FIRST + program]
        own = {
            "HOME": str(folder / "home"),
            "PATH": f"{self._environment}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VENV": str(self._environment),
            "PYTHON_EXEC": str(self._environment / "bin" / "python"),
        }
        return subprocess.run(
            command,
            cwd=folder,
            env=os.environ | VARIABLES | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )

    def _folder(self, page: str) -> Path:
        if page not in self._folders:
            self._folders[page] = self._base / page.replace("/", "-").removesuffix(".md")
            furnish(self._folders[page])
        return self._folders[page]

    def _bring(self, name: str, folder: Path) -> str | None:
        """Copy what a preparation has made; it is made once, for all pages. What went wrong, None if nothing."""
        world = self._base / f"after-{name.replace(' ', '-')}"
        if not world.exists():
            before, commands = PREPARATIONS[name]
            furnish(world)
            wrong = [self._bring(each, world) for each in before]
            ran = self._run(world, "sh", textwrap.dedent(commands))
            if any(wrong) or ran.returncode:
                self._outcomes[name] = "\n".join(map(str, [f"preparation {name!r}:", *wrong, ran.stdout[-6000:]]))
        if name not in self._outcomes:
            shutil.copytree(world / "runs", folder / "runs", dirs_exist_ok=True)
        return self._outcomes.get(name)


def furnish(folder: Path) -> None:
    """A reader's folder: the project, by links, and texts of the reader's own."""
    folder.mkdir()
    for path in sorted(ROOT.iterdir()):
        if path.name not in {"runs", ".git"}:
            _link(path, folder / path.name)
    for path in sorted(INSTEAD.rglob("*")):
        target = folder / path.relative_to(INSTEAD)
        if path.is_file():
            target.unlink()
            _link(path, target)
        elif target.is_symlink():
            target.unlink()
            target.mkdir()
            for entry in sorted((ROOT / path.relative_to(INSTEAD)).iterdir()):
                _link(entry, target / entry.name)
    _texts(folder)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _texts(folder: Path) -> None:
    """What TEXTS names: sentences in three languages, records of which one is no JSON and one a duplicate, chats."""
    draw = random.Random(1)

    def text(language: str) -> str:
        return " ".join(draw.choices(WORDS[language].split(), k=draw.randint(20, 60))) + ".\n"

    corpus = folder / "my-corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.txt").write_text(text("en"))
    (folder / "book.txt").write_text("\n".join(text("en") for _ in range(120)))
    lines = [
        json.dumps({"id": f"{language}/page-{number}.md", "lang": language, "text": text(language)})
        for number in range(60)
        for language in WORDS
    ]
    (folder / "tldr-train.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    records = [json.dumps({"text": text("en")}) for _ in range(30)]
    (folder / "more.jsonl.gz").write_bytes(gzip.compress("\n".join([*records, records[0], "not JSON"]).encode()))
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Write Python."},
                {"role": "user", "content": f"print {number}"},
                {"role": "assistant", "content": f"print({number})"},
            ]
        }
        for number in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
