"""Where texts may be cut without damaging a character, and what is damaged in a text. Pure."""

import codecs

REPLACEMENT = "\ufffd"


def character_start(text: bytes, at: int) -> int:
    """The latest place up to byte ``at`` where a character begins; ``at`` itself where the text is no UTF-8 there."""
    for back in range(min(4, at + 1)):
        if at - back == len(text) or text[at - back] & 0xC0 != 0x80:
            return at - back
    return at


def damage(text: bytes, whole: bool) -> tuple[int, int]:
    """Characters of a text, and how many of them are damaged: one for each sequence that is no UTF-8.

    Where a text is not ``whole``, since writing was stopped, a character that it ends in the middle of does not count.
    """
    decoded = codecs.getincrementaldecoder("utf-8")("replace").decode(text, final=whole)
    return len(decoded), decoded.count(REPLACEMENT) - text.count(REPLACEMENT.encode())
