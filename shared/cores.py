"""How many cores this process may use: its affinity, and the quota of its control group. Free of torch."""

import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores(groups: Path = GROUPS, own_group: Path = OWN_GROUP) -> int:
    """At least 1. A container with a quota of half a machine's time has half of its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(groups, own_group)]))


def _quotas(groups: Path, own_group: Path) -> list[int]:
    """Cores, rounded up, that each control group above this process may use; none where none is limited."""
    try:
        line = next(line for line in own_group.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group = groups / line.removeprefix("0::").lstrip("/")
    found = []
    for folder in (group, *group.parents):
        if folder != groups and groups not in folder.parents:
            break
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(-(-int(quota) // int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue  # not limited, or not a group of this kind
    return found
