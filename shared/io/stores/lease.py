"""A lease on a place of a store: it keeps two drivers from doing the same work at once, where there are no locks.

Nothing that is written is safe because of it: a driver that was stopped may go on after another has taken over. It
saves work, no more. Each holder has a folder below lease/: `begin`, written once, names it; `beat` is written again
every few seconds, and `end` when it is done. A holder without a sign of life for three beats, by the clock of the
store, is dead; so is a process of this machine that is gone.

Where the store creates only what is absent, holders are numbered, each number is had by one, and the highest number has
the lease. Elsewhere they have random names, and of those alive the one that began first has it; they wait until the
store shows all that began when they did, for its clock has whole seconds.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from shared.errors import OutputError, StorageError
from shared.io.display.log import LOG
from shared.io.stores.store import CLOCKS, LEASES, PROBES, Entry, Store
from shared.settings import Settings

BEAT_SECONDS = 10.0
MISSED = 3
"""Beats after which a holder is dead."""
ABANDONED_SECONDS = 3600.0
"""After which what is there for a moment was left by a driver that was killed."""
MOST_REMOVED = 300
"""Of what earlier holders have left, at each start."""
SETTLE_SECONDS = 2.5
"""More than the clock of a store is coarse."""


class Owner(Settings):
    """What `begin` says of a holder."""

    process: int
    host: str
    machine: str
    """Boot of the kernel and namespace of process numbers: a process can be looked for where these are the same."""
    started: int
    """When the process began, in ticks since the boot: its number may be another's by now."""
    mark: str
    """Random: what this holder has written is told from what others have."""

    @classmethod
    def of_this_process(cls, mark: str) -> "Owner":
        pid = os.getpid()
        return cls(process=pid, host=socket.gethostname(), machine=_machine(), started=_start(pid), mark=mark)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def is_gone(self) -> bool:
        """Whether this was a process of this machine that has ended."""
        return self.machine == _machine() and _start(self.process) != self.started


def _machine() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # not told: like no other


def _start(process: int) -> int:
    """When a process began; 0 when there is none, or none that does more than wait to be buried."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state == "Z" else int(fields[18])


@dataclass(frozen=True)
class _Holder:
    """What a store shows of one that has, had or wants the lease."""

    name: str
    begun: float
    seen: float
    """Last sign of life, by the clock of the store."""
    ended: bool

    def alive(self, now: float, beat: float) -> bool:
        return not self.ended and now - self.seen <= MISSED * beat


class LeaseLostError(OutputError):
    """Another driver has taken over."""


class StoreLease:
    """The lease while it is held; a thread gives signs of life."""

    def __init__(self, store: Store, name: str, beat: float) -> None:
        self._store, self._name, self._beat = store, name, beat
        self._by: str | None = None
        self._seen = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    @property
    def held(self) -> bool:
        """Whether no other driver has taken over, as far as this one knows."""
        return self._by is None

    def check(self) -> None:
        """Raise LeaseLostError when another driver has taken over, as far as this one knows."""
        if not self.held:
            raise LeaseLostError(
                f"{self._store.where} was taken over by another run ({self._by}) while this one gave no sign of life"
            )

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Give it up."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StorageError, OSError):  # it ends by itself
            self._store.put(f"{LEASES}/{self._name}/end", b"ended\n")

    def _live(self) -> None:
        while not self._over.wait(self._beat):
            try:
                self._store.put(f"{LEASES}/{self._name}/beat", f"{time.time()}\n".encode())
                self.poll()
            except (StorageError, OSError) as error:
                LOG.warning("no sign of life could be given: %s", error)
            if self._by is not None:
                return

    def poll(self) -> None:
        """See whether another holder has come in the meantime; one that never was silent for long has its lease."""
        holders = {holder.name: holder for holder in _holders(self._store)}
        if (own := holders.pop(self._name, None)) is None:  # removed by a successor, if by a driver
            before, silent = self._seen, True
        else:
            before = self._seen or own.seen
            silent = own.seen - before > MISSED * self._beat
            self._seen = own.seen
        for other in holders.values():
            if other.name > self._name if self._store.conditional else silent and other.begun >= before:
                self._by = _called(self._store, other.name)
        if own is None and self._by is None:
            raise StorageError(f"{self._store.url(LEASES)}: somebody has removed the lease of this run")


@contextmanager
def leased(store: Store, beat: float = BEAT_SECONDS) -> Iterator[StoreLease]:
    """Hold the lease of a store that was probed. The one who had it before is given the time to show that it lives.

    Raises OutputError while another has it.
    """
    lease = _acquire(store, beat)
    try:
        lease.start()
        yield lease
    finally:
        lease.end()


def _acquire(store: Store, beat: float) -> StoreLease:
    mark = secrets.token_hex(8)
    owner = (Owner.of_this_process(mark).model_dump_json() + "\n").encode()
    first_seen: dict[str, float] = {}
    while True:
        now, holders = _clock(store, mark), _holders(store)
        living = [holder for holder in holders if holder.alive(now, beat)]
        for holder in living:
            if holder.seen > first_seen.setdefault(holder.name, holder.seen):
                raise _in_use(store, holder.name)
        if all(_is_gone(store, holder.name) for holder in living):
            break
        time.sleep(beat / 4)
    _remove_abandoned(store, now)
    if store.conditional:
        # Of those that were seen above: one who came since then has this number, and must not be succeeded.
        last = max((holder.name for holder in holders), default="term-00000000")
        name = f"term-{int(last.removeprefix('term-')) + 1:08d}"
        if not store.create(f"{LEASES}/{name}/begin", owner):
            raise _in_use(store, name)
        store.put(f"{LEASES}/{name}/beat", b"begun\n")
    else:
        name = mark
        store.put(f"{LEASES}/{name}/begin", owner)
        store.put(f"{LEASES}/{name}/beat", b"begun\n")
        time.sleep(SETTLE_SECONDS)
        now = _clock(store, mark)
        rivals = [holder for holder in _holders(store) if holder.alive(now, beat) and not _is_gone(store, holder.name)]
        winner = min(rivals, key=lambda holder: (holder.begun, holder.name))
        if winner.name != name:
            store.put(f"{LEASES}/{name}/end", b"ended\n")
            raise _in_use(store, winner.name)
    lease = StoreLease(store, name, beat)
    lease.poll()
    if lease.held:
        _remove_ended(store, name, now)
    return lease


def _clock(store: Store, mark: str) -> float:
    """What the store's clock says now."""
    key = f"{CLOCKS}/{mark}"
    store.put(key, b"now\n")
    now = store.list(f"{CLOCKS}/")[key].modified
    store.remove([key])
    return now


