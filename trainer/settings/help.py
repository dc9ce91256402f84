"""Every key of a recipe in words: `python trainer/main.py --help`, and docs/recipe-keys.md.

The page is written by `python -m trainer.settings.help > docs/recipe-keys.md`.
"""

import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.settings import TrainSettings
from trainer.settings.keys import REQUIRED, Key, as_toml, keys_of, kind_of
from trainer.settings.recipe import read_recipe

PAGE = """\
# The keys of a recipe

<!-- Written by `python -m trainer.settings.help > docs/recipe-keys.md` from the docstrings of the settings. -->

A recipe is a TOML file, and every key can be given on the command line as `--section.key value`, too.
`python trainer/main.py RECIPE.toml --help` shows the same with the recipe's own values.
A key without a default has to be given.
`None` is not a TOML value: leave the key out to get it.
Keys that affect the result belong to the identity of a run; all others may change when it is resumed.
"""
INDENT = " " * 6


def help_text(recipe: Path | None, overrides: Sequence[str]) -> str:
    """The keys, a paragraph for each table. Raises ConfigError for what cannot be read."""
    lines = [f"keys of {recipe or 'a recipe'}:"]
    width = min(shutil.get_terminal_size().columns, 120)
    for heads, about, keys in _tables(read_recipe(recipe, overrides, TrainSettings) if recipe else None):
        lines += ["", f"{heads}  {about}"]
        for key in keys:
            shown = key.default if key.own is None else as_toml(key.own)
            if shown != key.default:
                shown += " (required)" if key.default == REQUIRED else f" (default: {key.default})"
            name = key.parts[-1] if "," in heads else key.name
            lines.append(f"  {name}  {key.type}{f' [{key.unit}]' if key.unit else ''}  {shown}")
            lines.append(textwrap.fill(key.doc, width, initial_indent=INDENT, subsequent_indent=INDENT))
    return "\n".join(lines)


def page() -> str:
    """docs/recipe-keys.md."""
    parts = [PAGE]
    for heads, about, keys in _tables(None):
        parts.append(f"\n## {heads}\n\n> {about}\n\n| key | type | default | unit | |\n|---|---|---|---|---|\n")
        for key in keys:
            default = "" if key.default == REQUIRED else f"`{key.default}`"
            cells = (f"`{key.parts[-1]}`", key.type.replace("|", "\\|"), default, key.unit, key.doc)
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def _tables(values: dict[str, Any] | None) -> Iterator[tuple[str, str, list[Key]]]:
    """Heading, what it is, and keys of each table. Without values of their own those with the same keys are one."""
    tables: dict[Any, dict[tuple[str, ...], list[Key]]] = {}
    for key in keys_of(TrainSettings, values):
        place = key.parts[:-1]
        found = tables.setdefault((key.section, values and place), {}).setdefault(place, [])
        if key.name not in (other.name for other in found):  # several kinds may have one table of one class
            found.append(key)
    for (section, _), places in tables.items():
        heads = ", ".join(f"[{'.'.join(place)}]" for place in places)
        kind = kind_of(section)
        about = inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        yield f"{heads}{f' kind = {kind}' if kind else ''}", about, next(iter(places.values()))


if __name__ == "__main__":
    sys.stdout.write(page())
