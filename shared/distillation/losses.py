"""What a student of a teacher of tokens learns, beside the text itself.

Shapes: T bytes, P patches, K symbols that are kept of each target, V ids of the student, U of the teacher, D width of
the global transformer.
"""

import torch
from torch import Tensor

from shared.bpe.vocabulary import NO_TOKEN
from shared.layers.batch import TeacherTargets
from shared.vocabulary import IGNORED_LABEL

BEGINNING = NO_TOKEN - 1
"""Stands for the patch of BOS among tokens of patches."""


def divergence(logits: Tensor, labels: Tensor, targets: TeacherTargets) -> Tensor:
    """How far the student's next bytes are from the teacher's: the sum over T of KL(teacher || student), nats.

    Both give probabilities to the K symbols that were kept and to all others together, as one symbol more: nothing is
    known of how the teacher divides those. 0 where both agree.

    Args:
        logits: fp32 [T, V].
        labels: int64 [T]; where they are ignored, nothing is learned.
    """
    logs = logits.log_softmax(1)
    kept = logs.gather(1, targets.symbols)
    others = logs.scatter(1, targets.symbols, -torch.inf).logsumexp(1, keepdim=True)
    found, wanted = torch.cat([kept, others], 1), targets.logs
    terms = wanted.exp() * (wanted - found)
    # What has no probability adds nothing: 0 * -inf is none.
    terms = torch.where(torch.isneginf(wanted), 0.0, terms).sum(1)
    return torch.where(labels == IGNORED_LABEL, 0.0, terms).sum()


def embedding_error(inputs: Tensor, tokens: Tensor, embedding: Tensor, beginning: int) -> Tensor:
    """How far what the global transformer reads is from the teacher's embedding of the same token: a sum over patches.

    Each adds the mean square of its differences over that of the table: 0 where they are equal, about 1 for a vector of
    zeros.

    Args:
        inputs: [P, D].
        tokens: int64 [P], the teacher's token of each patch, BEGINNING, or NO_TOKEN, which adds nothing: a rule has
            made it, or a later slice of a document begins with it.
        embedding: [U, D], the teacher's table.
        beginning: the teacher's id of the beginning of a text; NO_TOKEN if it has none.
    """
    tokens = torch.where(tokens == BEGINNING, beginning, tokens)
    wanted = embedding[tokens.clamp(min=0)].float()
    squares = (inputs.float() - wanted).square().mean(1)
    return torch.where(tokens == NO_TOKEN, 0.0, squares).sum()