def _remove_abandoned(store: Store, now: float) -> None:
    """Remove what drivers that were killed have left of trying the store and asking for its time."""
    left = store.list(f"{PROBES}/") | store.list(f"{CLOCKS}/")
    store.remove([key for key, entry in left.items() if now - entry.modified > ABANDONED_SECONDS])


def _remove_ended(store: Store, own: str, now: float) -> None:
    """Remove what others have left that ended, or died long ago; some at a time, for there may be many.

    The own number stays the highest that was ever given, for it is that of who holds the lease.
    """
    ended = (
        f"{LEASES}/{name}/{file}"
        for name, files in _files_of_holders(store).items()
        if name != own and ("end" in files or now - _last(files) > ABANDONED_SECONDS)
        for file in sorted(files)  # `end` last: without it one would seem to live
    )
    store.remove(islice(ended, MOST_REMOVED))


def _holders(store: Store) -> list[_Holder]:
    return [
        _Holder(name, files["begin"].modified, _last(files), "end" in files)
        for name, files in _files_of_holders(store).items()
        if "begin" in files
    ]


def _files_of_holders(store: Store) -> dict[str, dict[str, Entry]]:
    """What is below lease/, by holder and name."""
    found: dict[str, dict[str, Entry]] = {}
    for key, entry in store.entries(f"{LEASES}/"):
        parts = key.split("/")
        if len(parts) == 3:
            found.setdefault(parts[1], {})[parts[2]] = entry
    return found


def _last(files: Mapping[str, Entry]) -> float:
    return max(entry.modified for entry in files.values())


def _owner(store: Store, name: str) -> Owner | None:
    with suppress(StorageError, OSError, ValidationError):
        return Owner.model_validate_json(store.read(f"{LEASES}/{name}/begin"))
    return None


def _is_gone(store: Store, name: str) -> bool:
    owner = _owner(store, name)
    return owner is not None and owner.is_gone()


def _called(store: Store, name: str) -> str:
    return str(_owner(store, name) or "process ?")


def _in_use(store: Store, name: str) -> OutputError:
    return OutputError(f"{store.where} is in use by another run ({_called(store, name)}); stop that one first")
