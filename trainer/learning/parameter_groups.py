"""Which parameters are decayed, and at which share of the learning rate each of them learns."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from shared.config import ConfigError
from trainer.parallel.tables import RowTables, row_tables
from trainer.settings import OptimizerSettings

FACTOR = "factor"
"""Key of an optimizer's group: its share of the learning rate."""


def decayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are decayed.

    Those are weight matrices that multiply activations. Norm weights and embedding tables (bytes, n-grams) are not:
    a row that no batch touches would fade away by decay alone.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for name, _ in module.named_parameters(recurse=False)
    }


def rate_factors(names: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    """The share of the learning rate of each parameter: that of the longest prefix of its name, 1 without one.

    A prefix is whole dotted parts: "decoder.blocks.1" is none of "decoder.blocks.10.down.weight".

    Raises ConfigError for a prefix that no parameter has.
    """
    factors, unused = {}, dict(rates)
    for name in names:
        parts = name.split(".")
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        for prefix in prefixes:
            unused.pop(prefix, None)
        factors[name] = next((rates[prefix] for prefix in prefixes if prefix in rates), 1.0)
    if unused:
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name in factors))
        raise ConfigError(
            f"optimizer.rates: no parameter's name begins with {next(iter(unused))!r}; they are in {known}"
        )
    return factors


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for AdamW: parameters with the same decay and the same factor of the learning rate.

    Parameters with factor 0 and those of tables that learn by rows are in none of them.

    Raises ConfigError for a prefix that no parameter has, or when every factor is 0.
    """
    named = dict(model.named_parameters())
    decayed = decayed_names(model)
    factors = rate_factors(named, settings.rates)
    by_rows = {table.weight for table in row_tables(model)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, factor in factors.items():
        if factor and named[name] not in by_rows:
            groups.setdefault((name in decayed, factor), []).append(named[name])
    if not any(factors.values()):
        raise ConfigError("optimizer.rates: every factor is 0, nothing would learn")
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decay else 0.0, FACTOR: factor}
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
