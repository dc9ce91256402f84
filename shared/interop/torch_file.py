"""A file of torch.save as a source of tensors: read without running what is in it, mapped where the format allows."""

from pathlib import Path

import torch
from torch import Tensor

from shared.interop.names import InteropError
from shared.json_reader import open_regular


class TorchFile:
    """The state in a torch file, which may be the value of its key 'model' or 'state_dict'."""

    def __init__(self, path: Path) -> None:
        """Raises InteropError when the file is damaged or holds anything but tensors and plain values."""
        self.path = path
        try:
            content = _load(path)
        except FileNotFoundError:
            raise InteropError(f"{path} is missing") from None
        except Exception as error:  # a damaged file can raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InteropError(f"{path} is not a torch file of plain tensors: {reason}") from None
        for key in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
                break
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
            for name, value in content.items()
        ):
            raise InteropError(f"{path} holds no state: names with their tensors are wanted")
        self._state: dict[str, Tensor] = content

    def names(self) -> list[str]:
        return sorted(self._state)

    def files(self) -> list[Path]:
        return [self.path]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._of(name).dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._of(name) if rows is None else self._of(name)[rows]

    def _of(self, name: str) -> Tensor:
        if name not in self._state:
            raise InteropError(f"{self.path}: tensor {name} is missing")
        return self._state[name]


def _load(path: Path) -> object:
    with open_regular(path) as file:
        zipped = file.read(2) == b"PK"  # files of before torch 1.6 cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
