"""Which errors may pass by themselves: those of storage and network, told from those that come back every time."""

import errno

_PASSING = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EREMOTEIO,
    }
)


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later: lost connections, time-outs and faults of a disk or a mount.

    A full disk, a missing file or a refused permission does not mend itself. An error that was raised in place of a
    transient one is transient, too.
    """
    if isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    behind = error.__cause__ or error.__context__
    return behind is not None and is_transient(behind)
