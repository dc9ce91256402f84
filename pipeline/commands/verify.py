"""Read a dataset again and check everything that can be checked without a model.

Example:
  python -m pipeline verify runs/stdlib/patched/train
  python -m pipeline verify runs/stdlib/patched --targets runs/stdlib/targets
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.rewriting.dataset_rows import found_figures, recorded_figures, require_kept, stem, stored_rows
from pipeline.rewriting.parquet import SUFFIX
from pipeline.rewriting.parquet_export import Source, exports_at, figures
from pipeline.scoring.cut import cutter_of
from pipeline.settings import PipelineError
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import check_tokenizer
from shared.errors import DatasetError, ExitCode, PatchworkError, StorageError
from shared.io.display.log import LOG
from shared.io.display.progress import ByteProgress
from shared.io.display.quantities import counted
from shared.io.display.terminal import show_lines
from shared.io.files.scratch import scratch
from shared.io.stores.locations import location_of
from shared.io.stores.store import open_store
from shared.model_folder.identity import check_model
from shared.shards.cache import FileCache
from shared.shards.content import ShardContent, check_order, check_row, meta_problem
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.formats.sidecar import sidecar_name
from shared.shards.index import COLUMNS, DERIVED, IndexWriter, ShardIndex, index_name
from shared.shards.manifest import DatasetIdentity
from shared.shards.open import find_datasets, find_remote_datasets, open_dataset
from shared.shards.rows import rows_of
from shared.shards.runs import RUN_COLUMNS, runs_of_shard, shard_runs
from shared.shards.tables import table_file
from shared.shards.writer import SUFFIXES
from shared.vocabulary import VOCABULARY_SIZE, is_special

VERIFY_CACHE_BYTES = 2**32
"""Of a dataset behind a URL, on this machine."""
LISTED = 20
"""Problems of one shard that are listed; the others are counted. One flipped bit may put every row in the wrong."""

Progress = Callable[[int], object]
"""Called with the number of bytes of text that have been checked since the last call."""


@dataclass
class Verification:
    """What checking one dataset has found."""

    problems: list[str] = field(default_factory=list)
    """One line each; names the file."""
    documents: int = 0
    replayed: int = 0
    """Documents whose boundaries were found again and compared."""
    text_bytes: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        type=location_of,
        metavar="DATASET",
        help="folder or URL of a dataset, or the one above its train/ and validation/",
    )
    parser.add_argument(
        "--targets",
        type=location_of,
        metavar="FOLDER",
        help="check what pipeline targets made of the dataset, too: its folder or URL",
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify and report; 0 when everything holds, 1 when something does not.

    Raises DatasetError for what is no dataset, as every other command that reads one.
    """
    place: Path | str = arguments.dataset
    targets: Path | str | None = arguments.targets
    if isinstance(place, Path) and not place.exists():
        raise DatasetError(f"{place} does not exist; give the folder of a dataset, or the one above it")
    urls = find_remote_datasets(place) if isinstance(place, str) else []
    try:
        if isinstance(place, str):
            damaged = [_verify_remote(url, targets) for url in urls]
            return int(any(damaged))
        if exports := exports_at(place):
            if targets is not None:
                raise PipelineError(f"--targets: {place} is an export; targets are those of a dataset")
            problems = [_report(source.dataset, verify_export(source), True) for source in exports]
            return int(any(problems))
    except DatasetError as error:
        LOG.error("%s", error)
        return ExitCode.FAILED
    damaged = [_verify_at(folder, None, targets) for folder in find_datasets(place)]
    return int(any(damaged))


def _verify_remote(url: str, targets: Path | str | None) -> bool:
    """Read a dataset from its store, not from what this machine keeps of it; whether something does not hold."""
    with scratch("verify") as folder:
        return _verify_at(url, FileCache(folder, VERIFY_CACHE_BYTES), targets)


def _verify_at(place: Path | str, cache: FileCache | None, targets: Path | str | None) -> bool:
    try:
        dataset = open_dataset(place, cache)
    except DatasetError as error:
        show_lines(error)
        return True
    with ByteProgress(f"verify {str(place).rpartition('/')[2]}", dataset.manifest.totals.bytes) as shown:
        found = verify(dataset, shown.update)
    damaged = _report(dataset, found)
    if targets is None:
        return damaged
    if isinstance(targets, str) and cache is None:
        with scratch("verify") as folder:
            return _verify_targets(dataset, targets, FileCache(folder, VERIFY_CACHE_BYTES)) or damaged
    return _verify_targets(dataset, targets, cache) or damaged


