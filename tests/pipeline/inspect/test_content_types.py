"""Content types follow from the bytes of a window alone, for any bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inspect.content_types import TYPES, WINDOW, content_types, window_starts

TEXTS = {
    "Latin prose": "When the ship came in, nobody was on the quay; the captain's dog barked twice, then it rained. ",
    "code": "def f(x):\n    return {k: v[0] for k, v in x}\n\nfor (int i = 0; i < n; ++i) { a[i]++; }\n",
    "mathematics": r"Let $x \in \mathbb{R}^n$ and $f(x) = \sum_{i=1}^n \alpha_i x_i^2$; then $\nabla f = 2 \alpha x$. ",
    "Greek": "Όταν ήρθε το πλοίο, κανείς δεν ήταν στην προκυμαία. ",
    "Cyrillic": "Когда пришёл корабль, на пристани никого не было. ",
    "Hebrew": "כשהגיעה הספינה לא היה איש על הרציף. ",
    "Arabic": "عندما وصلت السفينة لم يكن أحد على الرصيف. ",
    "Indic": "जब जहाज़ आया, घाट पर कोई नहीं था। ",
    "Thai and Lao": "เมื่อเรือมาถึงไม่มีใครอยู่บนท่าเรือ ",
    "Chinese and Japanese": "船が来たとき、埠頭には誰もいなかった。船到的时候,码头上没有人。",
    "Korean": "배가 들어왔을 때 부두에는 아무도 없었다. ",
    "other scripts": "Երբ նավը եկավ, նավամատույցում ոչ ոք չկար։ ",
    "numbers and marks": "1999, 12.50, 2000, 13.75; 2001, 14.00 ... 17 18 19\n",
    "binary": "\x00\x01\x7fELF\x02\x03\x00",
}


def names(*documents: bytes) -> list[str]:
    text = np.frombuffer(b"".join(documents), np.uint8)
    return [TYPES[kind] for kind in content_types(text, np.array([len(own) for own in documents], np.int64))]


def test_every_type_has_an_example() -> None:
    assert set(TEXTS) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_a_window_of_each_type_is_told(name: str) -> None:
    text = TEXTS[name].encode()
    repeated = (text * (3 * WINDOW // len(text) + 1))[: 2 * WINDOW]
    assert names(repeated) == [name, name]


def test_formulas_beyond_ascii_are_mathematics_and_bytes_beyond_utf8_are_binary() -> None:
    assert names("∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε, für alle x ∈ ℝ".encode()) == ["mathematics"]
    assert names("Größe über alles, naïve façade, Übermut".encode("latin-1") * 2) == ["binary"]
    assert names(b"\xed\xa0\x80\xf8\x88\x80\x80\x80\xc0\xaf") == ["binary"]  # a surrogate, five bytes, overlong


@given(st.lists(st.one_of(st.binary(max_size=700), st.text(max_size=300).map(str.encode)), max_size=6))
def test_windows_cover_documents_and_no_document_changes_another(documents: list[bytes]) -> None:
    alone = [name for document in documents if document for name in names(document)]
    assert names(*documents) == alone
    sizes = np.array([len(document) for document in documents], np.int64)
    assert len(window_starts(sizes)) == sum(-(-len(document) // WINDOW) for document in documents)


def test_a_command_does_not_reach_into_the_next_document() -> None:
    assert names(b"7 \\", b"alpha and so on, and so on") == [*names(b"7 \\"), *names(b"alpha and so on, and so on")]


def test_characters_belong_to_the_window_of_their_first_byte() -> None:
    # The last letter of the first window is cut: it counts there, and its rest is no letter of the second.
    first = b"a" * (WINDOW - 1) + "я".encode()
    assert names(first + b"1234567") == ["Latin prose", "numbers and marks"]
