"""Greedy generation against transformers' BltForCausalLM, equal weights: python tests/benchmarks/bench_generation.py

All write the same bytes after the same prompt, in turn, in one run: transformers with ``use_cache=False`` (its cache
gives wrong logits), ours from growing documents, plain and with drafts, and the class of an exported folder's own
module, which transformers runs. A model of 21 M parameters and an entropy model
of 3.3 M, random weights, a threshold that gives about 4.5 bytes a patch. Nothing is asserted about time.
"""

import argparse
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from training_example import BLT, BYTES_PER_PATCH, fresh_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.hf_states import to_hf_state

from shared.incremental import DecodingState
from shared.interop.custom_code.blt import PatchworkBltConfig, PatchworkBltForCausalLM
from shared.interop.hf_config import hf_config
from shared.model_settings import EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.patching import PatchingSettings
from shared.vocabulary import BOS, OFFSET, byte_tokens

ENTROPY_MODEL = EntropyModelSettings(width=256, layers=4, heads=4, feed_forward=704, window=512)
SPECIAL = list(range(OFFSET))
"""Never written: random weights like them as much as bytes."""
UNCUT = 65_535
PROMPTS = {256: 48, 2_048: 6}
"""Bytes of a prompt, and how many theirs writes after it."""
ROWS = 8
P = ParamSpec("P")
R = TypeVar("R")


class Ours:
    def __init__(self, model: Blt, entropy_model: EntropyModel) -> None:
        self.model, self.entropy_model = model, entropy_model
        self.theta = 0.0
        self.forwards = self.starts = 0
        self.drafted = self.accepted = 0

    def write(self, prompt: np.ndarray, count: int, draft: int = 0) -> tuple[list[int], np.ndarray]:
        """Tokens after the prompt, and the entropies of all of them."""
        rule = PatchingSettings(rule="entropy", theta=self.theta, max_length=UNCUT)
        documents = DecodingState(self.model, rule, self.entropy_model)
        _, before = documents.read(prompt[:-1])
        forwards = documents.global_forwards
        assert before is not None
        tokens, entropies = [int(prompt[-1])], [before]
        self.starts = self.drafted = self.accepted = 0
        while len(tokens) <= count:
            guess: list[int] = []

            def choose(logits: Tensor, guess: list[int] = guess) -> Tensor:
                guess.append(greedy(logits[0]))
                return torch.tensor([guess[-1:]])

            ahead = min(draft, count - len(tokens))
            if ahead > 0:
                documents.draft(torch.tensor([tokens[-1:]]), choose, ahead)
            found = documents.advance(torch.tensor([[tokens[-1], *guess]]))
            assert found.entropies is not None
            taken = 0
            while True:
                tokens.append(greedy(found.logits[0, taken]))
                if taken == len(guess) or tokens[-1] != guess[taken]:
                    break
                taken += 1
            documents.accept([1 + taken])
            entropies.append(found.entropies[0, : 1 + taken])
            self.starts += int(found.starts[0, : 1 + taken].sum())
            self.drafted += len(guess)
            self.accepted += taken
        self.forwards = documents.global_forwards - forwards
        return tokens[1:], np.concatenate(entropies)


def write_rows(ours: Ours, prompt: np.ndarray, count: int) -> None:
    """The same prompt in ROWS rows at once, greedily."""
    rule = PatchingSettings(rule="entropy", theta=ours.theta, max_length=UNCUT)
    documents = DecodingState(ours.model, rule, ours.entropy_model, rows=0)
    for _ in range(ROWS):
        part = DecodingState(ours.model, rule, ours.entropy_model)
        part.read(prompt[:-1])
        documents.append(part)
    ids = torch.full((ROWS, 1), int(prompt[-1]))
    for _ in range(count):
        found = documents.advance(ids)
        documents.accept([1] * ROWS)
        ids = OFFSET + found.logits[:, 0, OFFSET:].argmax(-1, keepdim=True)


def greedy(logits: Tensor) -> int:
    return OFFSET + int(logits[OFFSET:].argmax())


def counterpart(model: Blt, entropy_model: EntropyModel) -> Any:
    """Theirs, whose methods have no types."""
    from transformers import BltConfig, BltForCausalLM

    theirs: Any = BltForCausalLM(BltConfig(**hf_config(BLT, ENTROPY_MODEL, 0.0)))
    theirs.eval()
    theirs.load_state_dict(to_hf_state(model.state_dict(), BLT, entropy_model.state_dict(), ENTROPY_MODEL))
    theirs.generation_config.eos_token_id = None
    return theirs


