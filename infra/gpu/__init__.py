"""The rows of `python -m infra.gpu_check`: what they are called, and how long each may take. Free of torch."""

from typing import NamedTuple


class Row(NamedTuple):
    """One thing to check, in a process of its own."""

    name: str
    module: str
    """Which has a function of the row's name, with underscores, that takes a `Bench`."""
    seconds: int
    """Its time limit, import of torch and start of the device included."""
    what: str


ROWS = (
    Row("parity", "infra.gpu.numerics", 60, "every kernel path against fp32 on the processor"),
    Row("packs", "infra.gpu.numerics", 25, "documents packed together against each alone"),
    Row("compile", "infra.gpu.numerics", 60, "compiled blocks, without compiling anew for other documents"),
    Row("scoring", "infra.gpu.speed", 40, "scoring with the entropy model of 100 M parameters"),
    Row("shards", "infra.gpu.runs", 25, "scored shards for other neighbours and other streams in flight"),
    Row("step-400m", "infra.gpu.speed", 60, "a training step at the 400M shape"),
    Row("step-1b", "infra.gpu.speed", 80, "a training step at the 1B shape"),
    Row("runs", "infra.gpu.runs", 60, "two trainings and a resume compared"),
    Row("float8", "infra.gpu.speed", 30, "float8 products of the global transformer"),
    Row("nccl", "infra.gpu.runs", 45, "as many ranks as there are GPUs"),
    Row("generation", "infra.gpu.speed", 40, "bytes written a second"),
)
"""In order of importance."""

SELF_TESTS = (
    Row("self-crash", "infra.gpu.self_tests", 20, "a row that raises after its first finding"),
    Row("self-kill", "infra.gpu.self_tests", 20, "a row whose process is killed"),
    Row("self-hang", "infra.gpu.self_tests", 1, "a row that never ends"),
    Row("self-memory", "infra.gpu.self_tests", 20, "a row that runs out of memory"),
)
"""What shows that a row that fails loses nothing; only on request."""

TOTAL_SECONDS = 535
"""For all rows together; what has not begun by then is left out, and says so."""
