"""N-gram tables by rows: a step reads few of them, so nothing but those few travels, is a gradient or is updated.

The tables are most of a large model. FSDP would gather them whole on every rank and make a whole gradient; here each
rank owns a run of rows, asks the owners for the rows that its tokens read, and sends their gradients back once a step.
Beside the tables themselves no tensor of their size exists. They lie on the device that computes, or on the host, which
then has their gradients and optimizer too.

Shapes: T tokens, K rows a token reads, N rows of all tables, U distinct rows, D width, R ranks.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from shared.layers.batch import Segments
from shared.layers.ngrams import NgramEmbedding, ngram_rows


@dataclass(frozen=True)
class RowGradient:
    """The gradient of the rows that a step has read; that of every other row is nothing."""

    rows: Tensor
    """int64 [U], ascending: numbers among this rank's own rows."""
    values: Tensor
    """fp32 [U, D]."""


@dataclass(frozen=True)
class Exchange:
    """How many rows go between this rank and each of the R, when rows are fetched; gradients go the opposite way."""

    recv_counts: list[int]
    """Rows of each rank's run that this rank reads."""
    send_counts: list[int]
    """Rows of this rank's run that each rank reads."""
    group: dist.ProcessGroup

    @classmethod
    def of(cls, rows: Tensor, rows_per_rank: int, group: dist.ProcessGroup) -> "Exchange":
        """For reading distinct ``rows`` int64 [U], ascending, of a table cut into runs. All ranks take part.

        Waits for the device: what ranks send each other must be known on the host.
        """
        ends = torch.arange(1, group.size() + 1, device=rows.device) * rows_per_rank
        recv_counts = torch.searchsorted(rows, ends).diff(prepend=ends.new_zeros(1))
        send_counts = torch.empty_like(recv_counts)
        dist.all_to_all_single(send_counts, recv_counts, group=group)
        # Stacked, so that the host waits for the device once and not twice.
        received, sent = torch.stack([recv_counts, send_counts]).tolist()
        return cls(received, sent, group)

    def to_owners(self, values: Tensor) -> Tensor:
        """[U, ...] in the order of the rows -> what this rank gets, in the order of the ranks that sent it."""
        received = values.new_empty(sum(self.send_counts), *values.shape[1:])
        dist.all_to_all_single(received, values.contiguous(), self.send_counts, self.recv_counts, group=self.group)
        return received

    def from_owners(self, values: Tensor) -> Tensor:
        """The way back: values of the rows that `to_owners` sent, in the order of the rows."""
        received = values.new_empty(sum(self.recv_counts), *values.shape[1:])
        dist.all_to_all_single(received, values.contiguous(), self.recv_counts, self.send_counts, group=self.group)
        return received