def _verify_targets(dataset: Dataset, folder: Path | str, cache: FileCache | None) -> bool:
    """Check the targets of a dataset and report; whether something does not hold."""
    from pipeline.rewriting.verify_targets import verify_targets  # imports torch, which datasets are checked without

    count = dataset.totals.tokens
    with ByteProgress("verify targets", count) as shown:
        problems = list(verify_targets(folder, dataset, shown.update, cache))
    verdict = f"PROBLEMS: {len(problems)}" if problems else "no problem"
    show_lines(*problems, f"{folder}: {counted(count, 'target')} of {dataset.where}; {verdict}")
    return bool(problems)


def _report(dataset: Dataset, found: Verification, exported: bool = False) -> bool:
    """Print what came of checking; whether something does not hold."""
    show_lines(*found.problems, summary(dataset, found, exported))
    return bool(found.problems)


def verify_export(source: Source) -> Verification:
    """Check the Parquet files that were exported from a dataset: hashes, pages, rows and totals."""
    found = Verification(problems=list(_identity_problems(source.dataset)))
    if tables := source.dataset.damaged_tables():
        return Verification(problems=found.problems + tables)
    for shard, entry in enumerate(source.dataset.shards()):
        try:
            rows = chain.from_iterable(source.batches(shard))
            require_kept(source.dataset, shard, figures(_with_sound_meta(rows)))
        except DatasetError as error:
            found.problems.append(str(error))
        except ValueError as error:  # of a row
            found.problems.append(f"{source.dataset.folder / (stem(entry) + SUFFIX)}: {error}")
        found.documents += entry.totals.documents
        found.text_bytes += entry.totals.bytes
    return found


