"""Who has a place in a store: one driver at a time, another when it has died, and nobody twice."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.errors import OutputError
from shared.io.stores import lease
from shared.io.stores.lease import LeaseLostError, StoreLease, leased
from shared.io.stores.store import Entry, LocalStore, Store, open_store

BEAT = 0.4


@pytest.fixture(params=[True, False], ids=["conditional", "plain"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.3)  # the clock of a file system is fine
    store = open_store(tmp_path)
    store.conditional = request.param
    return store


@pytest.fixture
def dead(store: Store) -> StoreLease:
    """The lease of a driver that gives no more signs of life."""
    return lease._acquire(store, BEAT)


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from shared.io.stores import lease, store;"
        f"place = store.open_store(Path({store.where!r})); place.conditional = {store.conditional};"
        "lease.SETTLE_SECONDS = 0.3; lease._acquire(place, 600.0); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], timeout=120, check=False)
    assert store.list("lease/")
    with leased(store, 600.0) as held:
        held.check()


def test_a_lease_that_somebody_removes_is_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with leased(store, BEAT):
        store.remove(store.list("lease/"))
        deadline = time.monotonic() + 60
        while "removed the lease" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_second_is_refused(store: Store) -> None:
    with leased(store, BEAT), pytest.raises(OutputError, match="process"), leased(store, BEAT):
        pass


def test_the_next_has_it_at_once(store: Store) -> None:
    with leased(store, BEAT):
        pass
    with leased(store, BEAT) as held:
        held.check()


def test_what_those_have_left_who_ended_does_not_add_up(store: Store) -> None:
    for _ in range(5):
        with leased(store, BEAT):
            assert len({key.split("/")[1] for key in store.list("lease/")}) <= 2
    with leased(store, BEAT) as held:
        held.poll()
        held.check()
        assert {key.split("/")[1] for key in store.list("lease/")} == {held._name}


def test_numbers_are_never_given_again(tmp_path: Path) -> None:
    store, names = open_store(tmp_path), list[str]()
    for _ in range(3):
        with leased(store, BEAT) as held:
            names.append(held._name)
    assert names == ["term-00000001", "term-00000002", "term-00000003"]


def test_what_one_has_left_who_died_lately_stays(store: Store, dead: StoreLease) -> None:
    with leased(store, BEAT):
        assert f"lease/{dead._name}/begin" in store.list("lease/")


def test_what_one_has_left_who_died_long_ago_goes(
    store: Store, dead: StoreLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "ABANDONED_SECONDS", 0.0)
    with leased(store, BEAT):
        assert f"lease/{dead._name}/begin" not in store.list("lease/")
        dead.poll()
        with pytest.raises(LeaseLostError, match="process"):
            dead.check()


class OtherClock(LocalStore):
    """A store whose clock differs from that of this machine."""

    seconds = 0.0

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        return ((key, Entry(found.bytes, found.modified + self.seconds)) for key, found in super().entries(prefix))


@pytest.fixture(params=[-3600.0, 3600.0], ids=["slow", "fast"])
def elsewhere(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Store:
    """One whose clock is an hour slow or fast."""
    other = OtherClock(tmp_path)
    other.seconds, other.conditional = request.param, store.conditional
    return other


def test_the_second_is_refused_whatever_the_clock_of_the_store_says(elsewhere: Store) -> None:
    with leased(elsewhere, BEAT), pytest.raises(OutputError, match="process"), leased(elsewhere, BEAT):
        pass


def test_the_dead_are_succeeded_and_learn_of_it_whatever_the_clock_of_the_store_says(elsewhere: Store) -> None:
    dead = lease._acquire(elsewhere, BEAT)
    with leased(elsewhere, BEAT) as held:
        dead.start()
        dead._thread.join(timeout=60)
        held.check()
        with pytest.raises(LeaseLostError, match="process"):
            dead.check()


def test_of_many_at_once_one_has_it(store: Store) -> None:
    barrier, held = threading.Barrier(3), threading.Barrier(3)

    def attempt(_: int) -> bool:
        barrier.wait()
        try:
            with leased(store, 5 * BEAT):  # a busy machine is silent for a while, and is not dead
                held.wait(timeout=60)
        except OutputError:
            held.wait(timeout=60)
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(attempt, range(3))) == 1


def test_who_comes_while_another_looks_round_is_not_succeeded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = lease._remove_abandoned, list[StoreLease]()

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.setattr(lease, "_remove_abandoned", real)
        first.append(lease._acquire(store, BEAT))

    monkeypatch.setattr(lease, "_remove_abandoned", meanwhile)
    with pytest.raises(OutputError, match="process"):
        lease._acquire(store, BEAT)
    first[0].poll()
    first[0].check()


def test_the_dead_are_succeeded(store: Store, dead: StoreLease) -> None:
    with leased(store, BEAT) as held:
        held.check()


def test_who_was_succeeded_learns_of_it(store: Store, dead: StoreLease) -> None:
    with leased(store, BEAT):
        dead.start()
        dead._thread.join(timeout=60)  # it ends when there is nothing to keep any more
        with pytest.raises(LeaseLostError, match="process"):
            dead.check()


def test_who_was_succeeded_does_not_disturb_the_successor(store: Store, dead: StoreLease) -> None:
    with leased(store, BEAT) as held:
        dead.start()
        time.sleep(4 * BEAT)
        held.poll()
        held.check()


def test_a_silent_one_that_nobody_succeeded_keeps_it(store: Store, dead: StoreLease) -> None:
    time.sleep(4 * BEAT)
    store.put(f"lease/{dead._name}/beat", b"again\n")
    dead.poll()
    dead.check()


@pytest.mark.parametrize("conditional", [True, False])
def test_on_a_real_store(conditional: bool, bucket: str) -> None:
    store = open_store(bucket)
    store.conditional = conditional
    with leased(store, 2.0), pytest.raises(OutputError, match="process"), leased(store, 2.0):
        pass
    with leased(store, 2.0) as held:
        held.check()