class RowTables(NgramEmbedding):
    """N-gram tables that learn by rows. Equal to `NgramEmbedding` in names, values and sums.

    The weight gets no ``grad``: after the backward passes of a step `collect` makes ``gradient``.
    """

    def __init__(self, plain: NgramEmbedding, mesh: DeviceMesh, dtype: torch.dtype) -> None:
        """The tables of a model on the meta device, over the ranks of ``mesh`` [R]; rows are read in ``dtype``."""
        nn.Module.__init__(self)
        self.settings = plain.settings
        self.dtype = dtype
        self.mesh = mesh
        self.gradient: RowGradient | None = None
        self._reads: list[tuple[Tensor, Tensor]] = []
        assert plain.weight.is_meta
        rows = len(plain.weight)
        self._rows_per_rank = -(-rows // mesh.size())  # as DTensor cuts: equal runs, the last ones shorter or empty
        self._first_row = mesh.get_local_rank() * self._rows_per_rank
        self._group = mesh.get_group()
        local = plain.weight.detach()[self._first_row : self._first_row + self._rows_per_rank]
        self.weight = nn.Parameter(by_rows(local, mesh, plain.weight.shape))

    def forward(self, ids: Tensor, documents: Segments) -> Tensor:
        """ids int64 [T] -> [T, D]."""
        if not self.settings.sizes:
            return torch.zeros(len(ids), self.weight.shape[1], dtype=self.dtype, device=ids.device)
        rows = ngram_rows(ids, documents, self.settings)
        with torch.no_grad():
            sums = self._read(rows)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            # A leaf: the backward pass leaves each token's gradient there, which all rows it read share.
            self._reads.append((rows, sums.requires_grad_()))
        return sums

    def _read(self, rows: Tensor) -> Tensor:
        """Sums of rows: int64 [T, K] -> [T, D]. On one rank nothing waits; on several all take part, and wait twice."""
        weight = local_rows(self.weight)
        if self.mesh.size() > 1:
            distinct, places = torch.unique(rows, return_inverse=True)
            exchange = Exchange.of(distinct, self._rows_per_rank, self._group)
            requested = exchange.to_owners(distinct) - self._first_row
            weight = exchange.from_owners(self._fetch(requested))
        elif self.dtype == weight.dtype and rows.device == weight.device:
            places = rows
        else:  # not the whole table in another dtype or place for the sake of a few rows
            places = torch.arange(rows.numel(), device=rows.device).view_as(rows)
            weight = self._fetch(rows.flatten())
        return F.embedding_bag(places, weight, mode="sum")

    def _fetch(self, rows: Tensor) -> Tensor:
        """Some of this rank's own rows in the dtype that is computed in: int64 [n] -> [n, D], where ``rows`` lies."""
        weight = local_rows(self.weight)
        return weight.index_select(0, rows.to(weight.device)).to(self.dtype).to(rows.device)

    @torch.no_grad()
    def collect(self) -> None:
        """Make the gradient of all that was read since `forget`: the mean over ranks, as FSDP's. All ranks take part.

        Sums have a fixed order: packs as they came, tokens as they stand, ranks by number. Waits for the device, as
        the number of distinct rows is not known before: once on one rank, three times on several.
        """
        if not (self.settings.sizes and self.weight.requires_grad):
            return
        device = self._reads[0][0].device if self._reads else self.weight.device
        read = [torch.empty(0, self.settings.count, dtype=torch.int64, device=device)]
        gradients = [torch.empty(0, self.weight.shape[1], device=device)]
        for rows, sums in self._reads:
            if sums.grad is not None:
                read.append(rows)
                gradients.append(sums.grad.float())
        self._reads.clear()
        rows, values = by_row(torch.cat(read), torch.cat(gradients))
        if self.mesh.size() > 1:
            exchange = Exchange.of(rows, self._rows_per_rank, self._group)
            rows, values = exchange.to_owners(rows), exchange.to_owners(values)
            rows, values = by_row(rows[:, None] - self._first_row, values)
        values.div_(self.mesh.size())
        self.gradient = RowGradient(rows.to(self.weight.device), values.to(self.weight.device))

    def gradient_norm(self) -> Tensor:
        """Norm of the gradient over all ranks, a scalar on the device. All ranks take part."""
        if self.gradient is None:
            return torch.zeros((), device=self.weight.device)
        squares = torch.linalg.vector_norm(self.gradient.values).double().square()
        if self.mesh.size() > 1:
            dist.all_reduce(squares, group=self._group)
        norms: Tensor = squares.sqrt().float()
        return norms

    def forget(self) -> None:
        """Drop the gradient and what it would be made from."""
        self.gradient = None
        self._reads.clear()


def by_row(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum what belongs to one row: int64 [n, K], fp32 [n, D] -> distinct rows [U], ascending, and sums [U, D].

    Each of the K rows of line i gets values[i]. Lines are added in their order on every device.
    """
    ordered, order = torch.sort(rows.flatten(), stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    lines = order // rows.shape[1]
    return distinct, F.embedding_bag(lines, values, counts.cumsum(0) - counts, mode="sum")


def by_rows(local: Tensor, mesh: DeviceMesh, shape: torch.Size) -> DTensor:
    """A tensor of ``shape`` of which each rank holds its own run of rows."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def local_rows(tensor: Tensor) -> Tensor:
    """The rows that this rank holds; changing them changes the tensor."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def row_tables(model: nn.Module) -> list[RowTables]:
    """The tables of a model that learn by rows."""
    return [module for module in model.modules() if isinstance(module, RowTables)]
