"""Models whose parameters have shapes and no values yet."""

import subprocess
import sys
import textwrap

import pytest
from helpers.model_examples import blt_settings
from helpers.tiny_runs import quiet_environment
from torch import nn

from shared.models.blt import Blt
from shared.models.initialise import without_values


def test_a_model_without_values_has_the_shapes_of_one_with_them() -> None:
    with without_values():
        empty = Blt(blt_settings())
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = [{name: (p.shape, p.dtype) for name, p in m.named_parameters()} for m in (empty, Blt(blt_settings()))]
    assert shapes[0] == shapes[1]
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.drill
def test_neither_a_model_without_values_nor_writing_imports_the_compiler() -> None:
    """Over a second of the start of every program that writes."""
    code = """
        import sys, torch
        from helpers.model_examples import blt_settings
        from shared.incremental import DecodingState
        from shared.models.blt import Blt
        from shared.models.initialise import without_values
        from shared.patching import PatchingSettings
        with without_values():
            Blt(blt_settings())
        state = DecodingState(Blt(blt_settings()).eval(), PatchingSettings(rule="space", max_length=64))
        state.advance(torch.tensor([[1, 70, 71]]))
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=600, env=quiet_environment())
