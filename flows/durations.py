"""Durations as people write them."""

import re

_UNITS_S = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_WRITTEN = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*$")


def seconds_from(value: object) -> float:
    """Read ``90s``, ``20min``, ``1.5h`` or a plain number of seconds.

    Raises:
        ValueError: if it is none of these or not above zero.
    """
    match = _WRITTEN.match(str(value).lower())
    unit = (match.group(2) or "s") if match else ""
    if match is None or unit not in _UNITS_S or float(match.group(1)) <= 0:
        raise ValueError(_complaint(value))
    return float(match.group(1)) * _UNITS_S[unit]


def as_text(seconds: float) -> str:
    """Write a duration for a table: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _complaint(value: object) -> str:
    return f"must be a duration such as 90s, 20min or 1.5h, but is {value!r}."
