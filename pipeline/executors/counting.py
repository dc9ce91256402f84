"""How many workers there are: by default, as a cluster has room for them, and as a cluster grows."""

from collections.abc import Iterable, Mapping

from pipeline.settings import Job


def default_workers(cpus: float, threads: int) -> int:
    """As many workers as have CPUs for their threads."""
    return max(int(cpus) // threads, 1)


def threads_of(job: Job) -> int:
    """Threads that each worker computes with."""
    return job.output.scoring.threads if job.output.scoring is not None else 1


def room(nodes: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many workers of ``cpus`` and ``gpus`` each these nodes can hold (totals of "CPU" and "GPU" by node)."""
    # The small addition: ten workers of 0.1 GPU do fit on one.
    return sum(
        min(int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0) / gpus + 1e-6) if gpus else 2**31) for node in nodes
    )


def workers_wanted(ready: int, unfinished: int, least: int, most: int) -> int:
    """How many workers to have or to ask the cluster for, with ``ready`` of them at work.

    Half of them at most are asked for in vain: that is what makes an autoscaling cluster grow, and what a node that
    joins later finds waiting. Never more than there are splits to do.
    """
    return min(max(least, 2 * ready), most, unfinished)


def device_of(job: Job) -> tuple[float, str]:
    """How many of what a worker takes where nothing is reserved for it."""
    scoring = job.output.scoring
    return (1.0, "GPU") if scoring is not None and scoring.device == "cuda" else (float(threads_of(job)), "CPU")
