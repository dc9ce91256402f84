"""What is written as TOML is read back as it was."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from shared.io.toml import to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_written_values_are_read_back(values: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_tables_follow_their_own_keys() -> None:
    recipe = {"run": {"steps": 3}, "model": {"global": {"width": 8}, "kind": "blt"}, "rates": {"a.b": 0.1}}
    assert to_toml(recipe) == (
        '[run]\nsteps = 3\n\n[model]\nkind = "blt"\n\n[model.global]\nwidth = 8\n\n[rates]\n"a.b" = 0.1\n'
    )
