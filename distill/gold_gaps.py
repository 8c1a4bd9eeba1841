"""What experts left open: gold that is ``IGNORE`` in places, and gold that looks as if it should be.

Where nobody drew, gold says nothing, and nothing is counted. Gold that is background there instead calls the organ's own voxels wrong,
so that volumes of which only some slices were drawn are worth a warning.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from distill.evidence import GoldCase

LEAST_SLICES = 3
"""So many single slices, one above the other with nothing between, are no accident."""


def open_in_words(cases: Sequence[GoldCase], beside: int = 0) -> str:
    """Say of how many cases only a part was judged, or nothing at all; empty where experts left nothing open.

    Args:
        cases: With gold of the class.
        beside: Masks that lie where nothing was judged.
    """
    unknown = sum(case.answered is not None and not case.answered.any() for case in cases)
    none = sum(not case.judged.any() for case in cases) - unknown
    unanswered = sum(case.answered is not None for case in cases) - unknown
    part = sum(not (case.judged.all() if case.answered is None else case.judged[case.answered].all()) for case in cases) - none
    said = (
        f"gold of {part} of {len(cases)} calibration cases is of a part, and counts there alone" if part else "",
        f"of {unanswered} of {len(cases)} only the slices count on which the teacher was asked and is believed" if unanswered else "",
        _never_absent(cases) if part else "",
        f"{beside} of their masks lie where nothing was judged, and are left out" if beside else "",
        f"gold of {none} of {len(cases)} leaves everything open (255), and they are left out" if none else "",
        f"of {unknown} of {len(cases)} the teacher is believed on no slice, and they are left out" if unknown else "",
    )
    return "; ".join(each for each in said if each)


def _never_absent(cases: Sequence[GoldCase]) -> str:
    """Say that no slice without the object was judged, if so: masks drawn beyond its ends then count for nothing."""
    seen = [np.asarray(case.gold.any(axis=(1, 2)))[np.asarray(case.judged.any(axis=(1, 2)))] for case in cases if case.judged.any()]
    if not seen or not all(each.all() for each in seen):
        return ""
    return "no slice without the object was drawn, so what the teacher draws beyond its ends is not counted: let gold say 0 on some slices beyond them"


def undrawn_in_words(cases: Sequence[GoldCase]) -> str:
    """Say in how many cases gold is background between the slices that an expert drew; empty where that is so in none."""
    found = sum(looks_undrawn(case.gold, case.judged) for case in cases)
    if not found:
        return ""
    return (
        f"gold of {found} of {len(cases)} calibration cases has the object on single slices above each other and background on all between, "
        "as if nobody had drawn there; every voxel of a mask there counts as wrong"
    )


def looks_undrawn(gold: Bool[np.ndarray, "z y x"], judged: Bool[np.ndarray, "z y x"]) -> bool:
    """Tell whether an object is drawn on some slices only, and said to be absent between them.

    That is: along one axis it is on three or more slices, no two of them neighbours, each overlaps the one before, and slices between
    them were judged. Organs do not do that, and lesions hardly ever.
    """
    return any(_on_single_slices(np.moveaxis(gold, axis, 0), np.moveaxis(judged, axis, 0)) for axis in range(3) if gold.shape[axis] > 1)


def _on_single_slices(gold: np.ndarray, judged: np.ndarray) -> bool:
    here = np.flatnonzero(gold.any(axis=(1, 2)))
    if len(here) < LEAST_SLICES or (np.diff(here) < 2).any():
        return False
    between = [z for z in range(here[0], here[-1]) if z not in here]
    return bool(judged[between].any()) and all((gold[a] & gold[b]).any() for a, b in pairwise(here))
