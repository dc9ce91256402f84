"""Folders of tokenizers: of byte-pair tokens learned from a training split, or of those of another model."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.rewriting.dataset_rows import shard_documents
from pipeline.settings import PipelineError
from shared.bpe.encoder import import_tokenizers, pieces_of, stretches_of
from shared.bpe.folder import MADE_BY_FILE, TOKENIZER_FILE, TokenizerMaking, load_making
from shared.bpe.imported import read_tokenizer, write_imported
from shared.bpe.vocabulary import byte_symbols, load_subwords
from shared.errors import IdentityError
from shared.io.display.progress import ByteProgress
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import file_sha256
from shared.io.files.outputs import check_folder
from shared.io.files.scratch import scratch
from shared.io.stores.lease import leased
from shared.io.stores.store import Store, UrlStore, probe, publish_files
from shared.shards.dataset import Dataset
from shared.shards.open import find_datasets, open_dataset
from shared.vocabulary import OFFSET, VOCABULARY_SIZE

LONGEST = 64
"""Bytes of a token at most: as patches they must fit into packs."""
LEAST = 2
"""Times that a pair must occur to be merged."""


def train_tokenizer(path: Path, vocabulary: int, out: Path | str) -> tuple[TokenizerMaking, bool]:
    """A tokenizer of so many ids in the folder or at the URL ``out``, trained on the train split at a path.

    Returns what made it, and whether that was done now: False if the folder held it already. Raises PipelineError,
    DatasetError, and IdentityError when the folder holds another one.
    """
    if vocabulary <= VOCABULARY_SIZE:
        raise PipelineError(f"--vocabulary {vocabulary}: more than the {VOCABULARY_SIZE} ids of bytes alone")
    dataset = open_dataset(find_datasets(path)[0])
    if (split := dataset.manifest.identity.split) != "train":
        raise PipelineError(f"{dataset.folder} is a {split} split; a tokenizer is trained on train alone")

    def check(making: TokenizerMaking) -> None:
        if (making.trained_on, making.vocabulary) != (dataset.fingerprint, vocabulary):
            raise IdentityError(
                f"{out} holds {_described(making)}, wanted is one of {vocabulary} ids trained on "
                f"{dataset.fingerprint[:12]}; give a new --out"
            )

    return _written(out, check, lambda folder: write_tokenizer(dataset, vocabulary, folder))


def import_tokenizer(source: Path, out: Path | str) -> tuple[TokenizerMaking, bool]:
    """The tokenizer of another model, from its folder or tokenizer.json, in the folder or at the URL ``out``.

    Returns what made it, and whether that was done now: False if the folder held it already. Raises DatasetError with
    the reason when it cannot be taken over, TokenizersMissing, and IdentityError when the folder holds another one.
    """
    path, content = read_tokenizer(source)
    digest = sha256(content).hexdigest()

    def check(making: TokenizerMaking) -> None:
        if making.imported_from != digest:
            raise IdentityError(
                f"{out} holds {_described(making)}, wanted is that of {path} ({digest[:12]}); give a new --out"
            )

    return _written(out, check, lambda folder: write_imported(path, content, folder))


def _described(making: TokenizerMaking) -> str:
    origin = f"trained on {making.trained_on[:12]}" if making.trained_on else f"made from {making.imported_from[:12]}"
    return f"a tokenizer of {making.vocabulary} ids {origin}"


def _written(
    out: Path | str, check: Callable[[TokenizerMaking], None], write: Callable[[Path], TokenizerMaking]
) -> tuple[TokenizerMaking, bool]:
    """What is in the folder or at the URL, and whether it was written now.

    ``check`` raises IdentityError unless what is there is what is wanted.
    """
    if isinstance(out, str):
        return _on_store(UrlStore(out), check, write)
    check_folder(out, lambda folder: any((folder / name).exists() for name in (TOKENIZER_FILE, MADE_BY_FILE)))
    if not (out / MADE_BY_FILE).exists():
        return write(out), True
    making = load_making(out)
    check(making)
    return making, False


def _on_store(
    store: Store, check: Callable[[TokenizerMaking], None], write: Callable[[Path], TokenizerMaking]
) -> tuple[TokenizerMaking, bool]:
    """The same on a store: the tokenizer is made in a folder of this process, what made it is uploaded last."""
    probe(store)
    with leased(store), scratch("tokenizer") as folder:
        if there := [key for key, _ in store.products()]:
            if MADE_BY_FILE in there:
                for file in (TOKENIZER_FILE, MADE_BY_FILE):
                    store.download(file, folder / file)
                making = load_making(folder)
                check(making)
                return making, False
            if there != [TOKENIZER_FILE]:  # which an interrupted start has left
                raise PipelineError(f"--out {store.where} holds something else; give a new place")
        making = write(folder)
        for file in (TOKENIZER_FILE, MADE_BY_FILE):
            publish_files(store, folder, [folder / file])
        return making, True


def write_tokenizer(dataset: Dataset, vocabulary: int, out: Path) -> TokenizerMaking:
    """Learn a tokenizer of so many ids from a dataset and write its folder, what made it last.

    Raises PipelineError when the text does not give so many, DatasetError, TokenizersMissing.
    """
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=True
    )
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - OFFSET,
        min_frequency=LEAST,
        initial_alphabet=sorted(byte_symbols()),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(dataset), trainer)
    tokenizer.model = in_our_order(library, json.loads(tokenizer.to_str())["model"])
    tokenizer.decoder = library.decoders.ByteLevel()
    write_atomic(out / TOKENIZER_FILE, tokenizer.to_str(pretty=True) + "\n")
    found = load_subwords(out)
    if found.vocabulary < vocabulary:
        raise PipelineError(f"--vocabulary {vocabulary}: {dataset.folder} has pairs for {found.vocabulary} ids only")
    making = TokenizerMaking(
        trained_on=dataset.fingerprint,
        vocabulary=found.vocabulary,
        longest=int(found.lengths.max()),
        sha256=file_sha256(out / TOKENIZER_FILE),
        library=library.__version__,
    )
    write_atomic(out / MADE_BY_FILE, making.model_dump_json(indent=1) + "\n")
    return making


def in_our_order(library: Any, model: dict[str, Any]) -> Any:
    """The library's model with byte b at id b + 4 and what merges have given after them, in order of learning."""
    symbols = {symbol: number for number, symbol in enumerate(byte_symbols(), OFFSET)}
    merged = [token for token in sorted(model["vocab"], key=model["vocab"].__getitem__) if token not in symbols]
    vocabulary = symbols | {token: number for number, token in enumerate(merged, VOCABULARY_SIZE)}
    return library.models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]])


def _texts(dataset: Dataset) -> Iterator[str]:
    """The valid UTF-8 of a dataset, in its order, in memory for one document."""
    with ByteProgress("Reading", dataset.manifest.totals.bytes) as progress:
        for shard in range(dataset.shard_count):
            for record, rows in shard_documents(dataset, shard):
                text = b"".join(row.text for row, _ in rows)
                for piece in pieces_of(text):
                    yield from stretches_of(piece)[::2]
                progress.update(len(record.text))
