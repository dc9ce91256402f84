"""Texts on an experiment's page: how systems cut one, and what they write. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from shared.text.characters import characters
from trainer.drawing.page import section
from trainer.experiments.page.patched_text import Picture
from trainer.experiments.page.samples import Samples
from trainer.experiments.page.tables import named
from trainer.experiments.results.results import Results

# ---- Text with its patches as markup: several cuts of one text one under another, or one text as it flows. Pure.


COLUMNS = 96
"""Characters of a line where cuts stand one under another."""
BREAKS = "\n\t"
"""What a flowing text breaks at; elsewhere it is shown by these pictures."""
PICTURES = {"\n": "↵", "\t": "→"}


def aligned(text: bytes, cuts: Sequence[tuple[str, Sequence[int]]], caption: str) -> str:
    """One text cut in several ways: a row a cut, lines of COLUMNS characters, equal characters in one column.

    Args:
        cuts: name of each and the places [P] in bytes at which its patches begin, ascending.
        caption: what it shows, for those who do not see it.
    """
    shown = list(characters(text))
    bodies = []
    for first in range(0, len(shown), COLUMNS):
        line = shown[first : first + COLUMNS]
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{"".join(_patches(line, starts))}</td></tr>'
            for name, starts in cuts
        )
        bodies.append(f"<tbody>{rows}</tbody>")
    return (
        f'<div class="scrolls whole" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="cuts">{"".join(bodies)}</table></div>'
    )


def flowing(text: bytes, starts: Sequence[int], given: int) -> str:
    """A text of which the first ``given`` bytes were there and the others were written; no patches without starts."""
    shown = list(characters(text))
    first = bisect_left(shown, given, key=lambda pair: pair[0])
    before, after = _shown(shown[:first], BREAKS), shown[first:]
    written = "".join(_patches(after, starts, BREAKS)) if starts else _shown(after, BREAKS)
    return f'<p class="flowing"><span class="given">{before}</span>{written}</p>'


def _patches(shown: Sequence[tuple[int, bytes]], starts: Sequence[int], kept: str = "") -> Iterator[str]:
    """Characters in their patches. One belongs to the patch of its first byte; colours alternate."""
    for number, own in groupby(shown, lambda pair: bisect_right(starts, pair[0])):
        yield f'<span class="p{number % 2}">{_shown(list(own), kept)}</span>'


def _shown(shown: Sequence[tuple[int, bytes]], kept: str) -> str:
    return escape("".join(_picture(character.decode(errors="replace"), kept) for _, character in shown))


def _picture(character: str, kept: str) -> str:
    """What stands for a character: itself if it can be seen or is a space."""
    if character in kept:
        return character
    return PICTURES.get(character, character if character.isprintable() else "·")


def picture_section(picture: Picture | None) -> str:
    """One text in the patches of every system, equal cuts once; empty without."""
    if picture is None or not picture.cuts:
        return ""
    systems: dict[tuple[int, ...], list[str]] = {}
    for cut in picture.cuts:
        systems.setdefault(cut.starts, []).append(cut.system)
    cuts = [(names[0], starts) for starts, names in systems.items()]
    alike = [f"{', '.join(names[1:])} as {names[0]}" for names in systems.values() if len(names) > 1]
    note = f" Cut alike: {'; '.join(alike)}." if alike else ""
    words = (
        f"The beginning of validation document {picture.document} ({picture.subset}), from the datasets; "
        f"a colour ends where a patch ends.{note}"
    )
    return section("Patches", aligned(picture.bytes, cuts, "One text in the patches of each system"), words)


def samples_section(results: Results, samples: Samples | None) -> str:
    """What each system wrote; empty without."""
    if samples is None:
        return ""
    given = len(samples.prompt)
    items = [
        f"<article><h3>{named(results, one.system)}</h3>{flowing(one.bytes, one.starts, given)}</article>"
        for one in samples.samples
        if one.refusal is None
    ]
    refused = "".join(
        f'<p class="note">{escape(one.system)}: {escape(one.refusal)}</p>' for one in samples.samples if one.refusal
    )
    words = (
        f"What the first run of each system writes after the same words, drawn at temperature {samples.temperature:g} "
        f"with seed {samples.seed}. One draw says little; models this small do not write sense."
    )
    return section("Samples", f'<div class="samples">{"".join(items)}</div>{refused}', words)
