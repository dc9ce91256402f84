"""The files that were found below one input, as columns: a path is an object only while it is looked at."""

from array import array
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files import COMPRESSIONS, KINDS, Kind
from pipeline.read.format_names import Format
from pipeline.settings import SPLIT_NAMES, SplitName
from pipeline.stamp import Stamp

_LEFT_OUT = 255
_AT_ONCE = 2**13


class ListedFiles:
    """Paths below an input, each with its stamp and what is known of it, in the order of their bytes once sorted.

    About 90 bytes a file and those of its path. Files are added first, then sorted, then looked at by number.
    """

    def __init__(self) -> None:
        self._paths, self._path_ends = bytearray(), array("q", [0])
        self._versions, self._version_ends = bytearray(), array("q", [0])
        self._times = array("q")
        """Size, mtime and ctime of each file."""
        self._order = np.zeros(0, np.uint32)
        self.kinds = np.zeros(0, np.uint8)
        """Of each file, a number in KINDS."""
        self._compressions = np.zeros(0, np.uint8)
        self._splits = np.zeros(0, np.uint8)

    def add(self, path: str, stamp: Stamp) -> None:
        """A file, before they are sorted."""
        self._paths += path.encode()
        self._path_ends.append(len(self._paths))
        self._versions += stamp.version.encode()
        self._version_ends.append(len(self._versions))
        self._times.extend((stamp.size, stamp.mtime_ns, stamp.changed_ns))

    def sort(self) -> None:
        """Bring what was added into order. Nothing is known of formats and splits after that."""
        count = len(self._path_ends) - 1
        paths = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), count, [None, pa.py_buffer(self._path_ends), pa.py_buffer(self._paths)]
        )
        self._order = pc.array_sort_indices(paths).to_numpy().astype(np.uint32)
        self.kinds, self._compressions, self._splits = (np.zeros(count, np.uint8) for _ in range(3))

    def __len__(self) -> int:
        """Of all files, those that are left out among them."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Number and path of each file that is not left out."""
        for begin in range(0, len(self), _AT_ONCE):
            for number in (np.flatnonzero(self.kinds[begin : begin + _AT_ONCE] != _LEFT_OUT) + begin).tolist():
                if self.kinds[number] != _LEFT_OUT:  # meanwhile
                    yield number, self.path(number)

    def path(self, number: int) -> str:
        return self._path(number).decode()

    def stamp(self, number: int) -> Stamp:
        at = int(self._order[number])
        size, mtime_ns, changed_ns = self._times[3 * at : 3 * at + 3]
        version = self._versions[self._version_ends[at] : self._version_ends[at + 1]]
        return Stamp(size, mtime_ns, version.decode(), changed_ns)

    def is_empty(self, number: int) -> bool:
        """Whether a file has no bytes."""
        return self._times[3 * int(self._order[number])] == 0

    def find(self, path: str) -> int | None:
        """The number of a file that is not left out."""
        wanted = path.encode()
        number = self._below(wanted)
        there = number < len(self) and self.kinds[number] != _LEFT_OUT and self._path(number) == wanted
        return number if there else None

    def inside(self, folder: str) -> Iterator[tuple[int, str]]:
        """Number and name of each file that lies in a folder itself, "." being the input, and is not left out."""
        prefix = b"" if folder == "." else f"{folder}/".encode()
        for number in range(self._below(prefix), self._below(prefix[:-1] + b"0") if prefix else len(self)):
            name = self._path(number)[len(prefix) :]
            if b"/" not in name and self.kinds[number] != _LEFT_OUT:
                yield number, name.decode()

    def leave_out(self, number: int) -> None:
        self.kinds[number] = _LEFT_OUT

    def format(self, number: int) -> Format:
        return Format(KINDS[int(self.kinds[number])], COMPRESSIONS[int(self._compressions[number])])

    def set_format(self, number: int, found: Format) -> None:
        self.kinds[number] = KINDS.index(found.kind)
        self._compressions[number] = COMPRESSIONS.index(found.compression)

    def kind(self, number: int) -> Kind:
        return KINDS[int(self.kinds[number])]

    def split(self, number: int) -> SplitName | None:
        """The split that the records of a file are in, where names say it."""
        found = int(self._splits[number])
        return SPLIT_NAMES[found - 1] if found else None

    def set_split(self, number: int, split: SplitName) -> None:
        self._splits[number] = 1 + SPLIT_NAMES.index(split)

    def _path(self, number: int) -> bytes:
        at = int(self._order[number])
        return bytes(self._paths[self._path_ends[at] : self._path_ends[at + 1]])

    def _below(self, path: bytes) -> int:
        """How many files have a path that comes before this one."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._path(middle) < path:
                low = middle + 1
            else:
                high = middle
        return low
