"""One page for a browser that fetches nothing: its style and script are in it, and its policy allows just these."""

import base64
import hashlib
import re
from importlib.resources import files

PAGE = re.compile(
    rb'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="patchwork">'
)
"""How pages of ours begin, by which `shared.io.files.outputs.Output` knows them."""


def base_style() -> str:
    """Colours for light and dark, and what all pages look like."""
    return files("shared.io.display").joinpath("page.css").read_text()


def page(template: str, style: str, script: str = "", **parts: str) -> str:
    """A template with its {{style}}, {{script}}, {{policy}} and ``parts`` filled in as they are, not escaped."""
    scripts = f"script-src '{_source_hash(script)}'; " if script else ""
    policy = (
        f"default-src 'none'; img-src data:; {scripts}style-src '{_source_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {"policy": policy, "style": style, "script": script, **parts}
    # One pass over the template: what is filled in is never looked at again.
    return re.sub(r"{{(\w+)}}", lambda place: filled[place[1]], template)


def _source_hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
