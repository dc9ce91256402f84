"""What every row has: the device, sizes, a clock that waits for the device, and where findings go."""

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]
OUT_OF_MEMORY = "out of memory"
SKIPPED = "skipped"


@dataclass
class Bench:
    """One row while it runs."""

    kind: str
    """"cuda" or "cpu"."""
    small: bool
    """Tiny models: to try the check itself, or what it checks on a machine without a GPU."""
    folder: Path
    """For files of this row alone; removed afterwards."""
    findings: TextIO

    def found(self, what: str, value: str, ok: bool | None = None, **figures: Any) -> None:
        """Report at once: a line of the table, and ``figures`` for the file. ``ok`` None: nothing to pass or fail."""
        status = {True: "ok", False: "FAILED", None: ""}[ok]
        self._write({"what": what, "found": value, "status": status, "figures": figures})

    def skipped(self, what: str, why: str) -> None:
        """Say what is not run here, and why."""
        self._write({"what": what, "found": why, "status": SKIPPED, "figures": {}})

    def out_of_memory(self, what: str, error: BaseException) -> None:
        """Say that the memory did not suffice for something."""
        words = (str(error) or type(error).__name__).splitlines()[0][:100]
        self._write({"what": what, "found": words, "status": OUT_OF_MEMORY, "figures": {}})

    def _write(self, finding: dict[str, Any]) -> None:
        self.findings.write(json.dumps(finding) + "\n")
        self.findings.flush()

    @property
    def cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device(self.kind)

    def seconds(self, work: Callable[[], object], rounds: int = 3, warm: int = 1) -> float:
        """The fastest of some rounds, each until the device is done; all rounds do the same."""
        import time

        import torch

        fastest = float("inf")
        for number in range(warm + rounds):
            began = time.perf_counter()
            work()
            if self.cuda:
                torch.cuda.synchronize(self.device)
            if number >= warm:
                fastest = min(fastest, time.perf_counter() - began)
        return fastest

    def share_of_peak(self, flops_per_second: float, dtype: str) -> str:
        """ ", 43% of the peak of H200"; empty where the peak is not known."""
        import torch

        from shared.layers.devices import find_device

        listed = find_device(torch.cuda.get_device_name(self.device)) if self.cuda else None
        return "" if listed is None else f", {flops_per_second / listed.peak(dtype):.1%} of the peak of {listed.name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on the device or on the host."""
    torch = sys.modules.get("torch")  # a row that has not imported it has not run out of a GPU's memory
    words = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "DefaultCPUAllocator")
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def main(name: str, module: str, device: str, small: bool) -> int:
    """Run one row; its findings are lines of JSON on stdout, all else goes to stderr."""
    findings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no finding
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, small, Path(folder), findings)
        try:
            getattr(importlib.import_module(module), name.replace("-", "_"))(bench)
        except Exception as error:
            if is_out_of_memory(error):
                bench.out_of_memory(name, error)
                return 0
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "small"))
