"""Rows that compare: every path that a GPU takes with fp32 on the processor, packs with single documents, compiled
blocks with plain ones.

Tolerances are multiples of a dtype's rounding, of the largest value that is compared: products of matrices here sum at
most 512 terms over five blocks.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from infra.gpu.bench import Bench
from infra.gpu.models import LENGTHS, OTHER_BLOCKS, gradients, logits_of, pack, small_blt, small_entropy_model, text
from shared.incremental import DecodingState
from shared.layers.batch import segments
from shared.models.blt import Blt
from shared.models.entropy_model import entropy
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings
from shared.vocabulary import document_tokens
from trainer.distributed.build import compile_blocks

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
MULTIPLE = {torch.float32: 1024, torch.bfloat16: 16}
"""Roundings that may add up: sums of hundreds of terms in another order in fp32; in bf16 terms are summed in fp32, and
what is rounded is each of some twenty activations on the way."""


def tolerance(dtype: torch.dtype) -> float:
    """Of the largest value."""
    return MULTIPLE[dtype] * ROUNDING[dtype]


def compare(bench: Bench, what: str, found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Report the largest difference relative to the largest value."""
    difference = float((found.float().cpu() - wanted.float().cpu()).abs().max() / wanted.float().abs().max())
    allowed = tolerance(dtype)
    ok = difference <= allowed  # false for NaN
    bench.found(what, f"{difference:.1e} of the largest, {allowed:.1e} allowed", ok, difference=difference)


