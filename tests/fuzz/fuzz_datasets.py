"""Datasets: valid ones, spoiled ones whose checksums fit, and what reads them."""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mutations as m
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_common import LARGEST, Action, Mutation, refit, run
from helpers import refitted
from helpers.dataset_examples import STATIC, document, in_two_parts, save_dataset
from helpers.model_folders import entropy_folder

from pipeline.__main__ import main as pipeline
from pipeline.counting import steps
from pipeline.settings import PipelineError
from shared.io.files.digests import file_sha256
from shared.patching.settings import PatchingSettings
from shared.shards.formats.arrow import new_file
from shared.shards.open import open_dataset


def dataset(format: str, sidecar: str = "none") -> Action:
    """A dataset in two shards, with a document in parts and an empty one."""

    def make(folder: Path) -> None:
        texts = [(f"d{n}", ("code", "prose")[n % 2], f"text {n}, ".encode() * (1 + n % 7)) for n in range(12)]
        rows = [document(*text, STATIC) for text in [*texts, ("empty", "prose", b"")]]
        parted = in_two_parts(document("parted", "code", b"in parts " * 20, STATIC))
        save_dataset(folder / "d", [rows[:7], [*rows[7:], *parted]], STATIC, format, sidecar)  # type: ignore[arg-type]
        other = [document("other", "prose", b"another dataset", STATIC)]
        save_dataset(folder / "e", [other], STATIC, format, sidecar)  # type: ignore[arg-type]

    return make


def fit(folder: Path) -> None:
    """Make sizes and checksums of the dataset those of its files, where that can be."""
    # Whatever a spoiled file makes the fitting itself stumble over: then it stays as it is.
    with suppress(Exception):
        refitted.fit(folder / "d", LARGEST)


def fitted(mutation: Mutation) -> Mutation:
    """The mutation, then checksums that fit."""

    def mutate(rng: random.Random, folder: Path) -> str:
        words = mutation(rng, folder)
        fit(folder)
        return words

    return mutate


def tables_fitted(mutation: Mutation) -> Mutation:
    """The mutation, then checksums of tables that fit."""

    def mutate(rng: random.Random, folder: Path) -> str:
        words = mutation(rng, folder)
        refitted.fit_tables(folder / "d")
        return words

    return mutate


def spoil_arrow(rng: random.Random, path: Path) -> str:
    """Change the table of an Arrow file, or how it is stored."""
    if rng.random() < 0.25:
        return m.spoil_bytes(rng, path)
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    for _ in range(rng.choice((1, 1, 2))):
        if table.num_columns:
            table = m.change_table(rng, table)
    options = pa.ipc.IpcWriteOptions(compression=rng.choice(("zstd", None, "lz4")))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=rng.choice((None, 1, 3))):
            writer.write_batch(batch)
    path.write_bytes(sink.getvalue())
    return f"{path.name}: table"


