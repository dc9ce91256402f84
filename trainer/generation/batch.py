"""Texts written side by side: rows join and leave between bytes, and share every product of matrices meanwhile."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.incremental import Advance, DecodingState
from shared.vocabulary import EOS, is_special
from trainer.generation.piece import Piece, Statistics, TokenScore
from trainer.generation.row import Row, choose_next


class Prompt:
    """A row whose prompt is being read, a part at a time, so that other rows can be written in between."""

    def __init__(self, row: Row, document: DecodingState, known: int = 0) -> None:
        """``document`` is one row that has read the first ``known`` tokens of the prompt, all but the last at most."""
        self.row, self.document = row, document
        self.read = known
        """Tokens read so far. The last one of a prompt is left to the batch: what follows it is the first choice."""
        self._parts = document.read_in_parts(row.tokens[known:-1])

    @property
    def done(self) -> bool:
        """Whether the row may join a batch."""
        return self.read == len(self.row.tokens) - 1

    def advance(self) -> list[Piece]:
        """Read the next part; the pieces of the tokens after those that it took."""
        found = next(self._parts)
        begin, settings = self.read + 1, self.row.settings
        self.read += found.starts.shape[1]
        scores = None
        if settings.logprobs is not None:
            tokens = self.row.tokens[begin : self.read + 1].astype(np.int64)
            scores = token_scores(found.logits[0].cpu().numpy(), tokens, [settings.logprobs] * len(tokens))
        entropies = None if found.entropies is None else found.entropies[0].tolist()
        return self.row.show_prompt(begin, found.starts[0].tolist(), entropies, scores)


def token_scores(logits: np.ndarray, tokens: Sequence[int] | np.ndarray, counts: Sequence[int]) -> list[TokenScore]:
    """What a model thought of tokens int [N]: from logits [N, V], with the ``counts`` likeliest ids of each."""
    scores = logits.astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    own = scores[np.arange(len(scores)), tokens].tolist()
    most = max(counts, default=0)
    # Of equally likely ids the lower ones, as choosing has it.
    best = (-scores).argsort(1, kind="stable")[:, :most] if most else np.zeros((len(scores), 0), np.int64)
    values = np.take_along_axis(scores, best, 1)
    return [
        TokenScore(logprob, tuple(zip(ids[:count].tolist(), nats[:count].tolist())))
        for logprob, ids, nats, count in zip(own, best, values, counts)
    ]


class Batch:
    """Rows that are written, each as if it were alone: the same logits up to rounding, and the same draws."""

    def __init__(self, documents: DecodingState) -> None:
        """``documents``: no rows, of the models that will be written with."""
        self.statistics = Statistics()
        self.rows: list[Row] = []
        self._documents = documents
        self._newest: list[int] = []
        """The last token of each row, which is there but not read yet."""
        self._before = 0
        """Patches that the global model has read in prompts."""

    def join(self, prompt: Prompt) -> None:
        """Write this row too from the next byte on."""
        assert prompt.done, "its prompt has been read"
        self._before += prompt.document.global_forwards
        self._documents.append(prompt.document)
        self.rows.append(prompt.row)
        self._newest.append(int(prompt.row.tokens[-1]))

    def remove(self, rows: Collection[Row]) -> None:
        """Write these no more."""
        kept = [place for place, row in enumerate(self.rows) if row not in rows]
        # The last ones move into the gaps: a row is copied for each that leaves, and no more.
        gaps = [place for place in range(len(kept)) if self.rows[place] in rows]
        order = list(range(len(kept)))
        for gap, place in zip(gaps, reversed(kept)):
            order[gap] = place
        self._documents.select(order)
        self.rows, self._newest = [self.rows[place] for place in order], [self._newest[place] for place in order]

    def step(self, most: int = 0) -> Iterator[tuple[Row, list[Piece]]]:
        """Write the next byte of every row, or several where ``most`` bytes are drafted ahead; rows that end leave.

        Yields each row with the pieces that are now certain to be shown. Raises LogitsError that names the rows for
        which nothing can be chosen; unless bytes were drafted, nothing has changed then, and the others can go on
        without them.
        """
        rows, documents = list(self.rows), self._documents
        device = next(documents.model.parameters()).device
        drafts = self._draft(most) if most else [[] for _ in rows]
        longest = max(map(len, drafts))
        read = [[token, *draft, *[EOS] * (longest - len(draft))] for token, draft in zip(self._newest, drafts)]
        found = documents.advance(torch.tensor(read, device=device))
        logits = found.logits.cpu().numpy()
        taken, checking = [0] * len(rows), list(range(len(rows)))
        shown: list[list[Piece]] = [[] for _ in rows]
        for ahead in range(longest + 1):
            if not checking:
                break
            some = [rows[place] for place in checking]
            tokens = choose_next(some, logits[checking, ahead])
            scores = self._scores(some, logits[checking, ahead], tokens)
            going = []
            for place, token, score in zip(checking, tokens, scores):
                assert token is not None, "only rows that go on are in a batch"
                shown[place] += self._push(rows[place], token, found, place, ahead, score)
                self._newest[place], taken[place] = token, ahead
                if rows[place].ended is None and ahead < len(drafts[place]) and token == drafts[place][ahead]:
                    going.append(place)
            checking = going
        documents.accept([1 + count for count in taken])
        self.statistics.drafted += sum(map(len, drafts))
        self.statistics.accepted += sum(taken)
        self.statistics.global_forwards = documents.global_forwards - self._before
        ended = [row for row in rows if row.ended is not None]
        if ended:
            self.remove(ended)
        return zip(rows, shown)

    def _push(
        self, row: Row, token: int, found: Advance, place: int, ahead: int, score: TokenScore | None
    ) -> list[Piece]:
        starts = bool(found.starts[place, ahead])
        entropy = None if found.entropies is None else float(found.entropies[place, ahead])
        self.statistics.bytes += not is_special(token)
        self.statistics.patches += starts
        return row.push(token, starts, entropy, score)

    @staticmethod
    def _scores(rows: Sequence[Row], logits: np.ndarray, tokens: Sequence[int | None]) -> list[TokenScore | None]:
        """Of the rows that ask for it."""
        scores: list[TokenScore | None] = [None] * len(rows)
        asking = [place for place, row in enumerate(rows) if row.settings.logprobs is not None]
        if asking:
            chosen = [tokens[place] or 0 for place in asking]
            counts = [rows[place].settings.logprobs or 0 for place in asking]
            for place, score in zip(asking, token_scores(logits[asking], chosen, counts)):
                scores[place] = score
        return scores

    def _draft(self, most: int) -> list[list[int]]:
        """For each row what the local models alone would write next: at most ``most`` bytes."""
        # The last byte of a row needs no draft: checking those before it yields it.
        count = min(most, max(row.left for row in self.rows) - 1)
        drafts: list[list[int]] = [[] for _ in self.rows]
        device = next(self._documents.model.parameters()).device

        def choose(logits: Tensor) -> Tensor:
            chosen = choose_next(self.rows, logits.cpu().numpy(), drafts)
            for draft, token in zip(drafts, chosen):
                draft += [] if token is None else [token]
            # A row that would have ended reads on, since the others do; nothing comes of it.
            return torch.tensor([[EOS if token is None else token] for token in chosen], device=device)

        if count > 0:
            self._documents.draft(torch.tensor(self._newest, device=device)[:, None], choose, count)
        return drafts