def compare_gradients(
    bench: Bench, what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Report the parameter whose gradient differs most, by norms."""
    assert found.keys() == wanted.keys()
    apart = {
        name: float(torch.linalg.vector_norm(found[name] - wanted[name]) / torch.linalg.vector_norm(wanted[name]))
        for name in wanted
        if torch.linalg.vector_norm(wanted[name]) > 0
    }
    worst = max(apart, key=lambda name: float("inf") if np.isnan(apart[name]) else apart[name])
    allowed = 2 * tolerance(dtype)  # a pass back after a pass forward
    ok = apart[worst] <= allowed
    bench.found(what, f"{apart[worst]:.1e} in {worst}, {allowed:.1e} allowed", ok, difference=apart[worst])


def parity(bench: Bench) -> None:
    """Forward passes, gradients, carried scoring and growing documents, in fp32 and in bf16."""
    texts = [text(length, seed=length) for length in LENGTHS]
    batch = pack(texts, sum(LENGTHS) + 64, sum(LENGTHS))
    moved = batch.to(bench.device)
    models = {"": small_blt(), ", shared key heads": small_blt(2)}
    models |= {f", {name}": small_blt(blocks=changes) for name, changes in OTHER_BLOCKS.items()}
    for kind, here in models.items():
        with torch.no_grad():
            wanted = logits_of(here, batch)
        of_here = gradients(here, batch)
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{str(dtype).removeprefix('torch.')}{kind}"
            there = copy.deepcopy(here).to(bench.device, dtype)
            with torch.no_grad():
                compare(bench, f"forward, {name}", logits_of(there, moved), wanted, dtype)
            compare_gradients(bench, f"gradients, {name}", gradients(there, moved), of_here, dtype)
    scoring_parity(bench, texts)
    for blocks in (None, *OTHER_BLOCKS):
        growing_parity(bench, blocks)


def scoring_parity(bench: Bench, texts: list[bytes]) -> None:
    """Entropies of streams that cut documents, also with contexts that close at newlines."""
    documents = [document_tokens(each) for each in texts]
    for reset in (False, True):
        model = small_entropy_model(reset)
        wanted = np.concatenate(list(Scorer(model, 2048).score(documents)))
        for dtype in ("float32", "bfloat16"):
            found = np.concatenate(list(Scorer(model, 256, dtype, bench.device).score(documents)))
            what = f"carried scoring, {dtype}{', newline reset' if reset else ''}"
            compare(bench, what, torch.from_numpy(found), torch.from_numpy(wanted), getattr(torch, dtype))


def growing_parity(bench: Bench, blocks: str | None) -> None:
    """Documents that grow against the same model over the whole document, with other global blocks if any are named."""
    changes = None if blocks is None else OTHER_BLOCKS[blocks]
    model, entropy_model = (
        small_blt(blocks=changes).to(bench.device).eval(),
        small_entropy_model().to(bench.device).eval(),
    )
    tokens = document_tokens(text(300, seed=1))
    ids = torch.from_numpy(tokens[:-1].astype(np.int64)).to(bench.device)
    with torch.inference_mode():
        nats = np.sort(entropy(entropy_model(ids, segments([len(ids)]).to(bench.device))).cpu().numpy())
    rule = PatchingSettings(rule="entropy", theta=float(nats[240] + nats[241]) / 2, max_length=16)
    grown = DecodingState(copy.deepcopy(model), rule, entropy_model)
    starts, _ = grown.read(tokens[:-1])
    for dtype in (torch.float32, torch.bfloat16):
        # Both follow the fp32 boundaries, so that only arithmetic differs.
        documents = DecodingState(copy.deepcopy(model).to(dtype), rule, entropy_model)
        found = []
        for piece in ids.split(7):
            found.append(documents.advance(piece[None]).logits[0])
            documents.accept([len(piece)])
        wanted = whole_logits(model, ids, starts)
        name = str(dtype).removeprefix("torch.")
        name += "" if blocks is None else f", {blocks}"
        compare(bench, f"growing documents, {name}", torch.cat(found), wanted, dtype)


def whole_logits(model: Blt, ids: Tensor, starts: np.ndarray) -> Tensor:
    """Logits of one document whose token i + 1 begins a patch where ``starts`` (bool [N]) says so at i."""
    begins = np.concatenate([[True], starts])
    owner = np.cumsum(begins) - 1
    device = ids.device
    count = int(owner[-1]) + 1
    of_token, reads = (torch.from_numpy(x.astype(np.int64)).to(device) for x in (owner[:-1], owner[1:] - 1))
    from shared.layers.batch import Patches

    patches = Patches(of_token, reads, segments([count]).to(device))
    with torch.inference_mode():
        logits: Tensor = model(ids, segments([len(ids)]).to(device), patches)
        return logits


def packs(bench: Bench) -> None:
    """Loss and gradients of documents side by side against the sum over each alone."""
    texts = [text(length, seed=length) for length in LENGTHS]
    together, alone = pack(texts).to(bench.device), [pack([each]).to(bench.device) for each in texts]
    for dtype in (torch.float32, torch.bfloat16):
        model = small_blt(2).to(bench.device, dtype)
        name = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            separate = torch.cat([logits_of(model, each) for each in alone])
            compare(bench, f"logits, {name}", logits_of(model, together), separate, dtype)
        sums: dict[str, Tensor] = {}
        total = sum(len(each.labels) for each in alone)
        for each in alone:
            for parameter, gradient in gradients(model, each).items():
                sums[parameter] = sums.get(parameter, 0) + gradient * (len(each.labels) / total)
        compare_gradients(bench, f"gradients, {name}", gradients(model, together), sums, dtype)


def compile(bench: Bench) -> None:
    """Blocks compiled whole: equal results, and nothing compiled anew for packs of other documents."""
    lengths = [LENGTHS, (1000, 2, 190), (20,) * 40, (1100,), (5, 5, 900, 5), (300, 300, 300)]
    tokens, patches = 1280, 1280
    batches = [
        pack([text(n, seed=n + i) for i, n in enumerate(each)], tokens, patches).to(bench.device) for each in lengths
    ]
    for dtype in (torch.bfloat16,) if bench.cuda else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        plain = small_blt(2).to(bench.device, dtype)
        compiled = copy.deepcopy(plain)
        compile_blocks(compiled, crosses=bench.cuda)
        for batch in batches[:3]:  # numbers of documents, and the longest, may widen what is compiled
            gradients(compiled, batch)
        torch.compiler.set_stance("fail_on_recompile")
        problem = None
        try:
            for batch in batches:
                found, wanted = gradients(compiled, batch), gradients(plain, batch)
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            problem = " ".join(str(error).split())[:100]
        torch.compiler.set_stance("default")
        bench.found(f"no recompiles, {name}", problem or f"{len(batches)} packs of other documents", problem is None)
        if problem is None:
            compare_gradients(bench, f"gradients, {name}", found, wanted, dtype)