def _with_sound_meta(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows. Raises ValueError for one whose other columns are not a JSON object."""
    for number, row in enumerate(rows):
        if (wrong := meta_problem(row)) is not None:
            raise ValueError(f"row {number}: {wrong}")
        yield row


def summary(dataset: Dataset, found: Verification, exported: bool = False) -> str:
    """One line: what was checked, and whether it holds; ``exported``: as Parquet files, which have no boundaries."""
    files = counted(dataset.shard_count, "Parquet file" if exported else "shard")
    checked = f"{files}, {counted(found.documents, 'document')}, {found.text_bytes:,} bytes"
    if not exported:
        checked += f"; {_boundaries(dataset.manifest.identity, found)}"
    return f"{dataset.where}: {checked}; " + (f"PROBLEMS: {len(found.problems)}" if found.problems else "no problem")


def _boundaries(identity: DatasetIdentity, found: Verification) -> str:
    rule = identity.patching.rule
    if not identity.patching.patched:
        return "unpatched"
    if not identity.decides(identity.patching):
        return f"boundaries not found again: rule {rule!r} needs entropies that the sidecar does not hold"
    return f"boundaries of {counted(found.replayed, 'document')} found again"


def verify(dataset: Dataset, progress: Progress = lambda count: None) -> Verification:
    """Check files, indexes, rows, sidecars, boundaries and totals of a dataset.

    ``progress`` is called with the number of bytes read.
    """
    found = Verification()
    found.problems += _identity_problems(dataset)
    if tables := dataset.damaged_tables():
        return Verification(problems=found.problems + tables)
    found.problems += _unlisted_files(dataset)
    for shard in range(dataset.shard_count):
        problems = dataset.damaged_files(shard)
        # A damaged file is not looked into: what it holds would only repeat that it is damaged.
        if not problems:
            try:
                problems = list(_shard_problems(dataset, shard, found, progress))
            except DatasetError as error:
                problems = [str(error)]
        found.problems += problems[:LISTED]
        if len(problems) > LISTED:
            path = dataset.shard_path(shard)
            found.problems.append(f"{path}: {len(problems) - LISTED} more problems")
    return found


def _identity_problems(dataset: Dataset) -> Iterator[str]:
    """Whether the entropy model that the dataset carries is the one that made it (law 7)."""
    identity = dataset.manifest.identity
    if identity.patching.needs_entropy and identity.entropy_model is None:
        yield f"{dataset.where}: rule {identity.patching.rule!r} needs an entropy model, but the manifest names none"
    checks = []
    if identity.patching.tokenizer is not None:
        checks.append(partial(check_tokenizer, dataset.tokenizer, identity.patching.tokenizer))
    if identity.entropy_model is not None:
        checks.append(partial(check_model, dataset.entropy_model, identity.entropy_model.sha256))
    for check in checks:
        try:
            check()
        except PatchworkError as error:
            yield str(error)


def _unlisted_files(dataset: Dataset) -> Iterator[str]:
    """Shard files that the manifest does not know."""
    known = {name for name, _ in dataset.files()}
    endings = tuple(SUFFIXES.values())
    endings += tuple(map(index_name, endings)) + tuple(map(sidecar_name, endings))
    try:
        listed = sorted(key for key, _ in open_store(location_of(dataset.where)).entries())
    except StorageError:  # http:// has no lists
        return
    for name in listed:
        if "/" not in name and name.endswith(endings) and name not in known:
            yield f"{dataset.place(name)}: the manifest does not list it"


def _shard_problems(dataset: Dataset, shard: int, found: Verification, progress: Progress) -> Iterator[str]:
    """Everything about one shard whose files are whole. Raises DatasetError when it cannot be decoded."""
    entry = dataset.shard(shard)
    path = dataset.place(entry.name)
    index = dataset.stored_index(shard)
    batches = dataset.batch_count(shard)
    if batches != len(index.batch_starts) - 1:
        yield f"{path}: {batches} record batches, its index says {len(index.batch_starts) - 1}"
        return
    # As the writer made them: figures for the manifest and an index, from the rows that are there. Rows are read with
    # the methods that do not believe the stored index, which may be what is wrong.
    content, rebuilt, document = ShardContent(), IndexWriter(), Document(dataset)
    previous: Row | None = None
    yield from _offset_problems(dataset, shard, index)
    for batch, rows in enumerate(_batches_with_last(dataset, shard, batches)):
        for number, (row, last) in enumerate(rows, int(index.batch_starts[batch])):
            try:
                check_order(previous, row)
                check_row(row, last)
            except ValueError as error:
                yield f"{path}: batch {batch}: {error}"
                document.spoil()
            if (wrong := meta_problem(row)) is not None:
                yield f"{path}: row {number}: {wrong}"
            previous = row
            for problem in document.add(row, last):
                yield f"{path}: batch {batch}: {problem}"
            found.documents += last
            found.text_bytes += len(row.text)
            progress(len(row.text))
        start, stop = (int(bound) for bound in index.batch_starts[batch : batch + 2])
        if len(rows) != stop - start:
            yield f"{path}: batch {batch} has {len(rows)} rows, its index says {stop - start}"
            return
        columns = rows_of(rows)
        content.add(columns)
        rebuilt.add_batch(columns, index.offset[start:stop].tolist())
    found.replayed += document.replayed

    for column, place in _differing_columns(rebuilt.index(), index):
        yield f"{dataset.place(index_name(entry.name))}: column {column!r} is not what row {place} of the shard says"
    yield from _run_problems(dataset, shard, rebuilt.index())
    counted_figures = found_figures(content)
    for key, recorded in recorded_figures(dataset, shard).items():
        if (value := counted_figures[key]) != recorded:
            yield f"{path}: {key} is {_short(value)}, its table says {_short(recorded)}"


def _run_problems(dataset: Dataset, shard: int, index: ShardIndex) -> Iterator[str]:
    """Whether the table of runs says of a shard what its rows do."""
    table, found = dataset.place(table_file("runs")), shard_runs(index, shard)
    for code, name in enumerate(dataset.subset_names):
        stored, rows = runs_of_shard(dataset.runs(code), shard), found.get(name)
        for column in RUN_COLUMNS:
            own = getattr(stored, column)
            if not np.array_equal(own, own[:0] if rows is None else getattr(rows, column)):
                yield f"{table}: {column} of subset {name!r} are not those of the rows of {dataset.shard(shard).name}"
                break


def _offset_problems(dataset: Dataset, shard: int, index: ShardIndex) -> Iterator[str]:
    """Offsets that the format of the shard does not have; those of a tar's members are compared as it is read."""
    path = dataset.place(index_name(dataset.shard(shard).name))
    if dataset.manifest.identity.format == "webdataset":
        if len(index) and index.offset[0]:
            yield f"{path}: row 0 has the offset {index.offset[0]}; the first member of a tar is at 0"
        return
    for row in np.flatnonzero(index.offset != -1)[:1].tolist():
        yield f"{path}: row {row} has the offset {index.offset[row]}; rows of Arrow shards have -1"


def _differing_columns(ours: ShardIndex, stored: ShardIndex) -> Iterator[tuple[str, int]]:
    """Columns on which two indexes of equal length differ, with the first such row."""
    agree = (ours.bytes == stored.bytes) & (ours.last == stored.last)
    for column in COLUMNS:
        one, two = getattr(ours, column), getattr(stored, column)
        if column == "subset":
            one, two = np.array(ours.subset_names)[one], np.array(stored.subset_names)[two]
        differing = one != two
        if column in DERIVED:  # in plain text they differ wherever bytes or last do: report the cause, not these
            differing &= agree
        if differing.any():
            yield column, int(np.argmax(differing))


def _batches_with_last(dataset: Dataset, shard: int, batches: int) -> Iterator[list[tuple[Row, bool]]]:
    """For each batch its rows with entropies, and whether their document ends there."""
    # One batch behind: only the first row of the next one says whether a document ended. Hence one round more.
    previous: list[Row] = []
    for batch in range(batches + 1):
        following = stored_rows(dataset, shard, batch) if batch < batches else []
        if previous:
            ends = [row.part == 0 for row in previous[1:]] + [not following or following[0].part == 0]
            yield list(zip(previous, ends))
        previous = following


class Document:
    """The document being read: its patch lengths are within the limits, and are those that the rule gives."""

    def __init__(self, dataset: Dataset):
        identity = dataset.manifest.identity
        self._patching = identity.patching
        self._replayable = identity.patching.patched and identity.decides(identity.patching)
        self._vocabulary_size = VOCABULARY_SIZE + len(identity.specials)
        self._spoiled = False
        self._encoder = SubwordEncoder(dataset.tokenizer) if self._patching.rule == "bpe" else None
        self._cutter = cutter_of(self._patching, self._encoder)
        self._stored = self._found = np.zeros(0, np.uint16)
        self._compared = 0
        """Tokens whose boundaries were found again."""
        self.replayed = 0

    def spoil(self) -> None:
        """Something is wrong with the document already; its boundaries would only say so again."""
        self._spoiled = True

    def add(self, row: Row, last: bool) -> Iterator[str]:
        """Take the next part and yield what is wrong with it."""
        name = f"document {row.id!r}" + (f" part {row.part}" if row.part or not last else "")
        lengths = row.patch_lengths
        if (lengths is not None) != self._patching.patched:
            yield f"{name} is {'un' if lengths is None else ''}patched, the rule is {self._patching.rule!r}"
            self._spoiled = True
        elif lengths is not None and len(lengths):
            yield from self._limits(name, row, lengths, last)
        if row.spans is not None and (largest := int(row.spans.specials.max())) >= self._vocabulary_size:
            yield f"{name}: special id {largest}; the manifest names those below {self._vocabulary_size}"
        if self._replayable and not self._spoiled:
            yield from self._replay(row, last)
        if last:
            self._spoiled = False

    def _limits(self, name: str, row: Row, lengths: np.ndarray, last: bool) -> Iterator[str]:
        """A special id ends its patch, whatever the minimum."""
        if (longest := int(lengths.max())) > self._patching.max_length:
            yield f"{name}: a patch of {longest} tokens, longer than max_length {self._patching.max_length}"
        # Two patches may be short: that of BOS, which stands alone, and the last one, which the document ends.
        inner = lengths[int(row.part == 0) : len(lengths) - int(last)]
        # Lengths that do not add up are reported elsewhere; their ends are not positions of tokens.
        if row.spans is not None and int(lengths.sum(dtype=np.int64)) == row.size + (row.part == 0) + last:
            inner = lengths[~is_special(row.tokens(last)[np.cumsum(lengths, dtype=np.int64) - 1])]
        if len(inner) and (shortest := int(inner.min())) < self._patching.min_length:
            yield f"{name}: a patch of {shortest} tokens, shorter than min_length {self._patching.min_length}"

    def _replay(self, row: Row, last: bool) -> Iterator[str]:
        """Find the boundaries of a part again; of its last patch it may only be known later where that ends."""
        if row.part == 0:
            self._cutter = cutter_of(self._patching.for_subset(row.subset), self._encoder)
            self._stored = self._found = np.zeros(0, np.uint16)
            self._compared = 0
        assert row.patch_lengths is not None
        found = self._cutter.add(row.tokens(last), row.entropies if self._patching.needs_entropy else None, last)
        # What one of the two has more than the other waits for the next part.
        stored, found = np.append(self._stored, row.patch_lengths), np.append(self._found, found)
        common = min(len(stored), len(found))
        differing = np.flatnonzero(stored[:common] != found[:common])
        if len(differing) or (last and len(stored) != len(found)):
            patch = int(differing[0]) if len(differing) else common
            position = self._compared + int(stored[:patch].sum(dtype=np.int64))
            yield f"document {row.id!r}: stored boundaries are not those of the rule, from token {position} on"
            self._spoiled = True
            return
        self._compared += int(stored[:common].sum(dtype=np.int64))
        self._stored, self._found = stored[common:], found[common:]
        self.replayed += last


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
