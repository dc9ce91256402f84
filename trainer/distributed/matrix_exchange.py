"""Whole matrices out of sharded ones: each is put together on one rank, worked on there, and sent back by rows.

Two exchanges a round, whatever the number of matrices. Shapes: A rows, B columns, R ranks that share the matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

ROUND_ELEMENTS = 1 << 26
"""Of the matrices that one rank puts together at a time: bounds memory, and gives small models a single round."""


@dataclass(frozen=True)
class Piece:
    """A matrix of its own within a sharded one: some of its rows."""

    source: int
    """Number of the sharded matrix."""
    rows: range
    whole: int
    """Rows of the sharded matrix."""
    width: int

    @property
    def elements(self) -> int:
        return len(self.rows) * self.width

    @property
    def cost(self) -> int:
        """Of products of the matrix with itself and with their result, in multiplications."""
        short, long = sorted((len(self.rows), self.width))
        return short * short * (2 * long + short)

    def held(self, rank: int, ranks: int) -> range:
        """The rows of the piece that a rank holds: each holds an equal run of the whole, the last ones less or none."""
        run = -(-self.whole // ranks)
        start, stop = max(self.rows.start, rank * run), min(self.rows.stop, (rank + 1) * run)
        return range(start, max(start, stop))

    def local(self, rank: int, ranks: int) -> slice:
        """The same, counted from the first row that the rank holds."""
        held, first = self.held(rank, ranks), rank * -(-self.whole // ranks)
        return slice(held.start - first, held.stop - first)


Round = list[list[Piece]]
"""The pieces of each rank."""


def share_out(pieces: Sequence[Piece], ranks: int) -> list[Round]:
    """Rounds in which every rank owns about as much work: the costliest piece first, to whoever has least so far."""
    work, load = [0] * ranks, [0] * ranks
    rounds: list[Round] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.cost, piece.source, piece.rows.start)):
        owner = work.index(min(work))
        number = load[owner] // ROUND_ELEMENTS
        work[owner] += piece.cost
        load[owner] += piece.elements
        while len(rounds) <= number:
            rounds.append([[] for _ in range(ranks)])
        rounds[number][owner].append(piece)
    return rounds


def on_owners(
    owned: Round,
    rank: int,
    group: dist.ProcessGroup | None,
    read: Callable[[Piece, slice], Tensor],
    work: Callable[[Tensor], Tensor],
) -> list[tuple[Piece, slice, Tensor]]:
    """One round: ``work`` of every whole piece, [A, B] -> [A, B], by its owner. All ranks of the group take part.

    Args:
        read: this rank's rows of a piece; the rows are counted from the first that the rank holds.

    Returns this rank's rows of each piece with where they are. The host waits for nothing: all sizes are known.
    """
    ranks = len(owned)
    if ranks == 1:
        return [(piece, piece.local(0, 1), work(read(piece, piece.local(0, 1)))) for piece in owned[0]]
    local = owned[rank]
    assert group is not None
    parts = [read(piece, piece.local(rank, ranks)).flatten() for pieces in owned for piece in pieces]
    send_counts = [sum(len(piece.held(rank, ranks)) * piece.width for piece in pieces) for pieces in owned]
    shares = [[len(piece.held(holder, ranks)) * piece.width for piece in local] for holder in range(ranks)]
    recv_counts = [sum(sizes) for sizes in shares]
    outgoing = torch.cat(parts)
    incoming = outgoing.new_empty(sum(recv_counts))
    dist.all_to_all_single(incoming, outgoing, recv_counts, send_counts, group=group)
    chunks = [part.split(sizes) for part, sizes in zip(incoming.split(recv_counts), shares)]
    wholes = [torch.cat([chunk[at] for chunk in chunks]).view(-1, piece.width) for at, piece in enumerate(local)]
    done = [work(whole).flatten().split([sizes[number] for sizes in shares]) for number, whole in enumerate(wholes)]
    answers = [answer[holder] for holder in range(ranks) for answer in done]
    incoming = torch.cat([outgoing.new_empty(0), *answers])  # a rank may own no piece of this round
    dist.all_to_all_single(outgoing, incoming, send_counts, recv_counts, group=group)
    pieces = [piece for pieces in owned for piece in pieces]
    back = outgoing.split([len(piece.held(rank, ranks)) * piece.width for piece in pieces])
    return [
        (piece, piece.local(rank, ranks), rows.view(-1, piece.width)) for piece, rows in zip(pieces, back, strict=True)
    ]