def swollen(rng: random.Random, path: Path) -> str:
    """A shard whose texts are far longer than they look: zeros compress well."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    texts = table.column("text").to_pylist()
    texts[rng.randrange(len(texts))] = bytes(rng.choice((50, 300)) << 20)
    number = table.schema.get_field_index("text")
    table = table.set_column(number, table.schema.field(number), pa.array(texts, pa.large_binary()))
    with new_file(str(path), table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return f"{path.name}: swollen"


def spoil_tar(rng: random.Random, path: Path) -> str:
    """Change members of a tar: their content, names or kinds."""
    if rng.random() < 0.35:
        return m.spoil_bytes(rng, path)
    sink = io.BytesIO()
    with tarfile.open(path) as source:
        files = [info for info in source.getmembers() if info.isfile()]
        members = [(info, source.extractfile(info).read()) for info in files]  # type: ignore[union-attr]
    chosen = rng.randrange(len(members))
    with tarfile.open(fileobj=sink, mode="w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as target:
        for number, (info, data) in enumerate(members):
            if number == chosen:
                what = rng.randrange(7)
                if what == 0:
                    continue
                if what == 1 and info.name.endswith(".json"):
                    data = m.dumped(m.change_json(rng, json.loads(data)))
                elif what == 2:
                    data = m.spoiled(rng, data)
                elif what == 3:
                    info.name = rng.choice(("../../up", "/abs", "a\x1b[2Jb.json", "x" * 90, info.name.upper(), "."))
                elif what == 4:
                    info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE))
                    info.linkname, data = "/etc/passwd", b""
                elif what == 5:
                    data = rng.choice((b"[" * 100_000 + b"]" * 100_000, b"", m.PICKLE, b"\xff\xfe"))
                else:
                    info.name = f"{info.name.split('.')[0]}.{rng.choice(('pkl', 'pyd', 'json', 'npy', ''))}"
            info.size = len(data)
            try:
                target.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue
    path.write_bytes(sink.getvalue())
    return f"{path.name}: member {chosen}"


def spoil_parquet(rng: random.Random, path: Path) -> str:
    """Change the table of a Parquet file, or its bytes."""
    if rng.random() < 0.3:
        return m.spoil_bytes(rng, path)
    table = pq.read_table(path)
    for _ in range(rng.choice((1, 1, 2))):
        if table.num_columns:
            table = m.change_table(rng, table)
    try:
        pq.write_table(table, path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return m.spoil_bytes(rng, path)
    return f"{path.name}: table"


def verify(folder: Path) -> int:
    return run(pipeline, "verify", "d")


def inspect(folder: Path) -> int:
    return run(pipeline, "inspect", "d", "--html", "page.html")


def recut(folder: Path) -> int:
    return run(pipeline, "recut", "d", "--rule", "space", "--workers", "1", "--out", "out")


def convert(folder: Path) -> int:
    return run(pipeline, "convert", "d", "--to", "parquet", "--workers", "1", "--out", "out")


def merge(folder: Path) -> int:
    return run(pipeline, "merge", "d", "e", "--workers", "1", "--out", "out")


def split(folder: Path) -> int:
    return run(pipeline, "split", "d", "--validation-fraction", "0.3", "--workers", "1", "--out", "out")


def preprocess_again(folder: Path) -> int:
    return run(pipeline, "preprocess", "d", "--rule", "space", "--executor", "inline", "--workers", "1", "--out", "out")


def read_rows(folder: Path) -> None:
    for _ in open_dataset(folder / "d").rows():
        pass


def read_packs(folder: Path, recut: PatchingSettings | None = None) -> None:
    """Training packs as a rank plans and reads them."""
    from trainer.data.packing.build import build_pack
    from trainer.data.packing.limits import pack_limits
    from trainer.data.packing.packs import Step
    from trainer.data.packing.planner import Planner
    from trainer.data.packing.slices import SliceReader
    from trainer.data.recut_lengths import RecutLengths
    from trainer.data.sampling.cursor import first_cursor
    from trainer.data.sampling.schedule import Mixing

    data = open_dataset(folder / "d")
    limits = pack_limits(data.manifest, 1024, None)
    reader = SliceReader(data, None if recut is None else RecutLengths(data, [recut]))
    planner = Planner(data, reader, limits, Mixing(), first_cursor(data, 0, 2))
    for _ in range(4):
        build_pack(planner.next_pack(), Step(0, 1, 1, None), reader)


def read_recut_packs(folder: Path) -> None:
    """The same with patches that the kept entropies give."""
    from helpers.dataset_examples import ENTROPY

    read_packs(folder, ENTROPY)


def made_export(folder: Path) -> None:
    """Our own Parquet files, for others to read."""
    dataset("arrow")(folder)
    assert run(pipeline, "convert", folder / "d", "--to", "parquet", "--workers", "1", "--out", folder / "p") == 0
    shutil.rmtree(folder / "d")


def convert_back(folder: Path) -> int:
    return run(pipeline, "convert", "p", "--to", "arrow", "--workers", "1", "--out", "out")


def made_parallel(folder: Path) -> None:
    """Texts in two subsets that say the same, as their metadata tells, with an entropy model."""
    pairs = [{"text": f"{word} {n} " * 20, "lang": word, "page": n} for n in range(12) for word in ("one", "zwei")]
    (folder / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
    entropy_folder(folder / "e")
    none = ("--rule", "none", "--executor", "inline", "--meta", "--subset-column", "lang", "--workers", "1")
    assert run(pipeline, "preprocess", folder / "c.jsonl", *none, "--out", folder / "out") == 0
    shutil.copytree(folder / "out" / "train", folder / "d")
    shutil.rmtree(folder / "out")


def calibrate_parallel(folder: Path) -> int:
    words = (
        "--entropy-model",
        "e",
        "--target",
        "3",
        "--parity",
        "page",
        "--parity-to",
        "one",
        "--out",
        "patching.json",
    )
    return run(pipeline, "calibrate", "d", *words)


def spoil_meta(rng: random.Random, path: Path) -> str:
    """Change the metadata of documents."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    values = table.column("meta").to_pylist()
    for _ in range(rng.choice((1, len(values)))):
        texts = (
            "",
            "[",
            "[" * 100_000,
            '{"page": NaN}',
            '{"page": 1e999}',
            '{"page": {}}',
            '{"page": "\\ud800"}',
            "null",
            None,
        )
        values[rng.randrange(len(values))] = rng.choice((*texts, '{"page": ' + "9" * 5000 + "}"))
    number = table.schema.get_field_index("meta")
    table = table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))
    with new_file(str(path), table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return f"{path.name}: meta"


def made_tokenizer(folder: Path) -> None:
    from helpers.subword_examples import train_tokenizer

    train_tokenizer(folder / "d", folder / "t", 300)


def cut_with_tokenizer(folder: Path) -> int:
    return run(pipeline, "recut", "d", "--rule", "bpe", "--tokenizer", "t", "--workers", "1", "--out", "out")


def fit_tokenizer(rng: random.Random, folder: Path) -> str:
    words = TOKENIZER(rng, folder)

    def change(values: Any) -> None:
        values["sha256"] = file_sha256(folder / "t" / "tokenizer.json")

    refit(folder / "t" / "identity.json", change)
    return words


def made_counts(folder: Path) -> None:
    """A dataset, and its table of contexts."""
    dataset("arrow")(folder)
    assert _count(folder) == 0


def half_counted(folder: Path) -> None:
    """The same, stopped before anything is added up."""
    dataset("arrow")(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "ranges_of", _stop)
        assert _count(folder) == 2


def _stop(*_: object) -> None:
    raise PipelineError("stopped")


def count_again(folder: Path) -> int:
    return _count(folder)


def _count(folder: Path) -> int:
    words = ("--least", "1", "--workers", "1", "--executor", "inline")
    return run(pipeline, "count", folder / "d", "--out", folder / "m", *words)


def made_targets(folder: Path) -> None:
    """A dataset and the targets of a teacher."""
    from helpers.target_examples import write_targets

    dataset("arrow")(folder)
    write_targets(folder / "t", open_dataset(folder / "d"))


def targets_fitted(mutation: Mutation, fit: Callable[[Path], None]) -> Mutation:
    """The mutation, then checksums that fit, where that can be."""

    def mutate(rng: random.Random, folder: Path) -> str:
        words = mutation(rng, folder)
        with suppress(Exception):
            fit(folder / "t")
        return words

    return mutate


def spoil_arrays(rng: random.Random, path: Path) -> str:
    """Put values that are none into the tensors of a file: infinities, NaN, numbers of no symbol."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 50))):
        place = begin + 2 * rng.randrange((len(data) - begin) // 2)
        data[place : place + 2] = rng.choice((b"\x00\x7c", b"\x00\x7e", b"\xff\x7f", b"\xff\xff", b"\x04\x01"))
    path.write_bytes(data)
    return f"{path.name}: values"


def verify_with_targets(folder: Path) -> int:
    return run(pipeline, "verify", "d", "--targets", "t")


def read_targets(folder: Path) -> None:
    """As loader workers do: of everything that is read it is true that a student can learn from it."""
    from shared.distillation.targets_folder import open_targets

    data = open_dataset(folder / "d")
    targets = open_targets(folder / "t", data)
    for shard in range(data.shard_count):
        for row in range(len(data.shard_index(shard))):
            symbols, _, _, _ = targets.row(shard, row)
            found, logs = targets.next_bytes(shard, row, 0, len(symbols))
            assert ((found >= 0) & (found < 260)).all()
            assert (logs <= 1e-3).all()


TOKENIZER = m.one_of([(3, m.at("t/tokenizer.json", m.spoil_json)), (2, m.at("t/identity.json", m.spoil_json))])
