"""A headless Chromium driven through its own protocol over two pipes; just what tests of a page need.

`python tests/helpers/browser.py PAGE.html PICTURE.png [WIDTH HEIGHT]` makes the pictures of pages in docs/.
"""

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "infra" / "chromium.sh"
OPTIONS = (
    "--headless=shell",
    "--no-sandbox",
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
)
KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}
"""Their codes, and what they type."""
PATIENCE = 120
"""Seconds in which an answer must come."""


def chromium() -> tuple[str | None, str]:
    """The program, or None and the reason why there is none."""
    try:
        found = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return None, f"{SCRIPT.name} took longer than 240 seconds"
    if found.returncode:
        return None, found.stderr.strip().splitlines()[-1]
    return found.stdout.strip(), ""


class Browser:
    """One browser process with one page."""

    def __init__(self, program: str, profile: Path):
        ours_in, theirs_out = _high_pipe()
        theirs_in, ours_out = _high_pipe()
        line = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        # The protocol wants its pipes as 3 (to the browser) and 4 (from it).
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *line],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        """Everything that the page has reported, in order."""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, file: Path) -> None:
        """Load a local file; returns when it is loaded."""
        self.visit(file.as_uri())

    def visit(self, url: str) -> None:
        """Load what is at an address; returns when it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read(deadline)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """One key by its name; ``modifiers``: 2 for Ctrl, 8 for Shift."""
        code, text = KEYS[key]
        values: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def screen(self, width: int, height: int, mobile: bool = False) -> None:
        """Be as large as this screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, **preferences: str) -> None:
        """Have these media features: ``prefers_color_scheme="dark"``."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in preferences.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def complaints(self) -> list[Any]:
        """Console messages, exceptions and log entries, refused requests among them."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        self.evaluate("new Promise((done) => setTimeout(done, 50))")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses that the page has asked for, its own file first."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def picture(self, width: int, height: int) -> bytes:
        """The page as PNG, as it is on a screen so wide, down to ``height`` or its end."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=400, deviceScaleFactor=1, mobile=False)
        least = min(height, int(self.evaluate("document.documentElement.scrollHeight")))
        clip = {"x": 0, "y": 0, "width": width, "height": least, "scale": 1}
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the browser has ended" if ready else f"no answer in {PATIENCE} seconds")
            self._rest += data
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(600)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


def _high_pipe() -> tuple[int, int]:
    """A pipe whose numbers leave 3 and 4 free."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


def main(page: str, picture: str, width: str = "1180", height: str = "1650") -> None:
    """Open a page and write what is seen of it."""
    program, reason = chromium()
    if program is None:
        sys.exit(f"no Chromium: {reason}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, Path(profile))
        browser.open(Path(page).resolve())
        Path(picture).write_bytes(browser.picture(int(width), int(height)))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
