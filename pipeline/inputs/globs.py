"""Globs as inputs, matched name by name, so that a folder is entered only where something below it can match.

``*``, ``?`` and ``[...]`` stand for characters of one name, ``**`` for any folders. What matches a folder takes all
that lies below it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

ANY_FOLDERS = "**"


def has_magic(text: str) -> bool:
    """Whether a text may be a glob."""
    return any(character in text for character in "*?[")


def split_glob(text: str, exists: Callable[[str], bool] = lambda _: False) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the pattern below it.

    ``exists``: whether there is a folder with a path; a part with such characters in its name is that folder.
    """
    parts = text.split("/")
    magic = [i for i, part in enumerate(parts) if has_magic(part)]
    first = next(
        (i for i in magic if parts[i] == ANY_FOLDERS or not exists("/".join(parts[: i + 1]))), max(magic, default=0)
    )
    return "/".join(parts[:first]) or ("/" if first else "."), "/".join(parts[first:])


Place = frozenset[int]
"""How much of a pattern a path may have matched: numbers of parts; their number is that of the whole pattern."""


@dataclass(frozen=True)
class Glob:
    """A pattern below a folder."""

    pattern: str

    @cached_property
    def _parts(self) -> list[Callable[[str], object] | None]:
        """What a name must match; None: any folders."""
        parts = [part for part in self.pattern.split("/") if part not in ("", ".")]
        return [None if part == ANY_FOLDERS else re.compile(translate(part)).match for part in parts]

    @property
    def start(self) -> Place:
        """That of the folder itself."""
        return frozenset({0})

    def step(self, place: Place, name: str) -> Place:
        """That of a name in a folder with a place; an empty one: neither this nor anything below it matches."""
        last, reached, waiting, seen = len(self._parts), set[int](), list(place), set[int]()
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            if number == last:
                reached.add(last)  # a folder above matches
            elif (matches := self._parts[number]) is not None:
                if matches(name):
                    reached.add(number + 1)
            else:
                reached.add(number if number + 1 < last else last)
                if number + 1 < last:
                    waiting.append(number + 1)  # it may stand for no folder
        return frozenset(reached)

    def matches(self, place: Place) -> bool:
        """Whether what has this place is chosen, with all that is below it."""
        return len(self._parts) in place

    def chooses(self, relative: str) -> bool:
        """Whether a path matches, or a folder above it."""
        place = self.start
        for name in filter(None, relative.split("/")):
            place = self.step(place, name)
        return self.matches(place)


EVERYTHING = Glob(ANY_FOLDERS)
