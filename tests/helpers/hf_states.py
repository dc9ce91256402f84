"""States of models in memory as those of `BltForCausalLM`, by the correspondence that folders are converted with."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from shared.interop.names import HF, parts
from shared.interop.transfer import check, join, shapes, split
from shared.model_settings import BltSettings, EntropyModelSettings


class Tensors:
    """A state in memory as a source."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def names(self) -> list[str]:
        return sorted(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._state[name] if rows is None else self._state[name][rows]


def to_hf_state(
    state: Mapping[str, Tensor],
    settings: BltSettings,
    entropy_model_state: Mapping[str, Tensor] | None = None,
    entropy_model_settings: EntropyModelSettings | None = None,
) -> dict[str, Tensor]:
    """The state of a BLT, and of the entropy model that finds its patches, as a state of `BltForCausalLM`: views."""
    out: dict[str, Tensor] = {}
    models: list[tuple[Mapping[str, Tensor], BltSettings | EntropyModelSettings]] = [(state, settings)]
    if entropy_model_state is not None:
        assert entropy_model_settings is not None, "the state of an entropy model comes with its settings"
        models.append((entropy_model_state, entropy_model_settings))
    for tensors, described in models:
        plan, produce = split(Tensors(tensors), parts(described, HF), torch.float32)
        out |= {name: _one(produce(name)) for name, _, _ in plan}
    return out


def from_hf_state(
    state: Mapping[str, Tensor], settings: BltSettings, entropy_model_settings: EntropyModelSettings | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of a BLT and of its entropy model (empty without its settings) from that of `BltForCausalLM`.

    Raises InteropError as `check` does.
    """
    if entropy_model_settings is None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HF.patcher)}
    correspondences = [parts(settings, HF), parts(entropy_model_settings, HF) if entropy_model_settings else []]
    check(Tensors(state), shapes(correspondences[0]) | shapes(correspondences[1]))
    joined = [join(Tensors(state), correspondence) for correspondence in correspondences]
    blt, entropy_model = ({name: _one(produce(name)) for name, _, _ in plan} for plan, produce in joined)
    return blt, entropy_model


def _one(made: Tensor | Iterable[Tensor]) -> Tensor:
    return made if isinstance(made, Tensor) else torch.cat(list(made))
