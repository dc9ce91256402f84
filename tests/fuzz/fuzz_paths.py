"""Puts the repository and the helpers of other tests on the path, whichever way the fuzzer is started."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
for place in (TESTS.parent, TESTS, TESTS / "fuzz"):
    if str(place) not in sys.path:
        sys.path.append(str(place))
