"""A page of charts and tables, whole in one file.

By hand: all pages have some fifty lines with markup in them, and templates for Jinja2 would be as many, with a loader
and a way to do without it. As there, what is no `Markup` is escaped.
"""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from shared.io.display.page import base_style, page
from shared.io.display.terminal import safe


class Markup(str):
    """Text that is markup already; all other text is escaped where it is put into a page."""

    __slots__ = ()


def escaped(text: str) -> str:
    """Text as markup."""
    return text if isinstance(text, Markup) else escape(text)


def drawn_page(title: str, content: str) -> str:
    """The page, with markup as content. Nothing is fetched, and it has no script."""
    source = files("trainer.drawing")
    style = base_style() + source.joinpath("page.css").read_text()
    return page(source.joinpath("page.html").read_text(), style, title=escape(safe(title)), content=safe(content))


def header(title: str, content: str) -> str:
    """What a page begins with."""
    return f"<header><h1>{escape(title)}</h1>{content}</header>"


def section(title: str, content: str, words: str = "") -> str:
    """A part of a page, with a sentence about it; empty when it has no content."""
    if not content:
        return ""
    note = f'<p class="note">{escape(words)}</p>' if words else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Labels with their values."""
    return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(words)}</dd>' for label, words in pairs)}</dl>"


def listed(sentences: Sequence[str], style: str) -> str:
    """A list of sentences; empty without any."""
    found = "".join(f"<li>{escape(words)}</li>" for words in sentences)
    return f'<ul class="{style}">{found}</ul>' if found else ""


def described(summary: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Labels and what they mean, folded away."""
    return f"<details><summary>{escape(summary)}</summary>{facts(pairs)}</details>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, style: str = "figures") -> str:
    """A table that scrolls within itself, the first cell of each row its head.

    Args:
        rows: cells, as text or as Markup.
        caption: what it holds, for those who do not see it.
        style: class of the table: figures to the right, or words to the left.
    """
    # A head may be broken behind a slash, as behind a hyphen, so that its column is as narrow as its figures.
    head = "".join(f'<th scope="col">{escape(name).replace("/", "/<wbr>")}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>{"".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
