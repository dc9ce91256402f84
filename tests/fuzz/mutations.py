"""Ways to spoil valid artefacts: JSON values, bytes, columns of Arrow tables, headers of safetensors, whole folders."""

import json
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

RAW = "\ue000raw:"
"""Begins a string that stands for a text which `json.dumps` would not write."""
NUMBERS: tuple[Any, ...] = (
    *(
        -1,
        0,
        1,
        2,
        255,
        256,
        -(2**31),
        2**31,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
        10**9,
        10**12,
        0.5,
        -0.0,
        1e308,
    ),
    *(f"{RAW}NaN", f"{RAW}Infinity", f"{RAW}-Infinity", f"{RAW}1e999", f"{RAW}{10**400}", f"{RAW}-{10**400}"),
)
STRINGS: tuple[Any, ...] = (
    *(
        "",
        " ",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\0b",
        "\x1b[31mred\x1b[0m",
        "\x9b2J",
        "a\u202eb",
        "a\nb",
        "é" * 40,
    ),
    *("x" * 10_000, "none", "null", "NaN", "1", "-1", "1e9", "__proto__", "<script>alert(1)</script>", "\ud800"),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"a": {"a": 1}}}, [0] * 1000)


DEEP = (b"[" * 100_000, b'{"a":' * 50_000, b"[" * 5000 + b"]" * 5000)


def value(rng: random.Random, like: Any = None) -> Any:
    """Something to put where ``like`` is: mostly of another size, at times of another type."""
    if isinstance(like, bool) or like is None or rng.random() < 0.3:
        return rng.choice((*NUMBERS, *STRINGS, *OTHERS))
    if isinstance(like, int | float):
        near = (like + 1, like - 1, -like, like * 2, like * 1000, like / 3, str(like))
        return rng.choice((*NUMBERS, *near))
    if isinstance(like, str):
        turned = (like[:-1], like + "x", like.upper(), like[::-1], like * 3)
        return rng.choice((*STRINGS, *turned))
    return rng.choice((*OTHERS, *NUMBERS))


def dumped(values: Any) -> bytes:
    """JSON with raw texts in their places."""
    text = json.dumps(values)
    for raw in {part.split('"', 1)[0] for part in text.split(json.dumps(RAW)[1:-1])[1:]}:
        text = text.replace(f'"{json.dumps(RAW)[1:-1]}{raw}"', raw)
    return text.encode(errors="surrogatepass")


def change_json(rng: random.Random, values: Any) -> Any:
    """One change at a random place of parsed JSON."""
    places = list(_places(values, ()))
    place = rng.choice(places) if places else ()
    return _changed(rng, values, place)


def _places(values: Any, path: tuple[Any, ...]) -> Any:
    items: Any = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _changed(rng: random.Random, values: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return value(rng, values)
    key, *rest = path
    values = dict(values) if isinstance(values, dict) else list(values)
    if rest:
        values[key] = _changed(rng, values[key], tuple(rest))
        return values
    what = rng.randrange(8)
    if what == 0:
        del values[key]
    elif what == 1 and isinstance(values, dict):
        values[rng.choice(STRINGS)] = values[key]
    elif what == 1:
        values.append(values[key])
    elif what == 2 and isinstance(values, list):
        values += [values[key]] * rng.choice((1, 2, 50))
    elif what == 3 and len(values) > 1:
        other = rng.choice(list(values)) if isinstance(values, dict) else rng.randrange(len(values))
        values[key], values[other] = values[other], values[key]
    else:
        values[key] = value(rng, values[key])
    return values


def spoil_json(rng: random.Random, path: Path) -> str:
    """Change a file of JSON, mostly one value of it, and at times the text itself."""
    data = path.read_bytes()
    what = rng.randrange(12)
    if what == 0:
        path.write_bytes(spoiled(rng, data))
        return f"{path.name}: bytes"
    if what == 1:
        deep = rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b"[" * 5000 + b"]" * 5000, b"", b"null", b"[]", b"{}", b"\xff")
        )
        path.write_bytes(deep)
        return f"{path.name}: {deep[:8]!r}... of {len(deep)} bytes"
    values = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        values = change_json(rng, values)
    path.write_bytes(dumped(values))
    return f"{path.name}: values"


