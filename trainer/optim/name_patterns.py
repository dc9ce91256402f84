"""Values for parameters by patterns of their names; the pattern that says most about a name counts."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from shared.errors import ConfigError


def by_pattern(
    names: Iterable[str], patterns: Mapping[str, float], key: str, what: str = "parameter"
) -> dict[str, float]:
    """The value of each name: that of the most specific pattern which fits it, 1 where none does.

    A pattern is whole dotted parts and fits names that begin so: "decoder.blocks.1" does not fit
    "decoder.blocks.10.down.weight". In a part * stands for any characters, ? for one. Of two patterns the one with more
    parts is more specific, then the one with more parts without * and ?, then the one with more other characters.

    Raises ConfigError for a pattern that fits no name, and for two that are equally specific and disagree.
    """
    values, unused = {}, dict(patterns)
    for name in names:
        fitting = sorted((pattern for pattern in patterns if fits(pattern, name)), key=specificity)
        for pattern in fitting:
            unused.pop(pattern, None)
        best = [pattern for pattern in fitting if specificity(pattern) == specificity(fitting[-1])]
        if len({patterns[pattern] for pattern in best}) > 1:
            raise ConfigError(f"{key}: {best[0]!r} and {best[1]!r} fit {name} equally well and disagree")
        values[name] = patterns[best[0]] if best else 1.0
    if unused:
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name in values))
        raise ConfigError(f"{key}: no {what}'s name begins with {next(iter(unused))!r}; they are in {known}")
    return values


def fits(pattern: str, name: str) -> bool:
    """Whether a name begins as the pattern says."""
    wanted, parts = pattern.split("."), name.split(".")
    return len(wanted) <= len(parts) and all(fnmatchcase(part, want) for want, part in zip(wanted, parts))


def specificity(pattern: str) -> tuple[int, int, int]:
    """The larger, the more a pattern says."""
    parts = pattern.split(".")
    literal = [part for part in parts if not set(part) & set("*?[")]
    return len(parts), len(literal), sum(character not in "*?" for character in pattern)


def rate_factors(names: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    """The share of the learning rate of each parameter; 0: frozen. Raises ConfigError as `by_pattern` does."""
    return by_pattern(names, rates, "optimizer.rates")
