"""Run-length codes of binary masks as COCO writes them: runs down the columns, beginning with a run of zeros.

The compressed form writes each count as digits of base 32, the lowest first, each digit as one printable character from
``0`` on, with a flag on all but the last digit. From the fourth count on, the difference to the count two before is
written, since object and background runs each tend to repeat. (Format: COCO API, ``maskApi.c``, Lin et al. 2014.)
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

_FIRST_CHARACTER = ord("0")
_DIGIT_BITS = 5
_MORE = 0x20
_SIGN = 0x10
_DIGIT = 0x1F
_LONGEST = 1 << 50
"""Pixels that no image has."""
_PLAIN_COUNTS = 3
"""Counts before this one are written as they are, later ones as differences."""


def encode(mask_yx: Bool[np.ndarray, "y x"]) -> str:
    """Return the compressed COCO string of a mask."""
    return compress(counts_of(mask_yx))


def decode(code: str | Sequence[int], size_yx: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Return the mask behind a compressed string or a list of counts.

    Raises:
        ValueError: if the runs do not fill an image of this size, or the string is damaged.
    """
    counts = decompress(code) if isinstance(code, str) else list(code)
    height, width = size_yx
    # Summed as Python's integers: numpy's would wrap round, and lengths that seem to fit then be written far behind the array.
    covered = sum(counts)
    if any(count < 0 for count in counts) or covered != height * width:
        found = covered if abs(covered) < _LONGEST else "far too many"
        message = f"the runs cover {found} pixels, but an image of {height} rows and {width} columns has {height * width}."
        raise ValueError(message)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((width, height)).T


def counts_of(mask_yx: Bool[np.ndarray, "y x"]) -> list[int]:
    """Return the lengths of the runs, column by column, the first of them zeros (perhaps none)."""
    flat = np.asarray(mask_yx, dtype=bool).ravel(order="F")
    if flat.size == 0:
        return [0]
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = [0, *changes.tolist(), flat.size]
    lengths = [end - start for start, end in pairwise(edges)]
    return [0, *lengths] if flat[0] else lengths


def compress(counts: Sequence[int]) -> str:
    """Write counts as a string."""
    deltas = [count - counts[n - 2] if n >= _PLAIN_COUNTS else count for n, count in enumerate(counts)]
    return "".join(_write_number(delta) for delta in deltas)


def decompress(code: str) -> list[int]:
    """Read the counts of a string.

    Raises:
        ValueError: if a character is none of the code's, a number is larger than any image, or the last one is cut off.
    """
    counts: list[int] = []
    number, shift = 0, 0
    for character in code:
        digit = ord(character) - _FIRST_CHARACTER
        if not 0 <= digit <= (_MORE | _DIGIT):
            message = f"{character!r} is no character of a run-length code."
            raise ValueError(message)
        if number > _LONGEST:
            message = "the run-length code holds a run that is longer than any image."
            raise ValueError(message)
        number |= (digit & _DIGIT) << shift
        shift += _DIGIT_BITS
        if not digit & _MORE:
            signed = number - (1 << shift) if digit & _SIGN else number
            counts.append(signed + counts[-2] if len(counts) >= _PLAIN_COUNTS else signed)
            number, shift = 0, 0
    if shift:
        message = "the run-length code ends in the middle of a number."
        raise ValueError(message)
    return counts


def _write_number(number: int) -> str:
    """Write one signed number, lowest digit first, until what is left is only the sign."""
    characters = ""
    while True:
        digit = number & _DIGIT
        number >>= _DIGIT_BITS
        finished = number == (-1 if digit & _SIGN else 0)
        characters += chr(_FIRST_CHARACTER + (digit if finished else digit | _MORE))
        if finished:
            return characters
