"""Which errors may pass by themselves: those of storage and network, told from those that come back every time."""

import errno
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
ATTEMPTS = 3
"""How often anything is tried before it is given up."""
_PAUSES = (1.0, 4.0)
"""Seconds before the second and the third attempt at a single request."""
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


_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP: time-outs, too many requests, and faults of a server."""
_PASSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
"""What S3 and stores like it call them."""
_PASSING_CLASSES: dict[str, tuple[str, ...]] = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "requests": ("ConnectionError", "Timeout"),
    "requests.exceptions": ("ChunkedEncodingError", "ContentDecodingError"),
    "urllib3.exceptions": ("ProtocolError", "TimeoutError", "NewConnectionError"),
    "http.client": ("IncompleteRead", "RemoteDisconnected", "BadStatusLine"),
    "httpx": ("TransportError",),
    "botocore.exceptions": ("ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseStreamingError"),
    "google.auth.exceptions": ("TransportError",),
    "azure.core.exceptions": ("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),
}
"""Classes of libraries that speak to stores, by module, for connections that break or are not made."""
_FINAL_CLASSES: dict[str, tuple[str, ...]] = {
    "aiohttp": ("ClientConnectorCertificateError", "ClientConnectorSSLError", "InvalidURL"),
    "requests.exceptions": ("SSLError", "InvalidURL"),
    "httpx": ("UnsupportedProtocol",),
}


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later: lost connections, time-outs, busy servers, faults of a disk or a mount.

    A full disk, a missing file or a refused permission does not fix itself. An error that was raised in place of a
    transient one is transient, too.
    """
    if not isinstance(error, FileNotFoundError | PermissionError):
        if (status := status_of(error)) is not None:
            if status in _PASSING_STATUS:
                return True
        elif not _is_any(error, _FINAL_CLASSES):
            if isinstance(error, ConnectionError | TimeoutError) or _is_any(error, _PASSING_CLASSES):
                return True
            if isinstance(error, OSError) and error.errno in _PASSING:
                return True
    behind = error.__cause__ or error.__context__
    return behind is not None and is_transient(behind)


def retried(work: Callable[[], T]) -> T:
    """What ``work`` gives, tried again a bounded number of times after errors that may pass by themselves."""
    for pause in _PAUSES:
        try:
            return work()
        except Exception as error:  # whatever a store raises: the next line lets only known passing faults through
            if not is_transient(error):
                raise
        time.sleep(pause)
    return work()


def _is_any(error: BaseException, classes: dict[str, tuple[str, ...]]) -> bool:
    """Whether an error is of one of some classes, of those modules that are loaded: without them it cannot be."""
    found = (getattr(sys.modules.get(module), name, None) for module, names in classes.items() for name in names)
    return isinstance(error, tuple(kind for kind in found if isinstance(kind, type)))


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries, wherever its library keeps it; 503 for a store's own word for that."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        if _of(response, "Error", "Code") in _PASSING_CODES:
            return 503
        found = _of(response, "ResponseMetadata", "HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)
    for key in ("status", "status_code", "code"):
        found = getattr(error, key, None) if found is None else found
    if isinstance(found, str) and found.isdigit():  # gcsfs
        found = int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) and 100 <= found < 600 else None


def _of(values: dict[str, Any], outer: str, inner: str) -> Any:
    held = values.get(outer)
    return held.get(inner) if isinstance(held, dict) else None
