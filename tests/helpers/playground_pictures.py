"""Makes the pictures in docs/playground.md: python tests/helpers/playground_pictures.py MODEL [FOLDER].

Serves a model, writes with it in the page as a person would, and takes the page on three screens.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.browser import Browser, chromium
from helpers.serving import served_process

DOCS = Path(__file__).parents[2] / "docs"
PROMPT = "class Reader:\n    def read(self, size):\n        "
FIELDS = {"prompt": PROMPT, "length": 260, "temperature": 0.6, "top-p": 0.9, "seed": 6}
PICTURES = {
    "playground": (1280, 860, "light"),
    "playground-dark": (1280, 860, "dark"),
    "playground-phone": (390, 844, "light"),
}
"""Width and height of the screen, and which colours it asks for."""


def write(browser: Browser) -> None:
    """Fill in the fields, write, and look at one character."""
    for id, value in FIELDS.items():
        field = f"document.getElementById('{id}')"
        browser.evaluate(f"{field}.value = {json.dumps(value)}, {field}.dispatchEvent(new Event('input'))")
    browser.wait("!document.getElementById('write').disabled")
    browser.evaluate("document.getElementById('write').click()")
    browser.wait("document.getElementById('write').innerText === 'Write'")
    browser.evaluate("document.getElementById('pane').focus({ preventScroll: true })")
    for key in ("End", "ArrowUp", "ArrowUp"):
        browser.press(key)


def main(model: str, folder: str = str(DOCS)) -> None:
    """Take all pictures."""
    program, reason = chromium()
    if program is None:
        sys.exit(f"no Chromium: {reason}")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        served_process(f"stdlib={model}") as (_, address),
    ):
        browser = Browser(program, Path(profile))
        for name, (width, height, scheme) in PICTURES.items():
            browser.screen(width, height, mobile=width < 500)
            browser.prefer(prefers_color_scheme=scheme)
            browser.visit(f"{address}/")
            write(browser)
            taken = browser.call("Page.captureScreenshot", format="png")
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