def spoil_json_lines(rng: random.Random, path: Path) -> str:
    """Change a line of a file of JSON lines."""
    lines = path.read_bytes().splitlines()
    number = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines[number] = spoiled(rng, lines[number])
    else:
        lines[number] = dumped(change_json(rng, json.loads(lines[number])))
    if rng.random() < 0.1:
        lines[number : number + 1] = [lines[number]] * 3
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"{path.name}: line {number + 1}"


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """Other bytes: flipped, cut, repeated, or a number in them made large."""
    out = bytearray(data)
    if not out:
        return bytes(rng.choices(range(256), k=20))
    at = rng.randrange(len(out))
    what = rng.randrange(7)
    if what == 0:
        del out[at:]
    elif what == 1:
        out[at : at + rng.choice((1, 8, 100))] = b""
    elif what == 2:
        out[at:at] = bytes(rng.choices(range(256), k=rng.choice((1, 8, 100))))
    elif what == 3:
        number = rng.choice((0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
        packed = struct.pack("<Q", number)[: rng.choice((1, 2, 4, 8))]
        out[at : at + len(packed)] = packed
    elif what == 4:
        out += out[at:][:1000] * rng.choice((1, 3))
    else:
        for _ in range(rng.choice((1, 1, 4, 30))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def spoil_bytes(rng: random.Random, path: Path) -> str:
    """Change the bytes of a file."""
    path.write_bytes(spoiled(rng, path.read_bytes()))
    return f"{path.name}: bytes"


def change_table(rng: random.Random, table: pa.Table) -> pa.Table:
    """One change of a table: of values, of a column's type, of its columns or of its rows."""
    number = rng.randrange(table.num_columns)
    name, what = table.column_names[number], rng.randrange(9)
    column = table.column(number)
    if what == 0:
        return table.drop_columns([name])
    if what == 1:
        return table.append_column(rng.choice(STRINGS).replace("\ud800", "?"), column)
    if what == 2 and len(table):
        return table.slice(0, rng.randrange(len(table)))
    if what == 3:
        return pa.concat_tables([table, table])
    if what == 4 and len(table):
        return table.take(pa.array(rng.choices(range(len(table)), k=len(table))))
    if what == 5:
        return _replaced(table, number, pa.nulls(len(table), column.type))
    if what == 6:
        return _replaced(table, number, _other_type(rng, column))
    return _replaced(table, number, _other_values(rng, column))


def _replaced(table: pa.Table, number: int, column: Any) -> pa.Table:
    return table.set_column(number, table.column_names[number], column)


def _other_type(rng: random.Random, column: pa.ChunkedArray) -> Any:
    types = (pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.string(), pa.binary(), pa.large_binary(), pa.bool_())
    for kind in rng.sample(types, len(types)):
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return pa.nulls(len(column))


def _other_values(rng: random.Random, column: pa.ChunkedArray) -> Any:
    values, kind = column.to_pylist(), column.type
    if not values:
        return column
    for _ in range(rng.choice((1, 1, len(values)))):
        at = rng.randrange(len(values))
        if pa.types.is_integer(kind):
            top = 2 ** (kind.bit_width - (not str(kind).startswith("u"))) - 1
            values[at] = rng.choice(
                (
                    0,
                    1,
                    top,
                    -1 if str(kind)[0] != "u" else 0,
                    -top - 1 if str(kind)[0] != "u" else top,
                    None,
                    (values[at] or 0) // 2,
                )
            )
        elif pa.types.is_floating(kind):
            values[at] = rng.choice((float("nan"), float("inf"), -1.0, 1e30, None, 0.0))
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values[at] = rng.choice((b"", None, spoiled(rng, values[at] or b"x"), b"\0" * 1000))
        else:
            values[at] = rng.choice((None, *STRINGS[:-1]))
    try:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        array = pa.array(values, plain)
        return array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError, TypeError):
        return pa.nulls(len(values), kind)


def spoil_safetensors(rng: random.Random, path: Path) -> str:
    """Change the header of a file of tensors, or its bytes."""
    data = path.read_bytes()
    if rng.random() < 0.25:
        path.write_bytes(spoiled(rng, data[:2000]) + data[2000:])
        return f"{path.name}: bytes"
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in range(rng.choice((1, 1, 2))):
        header = change_json(rng, header)
    text = dumped(header)
    length = rng.choice((len(text), len(text), len(text), len(text), 2**60, 0, 2**63 - 1, 100_000_000))
    path.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    return f"{path.name}: header"


def spoil_folder(rng: random.Random, folder: Path, huge: int = 8 << 30) -> str:
    """Something about the files of a folder: one missing, one too many, one that is none.

    ``huge``: bytes of zeros that one may hold; a corpus of so many is honest work.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    name = path.relative_to(folder)
    what = rng.randrange(9)
    if what == 0:
        path.unlink()
        return f"{name}: missing"
    if what == 1:
        path.unlink()
        path.mkdir()
        return f"{name}: a folder"
    if what == 2:
        path.write_bytes(b"")
        return f"{name}: empty"
    if what == 3:
        with path.open("r+b") as file:
            file.truncate(huge)  # sparse: nothing is on the disk
        return f"{name}: {huge:,} bytes of zeros"
    if what == 4:
        (path.parent / rng.choice((".metadata", "x.pkl", "extra.safetensors", "model.bin", "__init__.py"))).write_bytes(
            PICKLE
        )
        return f"{name}: a pickle beside it"
    if what == 5:
        path.write_bytes(PICKLE)
        return f"{name}: a pickle"
    if what == 6:
        other = rng.choice(files)
        path.write_bytes(other.read_bytes())
        return f"{name}: holds {other.name}"
    if what == 7:
        path.write_bytes(os.urandom(0) + bytes(rng.choices(range(256), k=rng.choice((1, 100, 5000)))))
        return f"{name}: noise"
    path.write_bytes(spoiled(rng, path.read_bytes()))
    return f"{name}: bytes"


PICKLE = b"cos\nsystem\n(S'true'\ntR."
"""Would start a program if anything unpickled it."""

Mutation = Callable[[random.Random, Path], str]


def one_of(mutations: Sequence[tuple[int, Mutation]]) -> Mutation:
    """A mutation that is each of these with its weight."""
    weights, choices = [weight for weight, _ in mutations], [mutation for _, mutation in mutations]
    return lambda rng, folder: rng.choices(choices, weights)[0](rng, folder)


def at(name: str, mutation: Mutation) -> Mutation:
    """The mutation of one file below the folder, chosen by a pattern."""

    def mutate(rng: random.Random, folder: Path) -> str:
        return mutation(rng, rng.choice(sorted(folder.glob(name))))

    return mutate
