"""What all tests have in common."""

import gc
import os
import secrets
from collections.abc import Iterator

import pytest
import torch
from helpers import object_store, surroundings
from helpers.browser import Browser, chromium
from hypothesis import settings

surroundings.normalise()

# The same examples in every run, so that a change is what makes a test fail; `make test-all` draws others each time,
# and six times as many.
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile("other", database=None, deadline=None, print_blob=True, max_examples=300)
settings.load_profile("same")


def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``."""
    return surroundings.workers()


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """The models of these tests are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What opens a page in a browser is a drill: starting browsers takes as much as a thousand other tests."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.drill)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium for the pages that we write."""
    program, reason = chromium()
    if program is None:
        pytest.skip(f"no Chromium: {reason}")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def store_endpoint(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """The address of a real object store, which all tests of this run share."""
    own = tmp_path_factory.getbasetemp()
    with object_store.shared_store((own if worker_id == "master" else own.parent) / "object-store") as endpoint:
        yield endpoint


@pytest.fixture
def bucket(store_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL of an object store below which nothing is, and the environment that opens it."""
    with object_store.opened(store_endpoint, monkeypatch):
        yield f"s3://{object_store.BUCKET}/{secrets.token_hex(8)}"


def pytest_configure(config: pytest.Config) -> None:
    """Collecting imports and makes a million objects that stay: looking through them again and again takes longer."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # others do not collect
        gc.disable()


def pytest_collection_finish() -> None:
    """From here on, without what has been collected."""
    gc.freeze()
    gc.enable()
