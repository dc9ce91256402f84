"""Amounts as people read them, one way for both programs."""


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def quantity(value: float) -> str:
    """A number with k, M, G, T or P."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} "


def counted(count: int, thing: str) -> str:
    """1 pack, 2 packs."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """In the unit that one would use: 94 seconds, 25.1 hours, 21.1 days, 2.8 years."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{grouped(seconds / size)} {unit}"
    return f"{grouped(seconds)} seconds"


def grouped(value: float) -> str:
    """Three digits, or all before the point: 0.213, 10.5, 2,250."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
