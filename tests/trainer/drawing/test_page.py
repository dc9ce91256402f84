"""Parts of pages: text is escaped unless it is markup."""

from trainer.drawing.page import Markup, table


def test_cells_are_escaped_unless_they_are_markup() -> None:
    found = table(["a"], [["<b>", "x<y", Markup("<em>z</em>")]], "c")
    assert '<th scope="row">&lt;b&gt;</th>' in found
    assert "<td>x&lt;y</td><td><em>z</em></td>" in found
