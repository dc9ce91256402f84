"""Ranks meet those of their own attempt, whatever earlier attempts have left in the store."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from trainer.distributed.world import meet


def met(store: Store, size: int, order: list[int]) -> list[str]:
    """The names that ranks get, which arrive in ``order``."""
    names: dict[int, str] = {}
    threads = []
    for rank in order:
        threads.append(threading.Thread(target=lambda rank=rank: names.update({rank: meet(store, rank, size)})))
        threads[-1].start()
        threads[-1].join(0.02)
    for thread in threads:
        thread.join(20)
    return [names[rank] for rank in range(size)]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]])
def test_every_attempt_has_a_name_of_its_own_that_all_its_ranks_get(order: list[int]) -> None:
    store, seen = HashStore(), set()
    store.set_timeout(timedelta(seconds=20))
    for _ in range(3):
        names = met(store, 4, order)
        assert len(set(names)) == 1
        assert names[0] not in seen
        seen |= set(names)


@pytest.mark.parametrize("dead", [[0], [1], [0, 2], [1, 2, 3], [0, 1, 2]])
def test_ranks_that_died_before_all_had_met_are_not_taken_for_their_followers(dead: list[int]) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    for rank in dead:  # what is left of them: a greeting, and of the first one a welcome for whoever was there
        store.set(f"hello/{rank}", f"dead-{rank}")
        store.set(f"welcome/dead-{rank}", "dead-0")
    store.add("arrived/dead-0", 1)
    names = met(store, 4, [2, 1, 0, 3])
    assert len(set(names)) == 1
    assert names[0] != "dead-0"


def test_a_rank_alone_waits_for_nobody() -> None:
    assert meet(HashStore(), 0, 1)