def class_of_the_folder(model: Blt, entropy_model: EntropyModel) -> Any:
    """What an exported folder opens as, where its module may be run."""
    config = PatchworkBltConfig(
        **hf_config(BLT, ENTROPY_MODEL, 0.0),
        patchwork={
            "model": BLT.model_dump(mode="json", by_alias=True),
            "entropy_model": ENTROPY_MODEL.model_dump(mode="json"),
            "patching": PatchingSettings(rule="entropy", theta=0.0, max_length=UNCUT).model_dump(mode="json"),
        },
    )
    own: Any = PatchworkBltForCausalLM(config)
    own.eval()
    own.load_state_dict(to_hf_state(model.state_dict(), BLT, entropy_model.state_dict(), ENTROPY_MODEL))
    own.generation_config.eos_token_id = None
    return own


def seconds(run: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> tuple[float, R]:
    began = time.perf_counter()
    result = run(*arguments, **named)
    return time.perf_counter() - began, result


def compare(ours: Ours, theirs: Any, own: Any, prompt: np.ndarray, count: int, theirs_count: int, rounds: int) -> None:
    # The threshold that gives about the wanted patches where the models write, not in the prompt.
    ours.theta = 0.0
    for _ in range(6):
        _, entropies = ours.write(prompt, count)
        theta = float(np.quantile(entropies[len(prompt) - 1 :], 1 - 1 / BYTES_PER_PATCH))
        if count / max(ours.starts, 1) > BYTES_PER_PATCH - 1:
            break  # other patches, other text: near enough
        ours.theta = max(theta, ours.theta)
    theirs.config.patching_threshold = own.config.patching_threshold = ours.theta
    ids = torch.from_numpy(prompt.astype(np.int64))[None]

    def written_by(model: Any, length: int, rows: int, **options: Any) -> list[int]:
        with torch.inference_mode():
            out = model.generate(
                ids.repeat(rows, 1), max_new_tokens=length, do_sample=False, suppress_tokens=SPECIAL, **options
            )
        return [int(token) for token in out[0, ids.shape[1] :]]

    plain, drafted, peer, folder = [], [], [], []
    for _ in range(rounds):
        spent, (tokens, _) = seconds(ours.write, prompt, count)
        plain.append(count / spent)
        forwards, starts = ours.forwards, ours.starts
        spent, wanted = seconds(written_by, theirs, theirs_count, 1, use_cache=False)
        peer.append(theirs_count / spent)
        spent, by_folder = seconds(written_by, own, count, 1)
        folder.append(count / spent)
        spent, (guessed, _) = seconds(ours.write, prompt, count, 4)
        drafted.append(count / spent)
        assert guessed == tokens, "drafts changed what is written"
    spent, _ = seconds(write_rows, ours, prompt, count)
    spent_own, _ = seconds(written_by, own, count, ROWS)
    same, same_own = (sum(a == b for a, b in zip(tokens, others)) for others in (wanted, by_folder))
    best, median = max(plain) / max(peer), np.median(plain) / np.median(peer)
    print(
        f"  prompt of {len(prompt) - 1:,} bytes, then {count} bytes of {count / max(starts, 1):.1f} a patch\n"
        f"    ours           {max(plain):7.2f} bytes/s, {forwards} global forwards for {starts} patches\n"
        f"    transformers   {max(peer):7.2f} bytes/s ({theirs_count} bytes, {same} of them the same)\n"
        f"    ratio          {best:7.1f}x best, {median:.1f}x median of {len(plain)}\n"
        f"    folder's class {max(folder):7.2f} bytes/s ({same_own} of {count} the same), "
        f"{max(folder) / max(peer):.1f}x transformers; {ROWS} rows at once {ROWS * count / spent_own:.2f} bytes/s\n"
        f"    {ROWS} rows at once {ROWS * count / spent:6.2f} bytes/s in all, each with its prompt\n"
        f"    drafts of 4    {max(drafted):7.2f} bytes/s, {ours.accepted} of {ours.drafted} accepted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="each number in turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=128, help="to write")
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS), choices=list(PROMPTS), help="bytes")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, entropy_model = fresh_model().eval(), EntropyModel(ENTROPY_MODEL).eval()
    initialise(entropy_model, 1)
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()
    parameters = [sum(p.numel() for p in part.parameters()) for part in (model, entropy_model)]
    print(f"{parameters[0]:,} + {parameters[1]:,} parameters, fp32")
    ours, theirs = Ours(model, entropy_model), counterpart(model, entropy_model)
    own = class_of_the_folder(model, entropy_model)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread{'s' * (threads > 1)}")
        for length in arguments.prompts:
            prompt = np.concatenate([[BOS], byte_tokens(text[:length])]).astype(np.int16)
            compare(ours, theirs, own, prompt, arguments.bytes, min(PROMPTS[length], arguments.bytes), arguments.rounds)


if __name__ == "__main__":
    main()
