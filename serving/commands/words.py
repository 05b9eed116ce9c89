"""Sizes and durations in the words of people."""


def size(num_bytes: float | None) -> str:
    """Such as "105 MB"; a dash if unknown."""
    return _scaled(num_bytes, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def count(number: float | None) -> str:
    """Such as "135 M"; a dash if unknown."""
    return _scaled(number, (("B", 1e9), ("M", 1e6), ("k", 1e3)), "")


def _scaled(number: float | None, units: tuple[tuple[str, float], ...], last: str) -> str:
    if not number:
        return "–"
    for unit, scale in units:
        if number >= scale:
            value = number / scale
            return f"{value:,.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    return f"{number:,.0f} {last}".rstrip()


def duration(seconds: float) -> str:
    """Such as "59 min"; rounded down, so that nothing is promised too long."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{int(seconds // scale)} {unit}"
    return f"{int(seconds)} s"
