"""A byte latent transformer to train, with the blocks of a token model in the middle.

MODEL is a folder of transformers: config.json and safetensors, one file or several. Taken are LlamaForCausalLM (Llama 2
and 3, SmolLM 1 and 2), MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Olmo2ForCausalLM, Olmo3ForCausalLM and
SmolLM3ForCausalLM. What the blocks here cannot compute is refused with the reason. MODEL may also be a model folder or
run of this trainer of kind flat, over subwords or bytes.

Example:
  python -m trainer byteify Llama-3.2-1B runs/byteified --recipe trainer/recipes/blt-1b.toml

Keys of the recipe can be given as --section.key value, too.
"""

import argparse
import tomllib
from pathlib import Path

from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder
from shared.stack_settings import StackSettings
from trainer.commands.running import opened_token_model

TAKES_OVERRIDES = True
SHOWN_WINDOWS = 8
"""Most windows that are listed one by one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of byteify."""
    parser.add_argument(
        "token_model",
        type=Path,
        metavar="MODEL",
        help="folder of a token model (config.json, safetensors); or model folder, run or checkpoint of kind flat",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write: a model folder, and recipe.toml to train it"
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="training recipe; its [model] gives the local models, its [model.global] is replaced by what MODEL has",
    )
    parser.add_argument(
        "--unscaled",
        action="store_true",
        help="take a model with scaled rotary positions as if they were not scaled; the only way for kinds of scaling "
        "other than linear, llama3 and yarn",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from shared.io.display.quantities import quantity
    from trainer.interchange.byteify import IMPORTED, byteify
    from trainer.provenance.identity import START_RECIPE

    places: tuple[tuple[str, str], ...] = (("--data.path", "DATA"), ("--run.out", "RUN"))
    line = Progress(silent=False, every_seconds=15.0)
    out = arguments.out
    with opened_token_model(arguments.token_model) as source:
        made = byteify(source, out, arguments.recipe, arguments.overrides, arguments.unscaled, line)
    own = f"{quantity(made.imported).rstrip()} parameters of {made.architecture}"
    show(f"{IMPORTED}: {'; '.join(part for part in (size(made.stack), unlike_llama(made.stack), own) if part)}")
    scaled = f"patch vectors times {made.scale:g} are as large as its embedding"
    show(f"new: {quantity(made.new).rstrip()} parameters of the local models and the n-gram tables; {scaled}")
    show(f"left out: {', '.join(made.left_out) or 'nothing'}")
    wanted = tomllib.loads((out / START_RECIPE).read_text()).get("distillation", {"probabilities": 0, "embedding": 0})
    if wanted.get("probabilities", 1) and "targets" not in wanted:
        places += (("--distillation.targets", "TARGETS"),)
    if wanted.get("embedding", 1) and "teacher" not in wanted:
        places += (("--distillation.teacher", str(arguments.token_model)),)
    missing = [f"{key} {value}" for key, value in places if key not in " ".join(arguments.overrides)]
    show(f"train it: {' '.join(['torchrun trainer/main.py', str(out / START_RECIPE), *missing])}")
    return 0


def size(stack: StackSettings) -> str:
    """How large a stack is, in words."""
    width = "" if stack.head_dim is None else f" of width {stack.head_dim}"
    heads = f"{stack.heads} heads{width}, {stack.key_value_heads} of keys and values"
    return f"{stack.layers} of width {stack.width}, {heads}"


def unlike_llama(stack: StackSettings) -> str:
    """What its blocks do unlike those of a Llama, in words; empty where there is nothing."""
    found = []
    if stack.norm == "after":
        found.append("norms after")
    if stack.qk_norm != "none":
        found.append(f"q/k norms ({stack.qk_norm})")
    if stack.biases:
        found.append(f"biases ({', '.join(stack.biases)})")
    if stack.windows:
        kinds = stack.layer_kinds
        if len(stack.windows) <= SHOWN_WINDOWS:
            found.append(f"windows {' '.join(map(str, stack.windows))}")
        else:
            with_window = sum(kind.window is not None for kind in kinds)
            found.append(f"windows {max(stack.windows)} in {with_window} of {len(kinds)} layers")
    if stack.rotated:
        without = sum(not kind.rotated for kind in stack.layer_kinds)
        found.append(f"{without} of {stack.layers} without rotary positions")
    if (scaling := stack.rope_scaling) is not None:
        found.append(f"{scaling.kind} x {scaling.factor:g}" + ("" if scaling.windowed else " (layers without window)"))
    return ", ".join(found)
