"""Amounts of storage as people write them."""

import re

_UNITS = {"": 1, "b": 1} | {
    prefix + tail: base**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1) for tail, base in (("b", 1000), ("ib", 1024))
}
_WRITTEN = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*$")


def bytes_from(value: object) -> int:
    """Read ``500MB``, ``20GB``, ``1.5TiB`` or a plain number of bytes.

    Raises:
        ValueError: if it is none of these or less than one byte.
    """
    match = _WRITTEN.match(str(value).lower())
    amount = float(match.group(1)) * _UNITS.get(match.group(2), 0) if match else 0.0
    if amount < 1:
        message = f"must be a size such as 500MB, 20GB or 1.5TiB, but is {value!r}."
        raise ValueError(message)
    return int(amount)
