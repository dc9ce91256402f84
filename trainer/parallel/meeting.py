"""How the ranks of one attempt find each other where torchrun keeps its store from one attempt to the next.

torchrun starts all ranks again when one has died, and lets them meet in the store that the dead ones have met in: they
would find addresses of processes that are gone, and wait for them. (Its count of restarts does not tell attempts apart:
machines count their own.) So a new rank 0 names the attempt, and tells the name to each rank that it knows to be alive.
"""

import os
import secrets
import time
from datetime import timedelta

import torch.distributed as dist

POLL_SECONDS = 0.05


def attempt_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store of this attempt, this rank, and the number of ranks, as the launcher's variables say."""
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, size  # rank 0 has just made it
    return dist.PrefixStore(meet(dist.PrefixStore("meeting", store), rank, size), store), rank, size


def meet(store: dist.Store, rank: int, size: int) -> str:
    """A name for this attempt, which all of its ranks get, whatever earlier attempts have left in the store.

    Each rank says hello by a name of its own; the first rank welcomes whoever says hello, until as many as there are
    have heard of this very attempt. Those of earlier attempts cannot answer.
    """
    own = secrets.token_hex(8)
    store.set(f"hello/{rank}", own)
    if rank > 0:
        attempt = store.get(f"welcome/{own}").decode()
        store.add(f"arrived/{attempt}", 1)
        return attempt
    others = [f"hello/{number}" for number in range(1, size)]
    welcomed: set[bytes] = set()
    while others and store.add(f"arrived/{own}", 0) < size - 1:
        new = set(store.multi_get(others)) - welcomed
        for name in new:
            store.set(f"welcome/{name.decode()}", own)
        welcomed |= new
        if not new:
            time.sleep(POLL_SECONDS)
    return own
