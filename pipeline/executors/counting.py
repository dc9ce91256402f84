"""How many workers there are by default, and how often a split is tried."""

from pipeline.settings import Job

ATTEMPTS = 3
"""How often a split is given to a worker that then dies."""


def default_workers(cpus: float, threads: int) -> int:
    """As many workers as have CPUs for their threads."""
    return max(int(cpus) // threads, 1)


def threads_of(job: Job) -> int:
    """Threads that each worker computes with."""
    return job.output.scoring.threads if job.output.scoring is not None else 1
