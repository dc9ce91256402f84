"""What all tests have in common."""

import os
import secrets
from collections.abc import Iterator

import pytest
import torch
from browser import Browser, chromium

# Ray reads these when it is imported, by whichever test does it first.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models of these tests are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium for the pages that we write."""
    program, reason = chromium()
    if program is None:
        pytest.skip(f"no Chromium: {reason}")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
