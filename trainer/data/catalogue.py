"""The documents of a dataset as arrays, from its index alone: what planning reads.

D documents, N rows; a document is one row or several consecutive ones. Its inputs are BOS and its body: bytes, and the
special ids between them. Its targets are the body and EOS, but for what its spans leave out.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shared.errors import DatasetError
from trainer.data.source import Source


@dataclass(frozen=True)
class Catalogue:
    """Figures of every document and row, in the order of the dataset."""

    first_row: np.ndarray
    """int64 [D + 1], where each document's rows begin; the last is N."""
    subset: np.ndarray
    """int32 [D], code into subset_names."""
    inputs: np.ndarray
    """int64 [D], input tokens: body and BOS."""
    targets: np.ndarray
    """int64 [D], tokens that are targets."""
    text: np.ndarray
    """int64 [D], bytes of text."""
    target_bytes: np.ndarray
    """int64 [D], bytes of text that are targets."""
    patches: np.ndarray
    """int64 [D], patches of the inputs: that of BOS included, one of EOS alone not; 0 when unpatched."""
    eos_alone: np.ndarray
    """bool [D], whether the last patch is EOS alone, which makes no patch of the inputs; False when unpatched."""
    batch: np.ndarray
    """int64 [D], number in the whole dataset of the record batch that holds the first row."""
    row_inputs: np.ndarray
    """int64 [N], input tokens of each row: its body, and BOS in the first row of a document."""
    row_start: np.ndarray
    """int64 [N], inputs of the document before each row."""
    row_patches: np.ndarray
    """int32 [N], patches of each row as they are stored, one of EOS alone included; 0 when unpatched."""
    row_first_patch: np.ndarray
    """int64 [N], patches of the document before each row."""
    row_last: np.ndarray
    """bool [N], whether the document ends in this row."""
    row_place: np.ndarray
    """int32 [N, 3]: shard, batch in the shard, row in the batch."""
    subset_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def plain(self) -> np.ndarray:
        """bool [D]: no special ids between the bytes, and everything is a target."""
        return np.asarray((self.inputs == self.text + 1) & (self.targets == self.inputs))

    def bytes_of_subset(self) -> np.ndarray:
        """int64 [subsets] of text."""
        return np.bincount(self.subset, self.text, len(self.subset_names)).astype(np.int64)

    def targets_of_subset(self) -> np.ndarray:
        """int64 [subsets]: what one pass over each learns."""
        return np.bincount(self.subset, self.targets, len(self.subset_names)).astype(np.int64)


def catalogue_of(dataset: Source) -> Catalogue:
    """Read the documents of a dataset from its index. Raises DatasetError when it is damaged or holds none."""
    index = dataset.index
    starts = np.flatnonzero(index.part == 0)
    if len(starts) == 0:
        raise DatasetError(
            f"{dataset.where} holds no documents: training needs some in train and in validation; preprocess more, "
            "with another --validation-fraction, or cut long texts with --document-bytes"
        )
    ends = np.append(starts[1:], len(index))
    if starts[0] != 0 or not np.array_equal(np.flatnonzero(index.last), ends - 1):
        raise DatasetError(f"{dataset.where}: the index does not list the parts of a document in a row")
    row_inputs = index.tokens + (index.part == 0)
    eos_alone = index.last & (index.last_patch == 1)
    batch = np.repeat(np.arange(len(index.batch_starts) - 1), np.diff(index.batch_starts))
    return Catalogue(
        first_row=np.append(starts, len(index)).astype(np.int64),
        subset=index.subset[starts],
        inputs=np.add.reduceat(row_inputs, starts),
        targets=np.add.reduceat(index.targets, starts),
        text=np.add.reduceat(index.bytes, starts),
        target_bytes=np.add.reduceat(index.target_bytes, starts),
        patches=np.add.reduceat(index.patches.astype(np.int64) - eos_alone, starts),
        eos_alone=eos_alone[ends - 1],
        batch=batch[starts],
        row_inputs=row_inputs,
        row_start=_before_in_document(row_inputs, starts),
        row_patches=index.patches,
        row_first_patch=_before_in_document(index.patches, starts),
        row_last=index.last,
        row_place=np.stack([index.shard, index.batch, index.row], axis=1),
        subset_names=dataset.subset_names,
    )


def _before_in_document(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64 [N]: the sum of the values of the rows before each row in its document; documents begin at rows [D]."""
    before = np.cumsum(values, dtype=np.int64) - values
    return np.asarray(before - np.repeat(before[starts], np.diff(starts, append=len(values))))
