"""Where files lie, local or behind an fsspec URL: opened in one way, with one line when that cannot be."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from shared.errors import DeniedError, StorageError
from shared.io.files.json_reader import read_at_most, read_bounded

_PACKAGES = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", None),
    "https": ("aiohttp", None),
    "abfs": ("adlfs", None),
    "az": ("adlfs", None),
    "r2": ("s3fs", "s3"),
}
"""Package that a scheme needs, and the extra of this project that installs it."""

_MISSPELT = re.compile(rf"(?i)({'|'.join([*_PACKAGES, 'abfss', 'file', 'ftp'])}):(?!//)/?")
"""How a text begins that would be a folder of that name in the current one."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_QUERY = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s?'\"]+)\?[^\s'\"]+")
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@")
_SECRET_NAME = re.compile(r"(?i)(key|secret|token|passw|credential|signature|connection_string)(?!.*_file$)")
SHORTEST_SECRET = 8
"""Characters: what is shorter is in many a text by chance."""
ATTEMPTS = 4
PAUSE_SECONDS = 0.5
"""Before a connection is tried again for the first time; longer each time after."""
OWN_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
T = TypeVar("T")


def is_url(text: str) -> bool:
    return "://" in text or text.startswith("pipe:")


def local_path(text: str) -> str:
    """A ``file://`` URL as the path that it means, another URL with its scheme in lower case, a path as it is.

    Raises ValueError for a URL that lacks a slash, which would be a path here.
    """
    if found := _MISSPELT.match(text):
        scheme, rest = found[1].lower(), text[found.end() :]
        right = f"{scheme}://{'/' * (scheme == 'file')}{rest}"
        raise ValueError(f"a misspelt URL: write {without_secrets(right)}, or begin with ./ for a path here")
    return _SCHEME.sub(lambda scheme: scheme[0].lower(), text, 1).removeprefix("file://")


def path_of(text: str) -> Path:
    """A path of this machine. Raises ValueError for a URL, of which Path would make the folder `s3:` here."""
    if is_url(path := local_path(text)):
        raise ValueError(f"{without_secrets(text)} is a URL; give a path of this machine")
    return Path(path)


def location_of(text: Any) -> Any:
    """A URL as text, any other text as a path. Raises ValueError for a misspelt URL."""
    if not isinstance(text, str):
        return text
    return place if is_url(place := local_path(text)) else Path(place)


def without_query(text: str) -> str:
    """Text for a message, URLs in it without what follows their question mark: signatures are secrets."""
    return _QUERY.sub(r"\1?...", text)


def without_secrets(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Text for a message or a log without passwords: neither in URLs, nor those of the environment or of ``options``.

    ``options``: those of an fsspec file system.
    """
    text = _USER.sub(r"\1...@", without_query(text))
    for secret in sorted({*_secrets(os.environ), *_secrets(options or {})}, key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """Values under names that say that they are secret, at any depth."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= SHORTEST_SECRET and _SECRET_NAME.search(str(name)):
            yield value


Location = Annotated[Path | str, BeforeValidator(location_of)]
"""A folder: a path, or a URL as text."""


def below(folder: Path | str, name: str) -> Path | str:
    """What lies under a name in a folder."""
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) else folder / name


def open_binary(location: str) -> IO[bytes]:
    """A file for reading, with seek. Raises OSError."""
    if not is_url(location):
        return open(location, "rb")
    fs, path = file_system(location)
    file: IO[bytes] = fs.open(path, "rb")
    return file


def read_whole(location: Path | str, most_bytes: int) -> bytes:
    """The content of a file of at most so many bytes. Raises FileNotFoundError, OSError of a path, StorageError."""
    if isinstance(location, Path):
        return read_bounded(location, most_bytes)

    def read() -> bytes:
        with open_binary(location) as file:
            content = read_at_most(file, most_bytes + 1)
        if len(content) > most_bytes:
            raise StorageError(f"{without_secrets(location)} is larger than {most_bytes:,} bytes")
        return content

    return tried_again(read, location)


def tried_again(read: Callable[[], T], url: str) -> T:
    """What reading a URL gives, tried again when the connection breaks.

    Raises FileNotFoundError when there is no such file, DeniedError when the user may not read it, and StorageError,
    one line, when it breaks each time.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return read()
        except (StorageError, FileNotFoundError):
            raise
        except Exception as error:  # each fsspec store raises errors of its own classes
            if isinstance(error, OSError) and error.errno in OWN_ERRORS:
                raise  # of this machine, not of the connection
            if isinstance(error, PermissionError):
                raise DeniedError(_problem(url, error)) from None
            problem = error
        if left:
            time.sleep(PAUSE_SECONDS * (ATTEMPTS - left))
    if isinstance(problem, ValueError):
        raise problem  # of the data, not of the connection
    raise StorageError(f"{_problem(url, problem)} (tried {ATTEMPTS} times)") from None


def _problem(url: str, error: Exception) -> str:
    return without_secrets(f"{url}: {type(error).__name__}: {' '.join(str(error).split())}")


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises StorageError for a URL that may not be read."""
    scheme, shown = urlsplit(url).scheme, without_secrets(url)
    if scheme == "pipe" or "::" in url:
        raise StorageError(f"{shown}: commands and chained URLs are not read; give a plain path or URL")
    if "@" in urlsplit(url).netloc:
        raise StorageError(f"{scheme}://...: put the password into the environment, not into the URL")
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        return fs, path
    except ImportError:
        package, extra = _PACKAGES.get(scheme, (f"the fsspec driver of {scheme}", None))
        install = f"pip install -e '.[{extra}]'" if extra else f"pip install {package}"
        raise StorageError(f"{shown}: reading {scheme}:// needs the package {package}; {install}") from None
    except ValueError as error:
        raise StorageError(without_secrets(f"{url}: {error}")) from None
