"""Choosing the next token from logits."""

import torch
from torch import Tensor

from shared.vocabulary import BOE, BOS, RESERVED


def choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """A token id from logits [V] of one position: a byte or EOS, the other special ids are never written.

    Temperature 0 takes the likeliest; else draws from softmax(logits / temperature), of the ``top_k`` likeliest only.
    Drawn in fp64 on the CPU, so that a seed gives the same text on every device whose logits agree.
    """
    scores = logits.detach().to("cpu", torch.float64)
    scores[[BOE, BOS, RESERVED]] = -torch.inf
    if temperature == 0:
        return int(scores.argmax())
    if top_k is not None:
        scores[scores < scores.topk(min(top_k, len(scores))).values[-1]] = -torch.inf
    scores -= scores.max()  # before dividing, so that no temperature is too low
    return int(torch.multinomial(torch.softmax(scores / temperature, 0), 1, generator=generator))
