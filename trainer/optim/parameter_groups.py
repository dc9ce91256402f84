"""Which optimizer each parameter has, whether it is decayed, and at which share of the learning rate it learns."""

from typing import Any

from torch import nn

from shared.errors import ConfigError
from shared.layers.blocks import Linear
from shared.model_folder.files import Model, build_model
from shared.models.initialise import without_values
from trainer.distributed.row_sharded_tables import RowTables, row_tables
from trainer.optim.name_patterns import by_pattern, rate_factors
from trainer.settings import OptimizerSettings

FACTOR = "factor"
"""Key of an optimizer's group: its share of the learning rate."""


def decayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are decayed.

    Those are weight matrices that multiply activations. Norm weights and biases are not, nor are embedding tables
    (bytes, n-grams): a row that no batch touches would fade away by decay alone.
    """
    return {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def inner_matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The matrices from activations to activations, all but the head, with the rows of each projection in them.

    Asked of a model as its settings make it: the modules of this one may have been replaced (float8).
    """
    assert isinstance(model, Model)
    with without_values():
        plain = build_model(model.settings)
    return {
        f"{prefix}.weight": module.outputs
        for prefix, module in plain.named_modules()
        if isinstance(module, Linear) and prefix.rpartition(".")[2] != "head"
    }


def adamw_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for AdamW: all that learns but what `muon_groups` has and tables that learn by rows.

    Raises ConfigError for a pattern that fits no parameter, or when every factor is 0.
    """
    apart = {table.weight for table in row_tables(model)}
    inner = inner_matrices(model) if settings.matrices == "muon" else {}
    named = dict(model.named_parameters())
    if not any(rate_factors(named, settings.rates).values()):
        raise ConfigError("optimizer.rates: every factor is 0, nothing would learn")
    return _groups(model, settings, [name for name in named if name not in inner and named[name] not in apart])


def muon_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for Muon: the inner matrices that learn, when the settings say so."""
    groups = _groups(model, settings, list(inner_matrices(model))) if settings.matrices == "muon" else []
    return [group | {FACTOR: group[FACTOR] * settings.muon.rate} for group in groups]


def _groups(model: nn.Module, settings: OptimizerSettings, names: list[str]) -> list[dict[str, Any]]:
    """Of these parameters those that learn, by decay and factor of the learning rate."""
    named = dict(model.named_parameters())
    factors = rate_factors(named, settings.rates)
    shares = by_pattern(sorted(decayed_names(model)), settings.decay, "optimizer.decay", "decayed matrix")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name in names:
        if factors[name]:
            decay = settings.weight_decay * shares.get(name, 0.0)
            groups.setdefault((decay, factors[name]), []).append(named[name])
    return [
        {"params": parameters, "weight_decay": decay, FACTOR: factor}
        for (decay, factor), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def table_factors(model: nn.Module, settings: OptimizerSettings) -> dict[RowTables, float]:
    """The tables that learn by rows, each with its factor; those with factor 0 are left out."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    factors = rate_factors(names.values(), settings.rates)
    tables = {table: factors[names[table.weight]] for table in row_tables(model)}
    return {table: factor for table, factor in tables.items() if factor}


def freeze(model: nn.Module, settings: OptimizerSettings) -> None:
    """Ask for no gradients of parameters whose factor is 0."""
    named = dict(model.named_parameters())
    for name, factor in rate_factors(named, settings.rates).items():
        named[name].requires_grad_(factor != 0)
